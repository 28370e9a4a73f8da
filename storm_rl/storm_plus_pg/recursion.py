"""The recursion over policy gradients: what is remembered between two updates, and how strongly."""

import itertools
from typing import ClassVar, NamedTuple, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parameters_to_vector

from storm_rl.common.checks import PlainState, check_finite
from storm_rl.common.policies import ObservationBatch, StandardisedActorCriticPolicy

# Weight of the past in the running ratio of the direction's error to the gradient's noise: one rollout's estimate
# of the error is a small difference of large numbers.
ERROR_MEMORY = 0.8
# A measured momentum may be 0 for a while, and the sum behind the step size never forgets what it is divided by.
LEAST_DIVISOR = 0.1


class InputChange(NamedTuple):
    r"""How a linear layer makes up for another standardisation of its inputs, in a flat vector of parameters.

    With inputs :math:`(x - \mu) / \sigma` before and :math:`(x - \mu') / \sigma'` after, the layer's outputs stay with
    :math:`W' = W \operatorname{diag}(\sigma' / \sigma)` and :math:`b' = b + W (\mu' - \mu) / \sigma`. A gradient in
    :math:`(W', b')` follows by the chain rule.
    """

    weight: slice
    bias: slice
    scale: Tensor
    """``sigma' / sigma``, ``(n_in,)``."""
    shift: Tensor
    """``(mu' - mu) / sigma``, ``(n_in,)``."""

    @classmethod
    def of_layer(cls, layer: nn.Linear, parameters: list[nn.Parameter], scale: Tensor, shift: Tensor) -> Self:
        """That of ``layer``, which is among ``parameters``."""
        places, end = {}, 0
        for parameter in parameters:
            end += parameter.numel()
            places[id(parameter)] = slice(end - parameter.numel(), end)
        return cls(places[id(layer.weight)], places[id(layer.bias)], scale, shift)

    def parameters(self, vector: Tensor) -> Tensor:
        """The parameters that make the same function of what stands in ``vector``."""
        changed, weight = vector.clone(), self._weight(vector)
        changed[self.bias] += (weight @ self.shift).to(vector.dtype)
        changed[self.weight] = (weight * self.scale).to(vector.dtype).flatten()
        return changed

    def gradient(self, vector: Tensor) -> Tensor:
        """The gradient in the changed parameters of what has the gradient ``vector`` in the former ones."""
        changed, weight = vector.clone(), self._weight(vector)
        weight = (weight - torch.outer(vector[self.bias].to(weight), self.shift)) / self.scale
        changed[self.weight] = weight.to(vector.dtype).flatten()
        return changed

    def _weight(self, vector: Tensor) -> Tensor:
        return vector[self.weight].reshape(-1, len(self.scale)).double()


def move_observation_statistics(
    policy: StandardisedActorCriticPolicy, observations: ObservationBatch
) -> InputChange | None:
    """Add ``observations`` to the policy's statistics, and let its first layers make up for it.

    Actor and critic stay the functions that they are, but where observations are clipped. Gives the change of the
    actor's parameters; None if there is none, or the policy has no linear layer right behind the statistics. While
    what reads the observations is frozen, in part or all, the statistics stay as well.
    """
    before, layers = _input_scaling(policy), _input_layers(policy)
    unknown = (policy.pi_features_extractor, policy.vf_features_extractor, policy.mlp_extractor)
    readers = nn.ModuleList(unknown if before is None or layers is None else layers)
    if not all(parameter.requires_grad for parameter in readers.parameters()):
        return None
    policy.update_observation_statistics(observations)
    after = _input_scaling(policy)
    if before is None or after is None or layers is None:
        return None
    scale, shift = after[1] / before[1], (after[0] - before[0]) / before[1]
    changes = []
    for layer, parameters in zip(layers, (policy.actor_parameters(), policy.critic_parameters()), strict=True):
        changes.append(InputChange.of_layer(layer, parameters, scale, shift))
        copy_to_parameters(changes[-1].parameters(parameters_to_vector(parameters).detach()), parameters)
    return changes[0]


@torch.no_grad()
def copy_to_parameters(vector: Tensor, parameters: list[nn.Parameter]) -> None:
    """As torch's ``vector_to_parameters``, but the parameters keep their place in memory: views of them follow."""
    for parameter, part in zip(parameters, torch.split(vector, [each.numel() for each in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def _input_scaling(policy: StandardisedActorCriticPolicy) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation by which each feature is standardised; None if none is, or the extractor is the user's."""
    inner, space = getattr(policy.pi_features_extractor, "extractor", None), policy.observation_space
    if type(inner) is FlattenExtractor:
        widths = {"": inner.features_dim}
    elif type(inner) is CombinedExtractor and isinstance(space, spaces.Dict):
        parts = inner.extractors.items()
        widths = {key: getattr(part, "features_dim", get_flattened_obs_dim(space[key])) for key, part in parts}
    else:
        return None
    pairs = [policy.observation_statistics.per_input(key, width) for key, width in widths.items()]
    mean, std = (torch.cat([part.to(policy.device) for part in parts]) for parts in zip(*pairs, strict=True))
    return mean, std


def _input_layers(policy: StandardisedActorCriticPolicy) -> tuple[nn.Linear, nn.Linear] | None:
    """The linear layers right behind the features, of actor and critic; None if there are others."""
    if type(policy.mlp_extractor) is not MlpExtractor:
        return None
    actor = next(policy.mlp_extractor.policy_net.children(), policy.action_net)
    critic = next(policy.mlp_extractor.value_net.children(), policy.value_head.linear)
    linear = [layer for layer in (actor, critic) if type(layer) is nn.Linear]
    # Pruning leaves something else in the place of a parameter.
    plain = len(linear) == 2 and all("weight" in layer._parameters and layer.bias is not None for layer in linear)
    return (linear[0], linear[1]) if plain else None


class PolicyRecursion(PlainState):
    r"""``d_t``, ``a_t`` and ``eta_t`` for flat policy gradients.

    .. math::
        d_t &= g_t + (1 - a_t) (d_{t-1} - g'_t), \qquad d_1 = g_1 \\
        \eta_t &= \Big( \sum_{i \le t} (1 - 1/n)^{t-i} d_i^T M_i^{-1} d_i / b_i \Big)^{-1/3}

    with :math:`g'_t` the gradient at the previous parameters on the data of :math:`g_t`, and :math:`M` the metric of
    the step, in which :math:`\eta_t` has no unit. The paper (see :class:`~storm_rl.optim.STORMPlus`) has
    :math:`M = I`, a schedule of :math:`a_t`, :math:`b_i = a_{i+1}`, and remembers all: its steps shrink for ever. Here
    :math:`a_t` is measured (:meth:`next_momentum`), so that the next one is not known when a step is taken, and
    :math:`b_i = \max(a_i, 0.1)`.

    Gradients come as those of ``k`` independent parts of the window of rollouts, ``(k, n)``; their mean is ``g_t``.

    Args:
        step_memory: ``n``, the updates that the sum in :math:`\eta_t` remembers. None: all.

    Attributes:
        direction: ``d_t`` of the last update; None before the first.
        previous_parameters: ``theta_t`` of the last update, flat.
        momentum: ``a_t`` of the last update; 1 before the first.
        rollout_weights: What each rollout of the last window weighs in ``direction``, oldest first.
    """

    state_names: ClassVar[tuple[str, ...]] = (
        *("direction", "previous_parameters", "momentum", "rollout_weights"),
        *("error_sums", "error_weight", "sum_weighted_directions"),
    )

    def __init__(self, step_memory: float | None = None) -> None:
        self.step_memory = step_memory
        self._parameters: list[nn.Parameter] = []
        self.direction: Tensor | None = None
        self.previous_parameters: Tensor | None = None
        self.momentum = 1.0
        self.rollout_weights: list[float] = []
        self.error_sums = [0.0, 0.0]
        self.error_weight = 0.0
        self.sum_weighted_directions = 0.0

    def restart(self) -> None:
        """Forget the direction, and keep what sets the step size."""
        self.direction, self.previous_parameters, self.rollout_weights = None, None, []

    def follow_parameters(self, parameters: list[nn.Parameter]) -> None:
        """Begin again where the actor's trainable parameters are others than at the last update."""
        known, former = self._parameters or parameters, self.previous_parameters
        size = sum(parameter.numel() for parameter in parameters)  # All that is known of those of a file.
        if [*map(id, known)] != [*map(id, parameters)] or (former is not None and len(former) != size):
            self.restart()
        self._parameters = parameters

    @property
    def needs_previous(self) -> bool:
        """Whether the next direction needs the gradient at the previous parameters."""
        return self.previous_parameters is not None

    def next_direction(
        self, parameters: Tensor, gradients: Tensor, gradients_at_previous: Tensor | None, n_rollouts: int = 1
    ) -> Tensor:
        """Set ``a_t`` and ``d_t``; give ``d_t``.

        Args:
            parameters: ``theta_t``, flat; the next update's previous ones.
            gradients: The parts of ``g_t``, ``(k, n)``.
            gradients_at_previous: Those of ``g'_t``; None where none are needed.
            n_rollouts: Rollouts, of equal sizes, in the window: all but the newest were there before.
        """
        gradient = gradients.mean(dim=0)
        # What the rollouts of this window weigh in the previous direction; a window that began afresh holds none.
        used = self.rollout_weights[-(n_rollouts - 1) :] if n_rollouts > 1 else []
        used = [0.0] * (n_rollouts - 1 - len(used)) + used + [0.0]
        self.momentum, direction = 1.0, gradient
        if self.direction is not None and gradients_at_previous is not None:
            self.momentum = self.next_momentum(parameters, gradients, gradients_at_previous, sum(used))
            direction = self._mixed(gradient, self.direction, gradients_at_previous.mean(dim=0))
        self.rollout_weights = [self.momentum / n_rollouts + (1.0 - self.momentum) * weight for weight in used]
        self.direction, self.previous_parameters = direction, parameters.clone()
        return direction

    def _mixed(self, gradient: Tensor, direction: Tensor, gradient_at_previous: Tensor) -> Tensor:
        return gradient + (1.0 - self.momentum) * (direction - gradient_at_previous)

    def next_step_size(self, direction_square: float) -> float:
        """``eta_t`` from ``d_t^T M_t^{-1} d_t``.

        Raises:
            ValueError: The sum is infinite: all steps from here on would be 0.
        """
        kept = 1.0 if self.step_memory is None else 1.0 - 1.0 / self.step_memory
        self.sum_weighted_directions = kept * self.sum_weighted_directions + direction_square / self._divisor()
        check_finite("the sum behind the step size", torch.tensor(self.sum_weighted_directions))
        # While all directions are exactly 0, so is the step.
        return self.sum_weighted_directions ** (-1.0 / 3.0) if self.sum_weighted_directions > 0.0 else 0.0

    def _divisor(self) -> float:
        return max(self.momentum, LEAST_DIVISOR)

    def next_momentum(self, parameters: Tensor, gradients: Tensor, at_previous: Tensor, used: float) -> float:
        r"""The ``a_t`` that minimises the expected squared error of ``d_t``; updates the running error ratio.

        Let :math:`e` be the error of :math:`d_{t-1}`, and :math:`V_g`, :math:`V_{g'}`, :math:`V_\Delta` the traces of
        the covariances of :math:`g_t`, :math:`g'_t` and :math:`\Delta = g_t - g'_t`, :math:`C` that of :math:`g_t`
        and :math:`\Delta`, all from the parts of the window. The error of :math:`d_t` is
        :math:`a n + (1-a)(e + \delta)` with the noises :math:`n` of :math:`g_t` and :math:`\delta` of :math:`\Delta`.
        The rollouts of the window already weigh :math:`\rho` (``used``) in :math:`d_{t-1}`, so :math:`e` and :math:`n`
        have a covariance as well, :math:`K = \rho V_g`, and the expected square is

        .. math::
            (1-a)^2 (E + V_\Delta) + a^2 V_g + 2 a (1-a) (C + K), \qquad
            a = \frac{E + V_\Delta - C - K}{E + V_\Delta + V_g - 2C - 2K}.

        :math:`\lVert g'_t - d_{t-1} \rVert^2 - (1 - 2\rho) V_{g'}` estimates :math:`E = \lVert e \rVert^2`. Its ratio
        to :math:`V_g` is the larger of that over all coordinates and that along the last step, and is averaged over
        updates. The step is long where the metric is flat, and an error there is lost among all coordinates.
        """
        assert self.direction is not None
        assert self.previous_parameters is not None
        difference = gradients - at_previous
        noise = covariance_of_mean(gradients, gradients)
        if noise <= 0.0:
            return 1.0
        step = normalize(parameters - self.previous_parameters, dim=0)
        ratios = [
            _error_ratio(self.direction, gradients, at_previous, used),
            _error_ratio(self.direction @ step[:, None], gradients @ step[:, None], at_previous @ step[:, None], used),
        ]
        # A weighted mean of the measured ratios, the first of which is its own mean: nothing is taken for 0 before it.
        self.error_sums = [ERROR_MEMORY * total + ratio for total, ratio in zip(self.error_sums, ratios, strict=True)]
        self.error_weight = ERROR_MEMORY * self.error_weight + 1.0
        drift = max(self.error_sums) / self.error_weight * noise + covariance_of_mean(difference, difference)
        cross = covariance_of_mean(gradients, difference) + used * noise
        denominator = drift + noise - 2.0 * cross
        momentum = (drift - cross) / denominator if denominator > 0.0 else 1.0
        return min(1.0, max(0.0, momentum))

    def follow_statistics(self, policy: StandardisedActorCriticPolicy, observations: ObservationBatch) -> None:
        """Call :func:`move_observation_statistics`, and follow the parameters.

        But for the first statistics: new networks are made for standardised observations, and become another policy by
        them. The recursion begins again there.
        """
        running = policy.observation_statistics.running.values() if policy.normalize_observations else ()
        if any(float(statistics.get_buffer("count")) == 0.0 for statistics in running):
            policy.update_observation_statistics(observations)
            self.restart()
            return
        # A batch normalisation's statistics have nothing to make up for them: d is then of a slightly other function.
        change = move_observation_statistics(policy, observations)
        if change is not None and self.direction is not None and self.previous_parameters is not None:
            self.direction = change.gradient(self.direction)
            self.previous_parameters = change.parameters(self.previous_parameters)


def _error_ratio(direction: Tensor, gradients: Tensor, gradients_at_previous: Tensor, used: float) -> float:
    """The squared error of ``direction`` in units of the noise of ``g_t``, as one update shows it."""
    noise = covariance_of_mean(gradients, gradients)
    noise_at_previous = covariance_of_mean(gradients_at_previous, gradients_at_previous)
    mismatch = float(torch.linalg.vector_norm(gradients_at_previous.mean(dim=0) - direction, dtype=torch.float64) ** 2)
    error = max(0.0, mismatch - (1.0 - 2.0 * used) * noise_at_previous)
    return error / noise if noise > 0.0 else 0.0


def covariance_of_mean(first: Tensor, second: Tensor) -> float:
    """Trace of the covariance of two means over ``k`` parts, ``(k, n)`` each; 0 for a single part."""
    parts, means, pairs = len(first), (first.mean(dim=0), second.mean(dim=0)), zip(first, second, strict=True)
    # Pair by pair: of a large network all would be most of what an update holds.
    total = sum(float((one - means[0]).mul_(other - means[1]).sum(dtype=torch.float64)) for one, other in pairs)
    return total / (parts * (parts - 1)) if parts > 1 else 0.0


def equal_parts(size: int, n_parts: int) -> list[slice]:
    """``n_parts`` slices of a range, of lengths that differ by at most 1."""
    bounds = [size * part // n_parts for part in range(n_parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]
