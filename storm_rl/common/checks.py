"""Checks: of constructor arguments, of what environments and policies give, and of each update, which can be undone."""

import copy
import functools
import math
import numbers
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from storm_rl.common.policies import map_observations

Algorithm = TypeVar("Algorithm", bound=Any)


def check_integer(name: str, value: Any, minimum: int, maximum: int = sys.maxsize) -> int:
    """``value`` as Python's int; ``TypeError`` if it is no number, ``ValueError`` if a fraction, too small or large."""
    right = f"an integer of at least {minimum}"
    _check_number(name, value, right)
    if not isinstance(value, numbers.Integral) or not minimum <= int(value) <= maximum:
        right += f", at most {maximum}" if value > maximum else ""
        raise ValueError(f"{name} must be {right}, got {value!r}.")
    return int(value)


def check_device(device: Any) -> None:
    """``ValueError`` unless torch, or SB3's "auto", knows the device."""
    try:
        get_device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto" or as torch names it ("cpu", "cuda:0"), got {device!r}.') from error


def check_range(name: str, value: Any, low: float, high: float = math.inf, low_included: bool = True) -> None:
    """``TypeError`` unless ``value`` is a number, ``ValueError`` unless from ``low`` to ``high``; NaN never is."""
    right = f"at least {low:g}" if low_included else f"greater than {low:g}"
    if high < math.inf:
        right = f"a number in {'[' if low_included else '('}{low:g}, {high:g}]"
    _check_number(name, value, right)
    if not (low <= value <= high if low_included else low < value <= high):
        raise ValueError(f"{name} must be {right}, got {value!r}.")


def check_learning_rate(name: str, value: Any) -> Any:
    """``value`` if it is a schedule, or as Python's float if it is a number in [0, 1e6].

    Otherwise ``TypeError``, or ``ValueError`` for a number out of range: a step of it may not fit in float32.
    """
    if not callable(value):
        check_range(f"{name} (or a schedule)", value, 0.0, 1e6)
        return float(value)
    try:
        float(value(1.0))
    except Exception as error:
        raise TypeError(f"{name} must be a number or a schedule; {value!r} gives no number for 1.0: {error}") from error
    return value


def check_buffer(buffer: Any, kwargs: Any, observation_space: spaces.Space[Any]) -> None:
    """Raise unless ``buffer`` is None or a class of rollout buffers for these observations, and ``kwargs`` a dict."""
    right = DictRolloutBuffer if isinstance(observation_space, spaces.Dict) else RolloutBuffer
    buffer = right if buffer is None else buffer
    if not (isinstance(buffer, type) and issubclass(buffer, right)):
        raise TypeError(f"rollout_buffer_class must be a subclass of {right.__name__} or None, got {buffer!r}.")
    if not isinstance(kwargs, dict):
        raise TypeError(f"rollout_buffer_kwargs must be a dict or None, got {kwargs!r}.")
    if buffer.compute_returns_and_advantage is not RolloutBuffer.compute_returns_and_advantage:
        raise ValueError(
            f"rollout_buffer_class {buffer.__name__} has its own compute_returns_and_advantage(), which is not "
            "called: change rewards in its add(), or in a callback's on_rollout_end()."
        )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _check_number(name: str, value: Any, right: str) -> None:
    # A bool is an integer to Python, and never meant as one here.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {right}, got {value!r}.")


def check_transition(
    observations: Any, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]], step: int
) -> None:
    """Refuse a vector step that cannot be learned from: ``ValueError`` names the environment and what it gave.

    Rewards and observations, terminal ones included, must be finite in float32, in which networks compute.
    """
    parts = [(0, *part) for part in _parts(rewards, "reward") + _parts(observations, "observation")]
    for index in np.flatnonzero(dones).tolist():
        if (terminal := infos[index].get("terminal_observation")) is not None:
            parts += [(index, key, batch[None]) for key, batch in _parts(terminal, "terminal observation")]
    for first, key, batch in parts:
        if (row := _first_bad_row(batch)) is not None:
            raise ValueError(
                f"environment {first + row} gave {key} {batch[row]} at env step {step}; it must be finite in float32. "
                "The policy and all statistics are as before this rollout."
            )


def _parts(observations: Any, name: str) -> list[tuple[str, NDArray[Any]]]:
    if isinstance(observations, dict):
        return [(f"{name} {key!r}", np.asarray(part)) for key, part in observations.items()]
    return [(name, np.asarray(observations))]


def _first_bad_row(batch: NDArray[Any]) -> int | None:
    """The first row that is not finite in float32; None if all are."""
    if batch.dtype.kind != "f":
        return None
    # As in `is_finite`.
    if batch.dtype == np.float32 and math.isfinite(batch.sum(dtype=np.float64)):
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(batch.astype(np.float32, copy=False)).reshape(len(batch), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def own_copy(observations: Any) -> Any:
    """A copy to keep, because a VecEnv may reuse its arrays; in C order as a loaded one, which sums depend on."""
    return map_observations(lambda part: np.array(part, order="C"), observations)


def check_policy_outputs(step: int, **outputs: Tensor) -> None:
    """``ValueError`` for NaN or infinite outputs of the policy: names the tensor, ``(n_envs, ...)``, and where."""
    for name, values in outputs.items():
        if values.is_floating_point() and not is_finite(values):
            finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
            raise ValueError(
                f"the policy gave NaN or infinite {name} for environment {int((~finite).nonzero()[0])} at env step "
                f"{step}: {not_finite(values)}. No action was taken; look at the policy's parameters."
            )


@contextmanager
def acting(policy: BasePolicy, step: int) -> Iterator[None]:
    """Say what is wrong where the policy's distribution cannot be sampled from, in place of torch's own error."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        name = not_finite_name(policy.state_dict())
        if name is None and not any(word in str(error) for word in ("nan", "NaN", "invalid values")):
            raise
        cause = f"its {name} is NaN or infinite" if name else "its action distribution is NaN or infinite"
        raise ValueError(f"the policy cannot act at env step {step}: {cause}. No action was taken.") from error


def is_finite(values: Tensor) -> bool:
    """Whether all entries are finite; a sum is only if all its terms are."""
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def check_finite(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` with the name and the number of NaN or infinite entries, if there are any."""
    if not is_finite(values):
        raise ValueError(
            f"{name} has {not_finite(values)} that are NaN or infinite. Look at the rewards' and observations' scale, "
            "and at train/std for a collapsed noise."
        )


def not_finite(values: Tensor) -> str:
    """How many entries are NaN or infinite, in words."""
    return f"{int((~torch.isfinite(values)).sum())} of {values.numel()} entries"


def not_finite_name(state: Any, name: str = "") -> str | None:
    """The dotted name of the first NaN or infinite number in nested dicts and lists; None if there is none."""
    if isinstance(state, Tensor):
        return name if state.is_floating_point() and not is_finite(state) else None
    if isinstance(state, float):
        return None if np.isfinite(state) else name
    entries = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, entry in entries:
        if (found := not_finite_name(entry, f"{name}.{key}" if name else str(key))) is not None:
            return found
    return None


class PlainState:
    """Base of what keeps tensors and plain Python between updates: named attributes, saved and loaded as they are.

    An update replaces their values and never writes into them, so that nothing need be copied.
    """

    state_names: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        """The attributes; ``torch.load`` reads them with ``weights_only=True``."""
        return {name: getattr(self, name) for name in self.state_names}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore what :meth:`state_dict` gave, ``ValueError`` where one is missing; ``strict`` is there for SB3."""
        if missing := set(self.state_names) - set(state):
            raise ValueError(f"not the state of a {type(self).__name__}: {sorted(missing)} missing in {sorted(state)}")
        for name in self.state_names:
            setattr(self, name, state[name])


def all_or_nothing(train: Callable[[Algorithm], None]) -> Callable[[Algorithm], None]:
    """Make an update a transaction: it is done and all of it is finite, or the model is as it was before.

    For an algorithm's ``train()``. Covers all that ``get_parameters()`` names: networks with their observation
    statistics, optimizers, the recursion and what it remembers. Also an interrupt in the middle undoes the update.

    Raises:
        ValueError: The update failed, or left NaN or infinite numbers; names the env step and the tensor.
    """

    @functools.wraps(train)
    def guarded(self: Algorithm) -> None:
        # A copy only of what an update writes in place: modules and optimizers; all else it replaces.
        before = {
            name: _copied(state) if isinstance(attrgetter(name)(self), (nn.Module, torch.optim.Optimizer)) else state
            for name, state in self.get_parameters().items()
        }
        n_updates = self._n_updates
        try:
            train(self)
            if (name := not_finite_name(self.get_parameters())) is not None:
                raise ValueError(f"{name} has become NaN or infinite.")
        except BaseException as error:
            self.set_parameters(before)
            self._n_updates = n_updates
            if isinstance(error, ValueError):
                raise ValueError(
                    f"the update after env step {self.num_timesteps} is undone, parameters are as before it: {error}"
                ) from error
            raise

    return guarded


def _copied(state: Any) -> Any:
    # deepcopy's bookkeeping costs several times the copying of a few dozen tensors.
    if isinstance(state, Tensor):
        return state.detach().clone()
    if type(state) in (dict, OrderedDict):
        return {key: _copied(entry) for key, entry in state.items()}
    return [_copied(entry) for entry in state] if type(state) is list else copy.copy(state)
