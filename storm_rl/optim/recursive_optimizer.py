"""What the recursive optimisers share: two gradients on one sample, the recursion, and torch's interface."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from storm_rl.common.random_state import random_state, set_random_state
from storm_rl.optim.checks import checked_gradient, checked_loss, nonnegative
from storm_rl.optim.closure import Buffers, Closure, swap, watch_buffers
from storm_rl.optim.recursion import Number, squared_norm, update_direction

GROUP_OPTIONS = ("lr", "weight_decay", "maximize")
"""Options that may differ between parameter groups; all others are the optimiser's."""

POINT = ("previous", "direction", "gradient")
"""State of a parameter that is about the point before: x_{t-1}, d_{t-1} and, in META-STORM, g_{t-1}."""

SUMS = {"noise_sum": "gradients, or of their differences between samples", "direction_sum": "directions, weighted"}
"""Sums over all steps, of squares: floats in the parameter groups, or tensors in the state (per-coordinate form)."""


class SharedOptions(TypedDict, total=False):
    """Options of all three optimisers beside ``lr``; :class:`~storm_rl.optim.STORMPlus` documents them."""

    momentum_floor: float
    weight_decay: float
    per_coordinate: bool
    maximize: bool
    replay: bool


class RecursiveOptimizer(Optimizer, ABC):
    """Base of STORM+, STORM and META-STORM, which differ in ``a_t`` and ``eta_t`` alone.

    Global sums are Python floats in the parameter groups (the same in each), since ``load_state_dict`` would
    cast tensors in the state to the dtype of the parameter.
    """

    algorithm: ClassVar[str]
    # Those of one algorithm only; set before this class's constructor.
    _own_options: Mapping[str, Any] = {}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        momentum_floor: float = 0.0,
        weight_decay: float = 0.0,
        per_coordinate: bool = False,
        maximize: bool = False,
        replay: bool = True,
    ) -> None:
        nonnegative("momentum_floor", momentum_floor, most=1.0)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "maximize": bool(maximize),
            "momentum_floor": float(momentum_floor),
            "per_coordinate": bool(per_coordinate),
            "replay": bool(replay),
            **self._own_options,
            "noise_sum": 0.0,
            "direction_sum": 0.0,
            # Tells the state_dict of one algorithm from another's.
            "algorithm": self.algorithm,
        }
        super().__init__(params, defaults)

    @abstractmethod
    def _momentum(self, noise_sum: Number) -> Number:
        """``a`` from the sum that measures the noise."""

    @abstractmethod
    def _step_size(self, noise_sum: Number, direction_sum: Number, momentum: Number) -> Number:
        """``eta_t`` from the sums that include step ``t``."""

    def _noise(self, squared_gradient: Number) -> Number:
        """What step ``t`` adds to the noise sum."""
        return squared_gradient

    def _direction_weight(self, squared_direction: Number, momentum: Number) -> Number:
        """What step ``t`` adds to the direction sum."""
        return squared_direction

    def _looks_back(self) -> bool:
        """Whether the noise is the change of the gradient at the *previous* point from sample to sample."""
        return False

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | float:  # type: ignore[override]
        """Evaluate the closure at the current and the previous parameters, and move.

        Args:
            closure: Computes the loss of *one sample*, calls ``backward()`` and returns the loss. It must use the same
                sample each time it is called within a step, twice from the second step on: draw the batch outside.
                Gradients are cleared before each call.

        Returns:
            The loss at the current parameters, detached. ``p.grad`` holds the gradients there.

        Raises:
            TypeError: If the closure is missing or returns no number, or a gradient is sparse or complex.
            ValueError: If the loss or a gradient is NaN or infinite, the loss is not one number, or no parameter has a
                gradient: parameters and state are as before. Also if a sum of squares overflows: parameters and sums
                are as before, and the direction starts anew.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not callable(closure):
            raise TypeError(
                f"{self.algorithm}: step needs a closure that computes the loss, calls backward() and "
                f"returns the loss, since it takes gradients at two points on one sample; got {closure!r}"
            )
        before = random_state({p.device for p in parameters}) if self.param_groups[0]["replay"] else None
        with watch_buffers() as buffers:
            loss = self._evaluate(closure, parameters)
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        at_previous: dict[Tensor, Tensor] = {}
        if any("previous" in self.state.get(p, ()) for p in parameters):
            at_previous = self._evaluate_at_previous(closure, parameters, buffers, before)

        # Without a gradient there is no direction at x_t, so the recursion starts anew with the next one.
        for p in parameters:
            for key in POINT if p not in gradients and p in self.state else ():
                self.state[p].pop(key, None)
        if self.param_groups[0]["per_coordinate"]:
            self._step_per_coordinate(gradients, at_previous)
        else:
            self._step_global(gradients, at_previous)
        return loss

    def _evaluate(self, closure: Closure, parameters: Sequence[Tensor]) -> Tensor | float:
        """Checked loss; the gradients are checked too, and left in ``p.grad``."""
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            loss = checked_loss(closure(), self.algorithm)
        gradients = [checked_gradient(p.grad, self.algorithm) for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError(
                f"{self.algorithm}: the closure left no gradient in any parameter; the loss must depend on "
                "the parameters given to the optimizer, and the closure must call loss.backward()"
            )
        if not math.isfinite(squared_norm(gradients)):
            index = next(i for i, g in enumerate(gradients) if not math.isfinite(squared_norm([g])))
            raise ValueError(
                f"{self.algorithm}: gradient {index}, of shape {tuple(gradients[index].shape)}, is NaN, infinite "
                f"or too large to square (loss {float(loss)}); parameters and state were left as they were"
            )
        return loss

    def _evaluate_at_previous(
        self, closure: Closure, parameters: Sequence[Tensor], buffers: Buffers, before: dict[str, Any] | None
    ) -> dict[Tensor, Tensor]:
        """Gradients at ``x_{t-1}`` on the sample just used; leaves everything but ``previous`` as it was.

        On success ``previous`` is ``x_t``, which is what the next step needs; on failure it is ``x_{t-1}``.
        """
        remembered = [p for p in parameters if "previous" in self.state.get(p, ())]
        previous = [self.state[p]["previous"] for p in remembered]
        current_gradients = [p.grad for p in parameters]
        after, after_buffers = before and random_state({p.device for p in parameters}), buffers.now()
        # Parameters without a previous value have not moved by this optimiser: x_{t-1} is x_t there.
        swap(remembered, previous)
        try:
            buffers.restore()
            if before:
                set_random_state(before)
            self._evaluate(closure, parameters)
            for p, current in zip(parameters, current_gradients, strict=True):
                if current is not None and p.grad is not None and p.numel() and p.grad.data_ptr() == current.data_ptr():
                    raise ValueError(f"{self.algorithm}: both gradients in the same memory; let backward() allocate")
            # Without a gradient there the loss does not depend on the parameter at x_{t-1}: its gradient is zero.
            at_previous = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in remembered}
        except BaseException:
            swap(remembered, previous)
            raise
        else:
            for p, value in zip(remembered, previous, strict=True):
                p.copy_(value)
        finally:
            after_buffers.restore()
            if after:
                set_random_state(after)
            for p, current in zip(parameters, current_gradients, strict=True):
                p.grad = current
        return at_previous

    def _advance(
        self,
        parameters: Sequence[Tensor],
        gradients: dict[Tensor, Tensor],
        at_previous: dict[Tensor, Tensor],
        sums: Mapping[str, Any],
    ) -> tuple[Any, Any, Any]:
        """Turn ``d_{t-1}`` into ``d_t`` for ``parameters``, which have their sums in common; the sums and ``eta_t``."""
        options, noise_sum = self.param_groups[0], sums["noise_sum"]
        square: Callable[[Sequence[Tensor]], Any] = _squares if options["per_coordinate"] else squared_norm
        known = [p for p in parameters if p in at_previous]
        shift = [at_previous[p] for p in known]
        if self._looks_back():
            pairs = zip(known, shift, strict=True)
            noise_sum = noise_sum + sum(square([self.state[p]["gradient"] - gradient]) for p, gradient in pairs)
        a = self._momentum(noise_sum)
        direction, floor = [self.state[p]["direction"] for p in known], options["momentum_floor"]
        floored = [a.clamp(min=floor).to(d.dtype) for d in direction] if isinstance(a, Tensor) else max(floor, a)
        update_direction(direction, [gradients[p] for p in known], shift, floored)
        # What the next step needs of this point. A parameter that is new starts with d_t = g_t.
        for p in parameters:
            if p not in at_previous:
                self.state[p]["previous"] = p.detach().clone(memory_format=torch.preserve_format)
                self.state[p]["direction"] = gradients[p].clone(memory_format=torch.preserve_format)
            if self._looks_back():
                self.state[p]["gradient"] = gradients[p].clone(memory_format=torch.preserve_format)
        if not self._looks_back():
            noise_sum = noise_sum + self._noise(square([gradients[p] for p in parameters]))
        self._check_sum("noise_sum", noise_sum)
        a = self._momentum(noise_sum)
        squared_direction = square([self.state[p]["direction"] for p in parameters])
        direction_sum = sums["direction_sum"] + self._direction_weight(squared_direction, a)
        self._check_sum("direction_sum", direction_sum)
        return noise_sum, direction_sum, self._step_size(noise_sum, direction_sum, a)

    def _step_global(self, gradients: dict[Tensor, Tensor], at_previous: dict[Tensor, Tensor]) -> None:
        noise_sum, direction_sum, step_size = self._advance([*gradients], gradients, at_previous, self.param_groups[0])
        self._check_step_size(step_size != 0.0, bool(step_size <= 1e30), gradients)  # Times lr it fits in float32.
        for group in self.param_groups:
            group["noise_sum"], group["direction_sum"] = noise_sum, direction_sum
        for signed_lr, moving in self._decayed(gradients):
            for p in moving:
                p.add_(self.state[p]["direction"], alpha=signed_lr * step_size)

    def _step_per_coordinate(self, gradients: dict[Tensor, Tensor], at_previous: dict[Tensor, Tensor]) -> None:
        found = {}
        for p in gradients:
            zeros = dict.fromkeys(SUMS, _squares([torch.zeros_like(p)]))
            found[p] = self._advance([p], gradients, at_previous, zeros | self.state.get(p, {}))
        step_sizes = {p: step_size.to(p.dtype) for p, (_, _, step_size) in found.items()}
        moves = any(bool(size.any()) for size in step_sizes.values())
        self._check_step_size(moves, all(bool(size.isfinite().all()) for size in step_sizes.values()), gradients)
        # Only now that no sum of any parameter has overflowed.
        for p, (noise_sum, direction_sum, _) in found.items():
            self.state[p]["noise_sum"], self.state[p]["direction_sum"] = noise_sum, direction_sum
        for signed_lr, moving in self._decayed(gradients):
            for p in moving:
                p.addcmul_(step_sizes[p], self.state[p]["direction"], value=signed_lr)

    def _check_sum(self, name: str, value: Number) -> None:
        if not (value.isfinite().all() if isinstance(value, Tensor) else math.isfinite(value)):
            self._start_anew(f"{name} overflows, the sum of squares of {SUMS[name]}", "down or skip the sample")

    def _check_step_size(self, moves: bool, fits: bool, parameters: Iterable[Tensor]) -> None:
        if not fits:
            self._start_anew("the step size overflows, by an extreme constant or tiny gradients", "up")
        if not moves and any(bool(self.state[p]["direction"].any()) for p in parameters):
            self._start_anew("the step size is 0, by an underflow of squares or an extreme constant", "up")

    def _start_anew(self, cause: str, remedy: str) -> NoReturn:
        """Raise what shows only after ``d`` has been written: without the point, the recursion starts anew."""
        for state in self.state.values():
            for key in POINT:
                state.pop(key, None)
        raise ValueError(
            f"{self.algorithm}: {cause}; parameters and sums were left as they were and the recursion starts anew "
            f"from the next gradient. Scale the loss {remedy}; if every step fails, make a new optimizer for the "
            "scaled loss, since its sums start from 0"
        )

    def _decayed(self, gradients: dict[Tensor, Tensor]) -> Iterator[tuple[float, list[Tensor]]]:
        """Each group's ``lr``, negative to descend, and the parameters that move, after decoupled weight decay."""
        for group in self.param_groups:
            lr, moving = float(group["lr"]), [p for p in group["params"] if p in gradients]
            for p in moving if group["weight_decay"] else ():
                p.mul_(1.0 - lr * group["weight_decay"])
            yield lr if group["maximize"] else -lr, moving

    @property
    def momentum(self) -> float:
        """``a``, floored, as it stands after the last step; 1 before the first. Global form only."""
        options = self._global_options("momentum")
        return float(max(options["momentum_floor"], self._momentum(float(options["noise_sum"]))))

    @property
    def step_size(self) -> float:
        """``eta_t`` of the last step, without ``lr``. Global form only."""
        options = self._global_options("step_size")
        noise_sum = float(options["noise_sum"])
        return float(self._step_size(noise_sum, float(options["direction_sum"]), self._momentum(noise_sum)))

    def _global_options(self, name: str) -> dict[str, Any]:
        if self.param_groups[0]["per_coordinate"]:
            raise ValueError(f"{self.algorithm}: {name} is one number a coordinate when per_coordinate is True")
        return self.param_groups[0]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may set ``lr``, ``weight_decay`` and ``maximize`` for itself.

        The first direction of a parameter that joins later is its gradient, which the global sums count from then on.

        Raises:
            ValueError: If an option is out of range, or belongs to the whole optimiser and differs.
            TypeError: If a parameter is complex.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        shared = self.param_groups[0] if self.param_groups else self.defaults
        group = {**{key: self.defaults[key] for key in GROUP_OPTIONS}, **param_group}
        for key in self.defaults:
            if key not in GROUP_OPTIONS and group.setdefault(key, shared[key]) != shared[key]:
                raise ValueError(
                    f"{key} belongs to the whole optimizer: a group asks for {group[key]!r} where "
                    f"{shared[key]!r} is set; give it to the constructor"
                )
        nonnegative("lr", group["lr"], most=1e6)
        nonnegative("weight_decay", group["weight_decay"])
        params = group["params"]
        group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for p in group["params"]:
            tensor = p[1] if isinstance(p, tuple) else p
            if isinstance(tensor, Tensor) and tensor.is_complex():
                raise TypeError(f"a {tensor.dtype} parameter is not supported; optimise torch.view_as_real of it")
        super().add_param_group(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned; the next steps equal those of the optimiser that saved it.

        Raises:
            ValueError: If it was saved by another optimiser, or for parameters of other shapes.
        """
        groups = state_dict["param_groups"]
        for group in groups:
            if (saved_by := group.get("algorithm", "another optimizer")) != self.algorithm:
                raise ValueError(f"state_dict was saved by {saved_by}, not {self.algorithm}")
        parameters = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in groups for index in group["params"]]
        saved = {p: state_dict["state"].get(i, {}) for i, p in zip(indices, parameters, strict=False)}
        for p, state in saved.items():
            for key, value in state.items():
                if value.shape != p.shape:
                    raise ValueError(
                        f"state_dict holds {key} of shape {tuple(value.shape)} for a parameter of shape "
                        f"{tuple(p.shape)}; it was saved for another model or order of parameters"
                    )
        super().load_state_dict(state_dict)
        for p, state in saved.items():
            for key in state:
                # torch shares the tensors with `state_dict`, and casts sums to the parameter's dtype.
                value = state[key].to(p.device) if key in SUMS else self.state[p][key]
                self.state[p][key] = value.clone(memory_format=torch.preserve_format)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch adds this default of its own, which no group of ours has.
        self.defaults.pop("differentiable", None)


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Of each coordinate of the one tensor, for a sum of them: many small ones stand still in half precision."""
    return tensors[0].to(torch.promote_types(tensors[0].dtype, torch.float32)).square()
