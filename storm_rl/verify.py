r"""How far a perturbed observation can move what a trained policy does: bounds that hold for every perturbation.

An observation :math:`x` may be off by :math:`\epsilon` times a unit in each of its entries. :func:`certify` bounds what
that does to the policy's deterministic action, :func:`largest_radius` finds the :math:`\epsilon` up to which a choice
provably stays, and :func:`attack` looks for the perturbation that does most, by projected gradient ascent. What is
certified is at most what is true, and what an attack finds at least.

The bound is the Lagrangian relaxation of Dvijotham, Stanforth, Gowal, Mann, Kohli ("A dual approach to scalable
verification of deep networks", UAI 2018, arXiv 1803.06567). For a network :math:`z_k = W_k \sigma(z_{k-1}) + b_k` on
:math:`K` layers, whose hidden :math:`z_k` are known to lie in :math:`[l_k, u_k]`, and any :math:`\mu_1, \ldots,
\mu_{K-1}`, with :math:`\mu_K = c` and :math:`w_k = W_{k+1}^\top \mu_{k+1}`,

.. math::
    \max_x c^\top z_K \le \max_x \mu_1^\top W_1 x
    + \sum_{k=1}^{K-1} \sum_i \max_{l_{k,i} \le z \le u_{k,i}} \bigl( w_{k,i} \sigma(z) - \mu_{k,i} z \bigr)
    + \sum_{k=1}^{K} \mu_k^\top b_k.

Each maximum has a closed form. The paper has multipliers :math:`\lambda_k` of :math:`h_k = \sigma(z_k)` as well; for
any :math:`\mu` the best are :math:`\lambda_k = w_k`, which stand here. The bound is minimised over :math:`\mu` by
gradient steps, and holds wherever they stop, up to rounding.

Nothing else of the package imports this module.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from storm_rl.common.checks import check_integer, check_range
from storm_rl.common.policies import StandardisedActorCriticPolicy, StandardisedFeatures
from storm_rl.storm_plus_pg.numpy_actor_critic import mlp_from_modules

Observations = npt.NDArray[np.generic]
"""Raw, ``(n, ...)``, as ``model.predict`` takes them."""

N_STEPS = 100
# Of Adam on the multipliers, in units of the mean size of those that it starts from; falls to 0.
LEARNING_RATE = 0.1
# States of a batch: the multipliers of a layer's own bounds are (states, 2 units, units).
N_STATES = 64


class Certificate(NamedTuple):
    """What holds for every perturbation of each of ``n`` observations."""

    margins: npt.NDArray[np.float64] | None
    """Discrete actions: lower bounds of how far the chosen one's logit stays above all others', ``(n,)``."""
    deviations: npt.NDArray[np.float64] | None
    """Box actions: upper bounds of how far each mean moves, in the environment's units, ``(n, n_actions)``."""

    @property
    def certified(self) -> npt.NDArray[np.bool_]:
        """Whether the chosen action stays, ``(n,)``; of Discrete actions only."""
        if self.margins is None:
            raise ValueError("Box actions always move a little: compare `deviations` with what you allow.")
        return self.margins > 0.0


def certify(
    model: BaseAlgorithm,
    observations: Observations,
    epsilon: float | npt.NDArray[np.float64],
    unit: npt.NDArray[np.float64] | None = None,
    n_steps: int = N_STEPS,
) -> Certificate:
    """Bounds of what perturbations of up to ``epsilon`` times ``unit`` in each entry do to deterministic actions.

    Args:
        model: An algorithm with a fully connected ``ActorCriticPolicy`` (tanh or ReLU): this package's, SB3's PPO and
            A2C. What a ``VecNormalize`` around its environment does to observations is a part of the policy.
        observations: Raw, ``(n, *shape)``, of a Box space that is no image.
        epsilon: At least 0; one number, or one for each observation, ``(n,)``.
        unit: Of each entry, ``(*shape)``. None: the standard deviation by which the policy or ``VecNormalize``
            standardises it, and 1 without either.
        n_steps: Gradient steps of each bound. 0: where they start, from the slopes of the activations' chords.

    Raises:
        TypeError: Another kind of policy, observation or action.
        ValueError: An argument outside its range.
    """
    problem = _Problem(model, observations, unit)
    check_integer("n_steps", n_steps, 0)
    radius = _radii(epsilon, problem.size)
    objectives = problem.objectives()
    parts = []
    for part in torch.split(torch.arange(problem.size), N_STATES):
        low, high = problem.box(radius, part)
        parts.append(problem.network.upper_bounds(low, high, objectives[part], n_steps))
    return problem.certificate(torch.cat(parts))


def largest_radius(
    model: BaseAlgorithm,
    observations: Observations,
    largest: float = 1.0,
    unit: npt.NDArray[np.float64] | None = None,
    n_steps: int = N_STEPS,
    n_bisections: int = 10,
) -> npt.NDArray[np.float64]:
    """The largest ``epsilon`` found up to which each observation's choice provably stays, ``(n,)``.

    By bisection up to ``largest``, in steps of ``largest / 2**n_bisections``; Discrete actions only. Other arguments
    are those of :func:`certify`.
    """
    check_range("largest", largest, 0.0, low_included=False)
    check_integer("n_bisections", n_bisections, 1)
    low, high = np.zeros(len(observations)), np.full(len(observations), float(largest))
    low = np.where(certify(model, observations, high, unit, n_steps).certified, high, low)
    for _ in range(n_bisections):
        middle = (low + high) / 2.0
        stays = certify(model, observations, middle, unit, n_steps).certified
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    return low


def attack(
    model: BaseAlgorithm,
    observations: Observations,
    epsilon: float | npt.NDArray[np.float64],
    unit: npt.NDArray[np.float64] | None = None,
    n_steps: int = 40,
) -> Certificate:
    """As :func:`certify`, but what was found by projected gradient ascent (Madry et al. 2018, arXiv 1706.06083).

    Margins are those of the worst perturbation found, and so at least the certified ones; deviations at most. Ascent
    starts in the observation itself, for each other action, or mean and direction, by itself.
    """
    problem = _Problem(model, observations, unit)
    check_integer("n_steps", n_steps, 1)
    objectives, radius = problem.objectives(), _radii(epsilon, problem.size)
    low, high = (bound[:, None] for bound in problem.box(radius, torch.arange(problem.size)))
    inputs = problem.inputs[:, None].expand(-1, objectives.shape[1], -1).clone()
    best = torch.full(objectives.shape[:2], -torch.inf, dtype=torch.float64)
    for step in range(n_steps + 1):
        inputs.requires_grad_()
        gains = (problem.network(inputs) * objectives).sum(dim=2)
        (gradient,) = torch.autograd.grad(gains.sum(), inputs)
        best = torch.maximum(best, gains.detach())
        move = (high - low) * gradient.sign() / (2.0 if step == 0 else 10.0)
        inputs = torch.minimum(torch.maximum(inputs.detach() + move, low), high)
    return problem.certificate(best)


class BoundedNetwork:
    """A fully connected network in double precision, and bounds of it over boxes of inputs.

    Args:
        weights: Weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer, one after the other.
        activations: ``nn.Tanh``, ``nn.ReLU`` or ``nn.Identity`` after each layer but the last.
    """

    def __init__(self, weights: Sequence[Tensor], activations: Sequence[type[nn.Module]]) -> None:
        self.weights = [weight.double() for weight in weights[::2]]
        self.biases = [bias.double() for bias in weights[1::2]]
        self.activations = list(activations)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(..., n_out)`` of ``inputs``, ``(..., n_in)``."""
        values = nn.functional.linear(inputs, self.weights[0], self.biases[0])
        for activation, weight, bias in zip(self.activations, self.weights[1:], self.biases[1:], strict=True):
            values = nn.functional.linear(_activated(activation, values), weight, bias)
        return values

    def upper_bounds(self, low: Tensor, high: Tensor, objectives: Tensor, n_steps: int = N_STEPS) -> Tensor:
        """Upper bounds ``(n, m)`` of ``objectives``, ``(n, m, n_out)``, times the outputs, over ``n`` boxes.

        The bounds of hidden layers are those of intervals, made tighter by the same relaxation of the layers below.
        """
        hidden: list[tuple[Tensor, Tensor]] = []
        for depth in range(1, len(self.weights)):
            lower, upper = self._interval(low, high, hidden)
            if hidden and n_steps:
                eye = torch.eye(lower.shape[1], dtype=lower.dtype)
                both = torch.cat([eye, -eye]).expand(len(low), -1, -1)
                above, below = self._dual(depth, low, high, hidden, both, n_steps).chunk(2, dim=1)
                lower, upper = torch.maximum(lower, -below), torch.minimum(upper, above)
            hidden.append((lower, upper))
        return self._dual(len(self.weights), low, high, hidden, objectives, n_steps)

    def _interval(self, low: Tensor, high: Tensor, hidden: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Bounds of the layer after the ``hidden`` ones, from those of the layer before it."""
        depth = len(hidden)
        if hidden:
            # Activations never fall.
            low, high = (_activated(self.activations[depth - 1], bound) for bound in hidden[-1])
        weight, bias = self.weights[depth], self.biases[depth]
        middle, radius = nn.functional.linear((low + high) / 2.0, weight, bias), (high - low) / 2.0 @ weight.abs().T
        return middle - radius, middle + radius

    def _dual(
        self,
        depth: int,
        low: Tensor,
        high: Tensor,
        hidden: list[tuple[Tensor, Tensor]],
        objectives: Tensor,
        n_steps: int,
    ) -> Tensor:
        """The relaxation of the first ``depth`` layers, the best over ``n_steps`` steps; ``(n, m)``."""
        multipliers = [objectives]
        for index in reversed(range(depth - 1)):
            lower, upper = hidden[index]
            chord = _activated(self.activations[index], upper) - _activated(self.activations[index], lower)
            slopes = chord / (upper - lower).clamp(min=1e-12)
            multipliers.insert(0, multipliers[0] @ self.weights[index + 1] * slopes[:, None])
        free = [multiplier.clone().requires_grad_() for multiplier in multipliers[:-1]]

        def bound() -> Tensor:
            every = [*free, objectives]
            total = sum(multiplier @ bias for multiplier, bias in zip(every, self.biases, strict=False))
            reach = every[0] @ self.weights[0]
            total = total + (reach * ((low + high) / 2.0)[:, None]).sum(dim=2)
            total = total + (reach.abs() * ((high - low) / 2.0)[:, None]).sum(dim=2)
            for index, multiplier in enumerate(free):
                slopes = every[index + 1] @ self.weights[index + 1]
                total = total + _largest(self.activations[index], slopes, multiplier, *hidden[index]).sum(dim=2)
            assert isinstance(total, Tensor)
            return total

        best = bound().detach()
        if not free or not n_steps:
            return best
        # Each state and objective is a problem of its own; what Adam does in one does not depend on the others.
        rates = [LEARNING_RATE * max(float(each.detach().abs().mean()), 1e-12) for each in free]
        groups = [{"params": [each], "lr": rate} for each, rate in zip(free, rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, n_steps)
        for _ in range(n_steps):
            optimizer.zero_grad()
            found = bound()
            best = torch.minimum(best, found.detach())
            found.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return torch.minimum(best, bound().detach())


def _activated(activation: type[nn.Module], values: Tensor) -> Tensor:
    if activation is nn.Tanh:
        return values.tanh()
    return values.relu() if activation is nn.ReLU else values


def _largest(activation: type[nn.Module], slopes: Tensor, multiplier: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``max(slopes * sigma(z) - multiplier * z)`` over ``lower <= z <= upper``, with its gradient in the first two."""
    lower, upper = lower[:, None].expand_as(slopes), upper[:, None].expand_as(slopes)
    places = [lower, upper]
    if activation is nn.ReLU:
        places.append(torch.zeros_like(slopes))
    elif activation is nn.Tanh:
        with torch.no_grad():
            # Where the derivative 1 - tanh^2 is the ratio of the two; at most two places.
            height = (1.0 - multiplier / torch.where(slopes == 0.0, 1.0, slopes)).clamp(0.0, 1.0 - 1e-12).sqrt()
            places += [height.atanh(), -height.atanh()]
    values = []
    for place in places:
        inside = torch.minimum(torch.maximum(place, lower), upper)
        values.append(slopes * _activated(activation, inside) - multiplier * inside)
    return torch.stack(values).amax(dim=0)


class _Problem:
    """A model's network, its inputs at the observations, and what is asked of its outputs."""

    def __init__(self, model: BaseAlgorithm, observations: Observations, unit: npt.NDArray[np.float64] | None) -> None:
        policy, space = model.policy, model.observation_space
        if not isinstance(policy, ActorCriticPolicy):
            raise TypeError(f"expected an algorithm with an ActorCriticPolicy, got {type(policy).__name__}.")
        if not isinstance(space, spaces.Box) or is_image_space(space, check_channels=False):
            raise TypeError(f"observations of a Box space that is no image can be perturbed, got {space}.")
        if not isinstance(model.action_space, (spaces.Discrete, spaces.Box)) or policy.squash_output:
            raise TypeError(f"actions must be Discrete, or Box without squash_output, got {model.action_space}.")
        extractor = policy.pi_features_extractor
        inner = extractor.extractor if isinstance(extractor, StandardisedFeatures) else extractor
        network = mlp_from_modules(policy.mlp_extractor.policy_net, policy.action_net)
        if type(inner) is not FlattenExtractor or network is None:
            raise TypeError("the policy must be linear layers with tanh or ReLU on flat observations, on the CPU.")
        self.model, self.policy, self.extractor = model, policy, extractor
        self.network = BoundedNetwork([*map(torch.tensor, network.arrays)], network.activations[:-1])
        self.discrete = isinstance(model.action_space, spaces.Discrete)
        self.observations = np.asarray(observations, dtype=np.float64)
        if self.observations.shape[1:] != space.shape or not np.isfinite(self.observations).all():
            raise ValueError(f"observations must be finite and (n, {space.shape}), got {self.observations.shape}.")
        self.size = len(self.observations)
        self.unit = self._own_unit() if unit is None else np.asarray(unit, dtype=np.float64)
        if self.unit.shape != space.shape or not (np.isfinite(self.unit) & (self.unit >= 0.0)).all():
            raise ValueError(f"unit must be finite, at least 0 and of shape {space.shape}, got {unit!r}.")
        self.inputs = self._features(self.observations)
        self.action_unit = torch.ones(())
        if isinstance(policy, StandardisedActorCriticPolicy) and not self.discrete:
            self.action_unit = policy.action_unit.double()

    def _own_unit(self) -> npt.NDArray[np.float64]:
        unit = np.ones(self.model.observation_space.shape or ())
        if isinstance(self.extractor, StandardisedFeatures):
            (running,) = self.extractor.statistics.running.values()
            unit = unit * np.asarray(running.std, dtype=np.float64)
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None and normalizer.norm_obs:
            statistics = normalizer.obs_rms
            assert not isinstance(statistics, dict)
            unit = unit * np.sqrt(statistics.var + normalizer.epsilon)
        return unit

    @torch.no_grad()
    def _features(self, observations: npt.NDArray[np.float64]) -> Tensor:
        """What the network sees; no entry falls as an observation's grows, so that boxes become boxes."""
        normalizer = self.model.get_vec_normalize_env()
        normalised: Any = observations if normalizer is None else normalizer.normalize_obs(observations)
        seen = BaseModel.extract_features(self.policy, torch.as_tensor(normalised), self.extractor)
        return seen.double()

    def box(self, radius: npt.NDArray[np.float64], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest inputs around the observations of ``rows``."""
        index = rows.numpy()  # Numpy takes a tensor of one number for a number.
        reach = radius.reshape(-1, *[1] * self.unit.ndim)[index] * self.unit
        observations = self.observations[index]
        return self._features(observations - reach), self._features(observations + reach)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Logits, or means in the policy's units, ``(n, n_out)``."""
        return self.network(self.inputs)

    def objectives(self) -> Tensor:
        """What may not grow: every other logit less the chosen one; each mean, and its negative. ``(n, m, n_out)``."""
        outputs = self.outputs()
        eye = torch.eye(outputs.shape[1], dtype=outputs.dtype)
        if not self.discrete:
            return torch.cat([eye, -eye]).expand(self.size, -1, -1)
        chosen = outputs.argmax(dim=1)
        others = torch.stack([torch.cat([eye[:choice], eye[choice + 1 :]]) for choice in chosen])
        return others - eye[chosen][:, None]

    def certificate(self, largest: Tensor) -> Certificate:
        """What follows from the largest values of :meth:`objectives`, ``(n, m)``, bounded or found."""
        if self.discrete:
            return Certificate(-largest.amax(dim=1).numpy(), None)
        centre = (self.objectives() * self.outputs()[:, None]).sum(dim=2)
        up, down = (largest - centre).clamp(min=0.0).chunk(2, dim=1)
        return Certificate(None, (torch.maximum(up, down) * self.action_unit).numpy())


def _radii(epsilon: float | npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    radii = np.asarray(epsilon, dtype=np.float64)
    if radii.shape not in ((), (size,)) or not (np.isfinite(radii) & (radii >= 0.0)).all():
        raise ValueError(f"epsilon must be finite, at least 0, one number or {size} of them, got {epsilon}.")
    return np.broadcast_to(radii, (size,))
