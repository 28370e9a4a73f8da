"""Variants of STORM+PG that switch parts off, for ablations, and the paper's STORM+ to the letter."""

from typing import Any, ClassVar, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from storm_rl.common.checks import check_integer, check_range
from storm_rl.common.importance_weights import check_mask, per_decision_weights, trajectory_weights
from storm_rl.optim.recursion import squared_norm, storm_plus_momentum
from storm_rl.storm_plus_pg.actor_critic import Actor
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActor
from storm_rl.storm_plus_pg.recursion import PolicyRecursion
from storm_rl.storm_plus_pg.rollouts import Transitions
from storm_rl.storm_plus_pg.storm_plus_pg import STORMPlusPG, Weigh

Momentum = Literal["measured", "storm+"] | float

PAPER: dict[str, Any] = {
    "momentum": "storm+",
    "step_memory": None,
    "metric": "euclidean",
    "target_kl": None,
    "reuse_rollouts": 1,
    "use_action_values": False,
}
"""Arguments of :class:`STORMPlusPGVariant` with which the actor's step is that of STORM+ in the paper."""


class STORMPlusPGVariant(STORMPlusPG):
    r"""STORM+PG with more arguments, whose defaults are what :class:`~storm_rl.STORMPlusPG` does.

    Args:
        policy: As of :class:`~storm_rl.STORMPlusPG`.
        env: Likewise.
        momentum: ``"measured"``; ``"storm+"`` for the paper's schedule; or a constant in (0, 1]; 1 switches the
            recursion off.
        step_memory: Updates that the sum behind STORM+'s step size remembers; None: all, as in the paper.
        step_kl: A number: every step has this quadratic KL in nats, in place of STORM+'s step size.
        corrected: False leaves the gradient difference :math:`d_{t-1} - g'_t` out, which is plain momentum,
            :math:`d_t = a_t g_t + (1 - a_t) d_{t-1}`.
        weights: Importance weights: ``"per_step"``, the ratio of each action, of low variance and biased;
            ``"per_decision"``, the product of the ratios up to it since its episode (or the window) began;
            ``"trajectory"``, the product over all of that stretch. Actions that the action values are taken of have one
            step each, and :math:`\beta` is measured with weights per step.
        metric: ``"fisher"`` (natural gradient) or ``"euclidean"`` (the paper), which has no KL to bound.
        fisher_rollouts: Number of recent rollouts whose states the Fisher matrix covers.
        fisher_states: Number of states kept for it in all.
        advantage_floor: Advantages are never divided by less than this share of the discounted return's running
            standard deviation. 0: plain standardisation.
        **kwargs: Arguments of :class:`~storm_rl.STORMPlusPG`.

    Raises:
        ValueError: An argument outside its range; a ``target_kl`` with the Euclidean metric.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        momentum: Momentum = "measured",
        step_memory: float | None = STORMPlusPG.step_memory,
        step_kl: float | None = None,
        corrected: bool = True,
        weights: Literal["per_step", "per_decision", "trajectory"] = "per_step",
        metric: Literal["fisher", "euclidean"] = "fisher",
        fisher_rollouts: int = STORMPlusPG.fisher_rollouts,
        fisher_states: int | None = STORMPlusPG.fisher_states,
        advantage_floor: float = STORMPlusPG.advantage_floor,
        **kwargs: Any,
    ) -> None:
        self.momentum = momentum
        self.step_memory = step_memory
        self.step_kl = step_kl
        self.corrected = corrected
        self.weights = weights
        self.metric = metric
        self.fisher_rollouts = fisher_rollouts
        self.fisher_states = fisher_states
        self.advantage_floor = advantage_floor
        super().__init__(policy, env, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not isinstance(self.momentum, str):
            check_range("momentum", self.momentum, 0.0, 1.0, low_included=False)
        check_range("advantage_floor", self.advantage_floor, 0.0, 1.0)
        if self.step_memory is not None:
            check_range("step_memory (None for all updates)", self.step_memory, 1.0)
        if self.step_kl is not None:
            check_range("step_kl (None for STORM+'s step size)", self.step_kl, 0.0, low_included=False)
        self.fisher_rollouts = check_integer("fisher_rollouts", self.fisher_rollouts, 1)
        if self.fisher_states is not None:
            self.fisher_states = check_integer("fisher_states", self.fisher_states, 1)
        self._make_recursion()  # Refuses an unknown momentum.
        if self.weights not in ("per_step", "per_decision", "trajectory"):
            raise ValueError(f'weights must be "per_step", "per_decision" or "trajectory", got {self.weights!r}.')
        if self.metric not in ("fisher", "euclidean"):
            raise ValueError(f'metric must be "fisher" or "euclidean", got {self.metric!r}.')
        if self.metric == "euclidean" and self.target_kl is not None:
            raise ValueError(
                f"target_kl={self.target_kl!r} bounds a step in the Fisher metric; with metric='euclidean' it must "
                "be None."
            )
        if self.fisher_states is not None and self.fisher_states < self.fisher_rollouts:
            raise ValueError(
                f"fisher_states must give each of fisher_rollouts={self.fisher_rollouts} rollouts at least one state, "
                f"got {self.fisher_states!r}."
            )

    def _make_recursion(self) -> PolicyRecursion:
        if self.momentum == "measured":
            return (PolicyRecursion if self.corrected else PlainMomentum)(self.step_memory)
        return (ScheduledMomentum if self.corrected else PlainScheduledMomentum)(self.momentum, self.step_memory)

    def _natural_direction(self, recent: Actor | NumpyActor, direction: Tensor) -> Tensor:
        return direction if self.metric == "euclidean" else super()._natural_direction(recent, direction)

    def _bounded(self, step_size: float, direction_square: float) -> float:
        if self.step_kl is None or direction_square <= 0.0:
            return super()._bounded(step_size, direction_square)
        self.logger.record("train/step_bound", 1)
        return float((2.0 * self.step_kl / direction_square) ** 0.5)

    def _weigh(self, actor: Actor | NumpyActor, batch: Transitions, parameters: Tensor | None) -> Weigh:
        if self.weights == "per_step":
            return super()._weigh(actor, batch, parameters)
        log_prob = actor.distribution(parameters).log_prob(batch.actions)
        per_decision = self.weights == "per_decision"
        ends = self._segment_ends(len(batch.advantages))
        weights = segment_weights(log_prob, batch.behaviour_log_prob, ends, per_decision, self.max_weight)
        # Products run over whole stretches of time, and parts are cut anywhere.
        return lambda log_prob, part: weights[part]

    def _segment_ends(self, size: int) -> Tensor:
        """Boolean, for each of the newest transitions: whether it is an episode's last, or its environment's."""
        window = self.window.newest_rollouts(size // self.window.newest.dones.numel())
        ends = torch.cat([rollout.dones for rollout in window.rollouts])
        ends[-1] = True
        return ends.T.reshape(-1)


class PlainMomentum(PolicyRecursion):
    """``d_t = a_t g_t + (1 - a_t) d_{t-1}``: the recursion with ``g_t`` in the place of ``g'_t``."""

    def _mixed(self, gradient: Tensor, direction: Tensor, gradient_at_previous: Tensor) -> Tensor:
        return super()._mixed(gradient, direction, gradient)


class ScheduledMomentum(PolicyRecursion):
    """The recursion with a momentum that is known beforehand, and with it every divisor ``b_i = a_{i+1}``.

    Args:
        rule: ``"storm+"``: the paper's schedule, ``a_{t+1} = (1 + sum ||g_i||^2)^(-2/3)``. A number in (0, 1]: constant
            (STORM-PG, Yuan et al. 2020); 1 forgets the past.
        step_memory: As of the base.

    Raises:
        ValueError: A number outside its range.
    """

    state_names: ClassVar[tuple[str, ...]] = (*PolicyRecursion.state_names, "sum_squared_gradients")

    def __init__(self, rule: Literal["storm+"] | float, step_memory: float | None = None) -> None:
        known = rule == "storm+" if isinstance(rule, str) else 0.0 < rule <= 1.0
        if not known:
            raise ValueError(f'momentum must be "measured", "storm+" or a number in (0, 1], got {rule!r}')
        super().__init__(step_memory)
        self.rule = rule
        self.sum_squared_gradients = 0.0

    @property
    def scheduled_momentum(self) -> float:
        """``a_{t+1}`` from the gradients seen so far; 1 before the first."""
        if isinstance(self.rule, str):
            return storm_plus_momentum(self.sum_squared_gradients)
        return float(self.rule) if self.direction is not None else 1.0

    @property
    def needs_previous(self) -> bool:
        """Not where the past is forgotten."""
        return super().needs_previous and self.scheduled_momentum < 1.0

    def next_direction(
        self, parameters: Tensor, gradients: Tensor, gradients_at_previous: Tensor | None, n_rollouts: int = 1
    ) -> Tensor:
        """As of the base, and the gradient is counted."""
        direction = super().next_direction(parameters, gradients, gradients_at_previous, n_rollouts)
        self.sum_squared_gradients += squared_norm([gradients.mean(dim=0)])
        return direction

    def next_momentum(self, parameters: Tensor, gradients: Tensor, gradients_at_previous: Tensor, used: float) -> float:
        """``a_t`` of the schedule."""
        return self.scheduled_momentum

    def _divisor(self) -> float:
        return self.scheduled_momentum


class PlainScheduledMomentum(PlainMomentum, ScheduledMomentum):
    """Both."""


def segment_weights(
    target_log_prob: Tensor,
    behaviour_log_prob: Tensor,
    segment_ends: Tensor,
    per_decision: bool,
    max_weight: float | None = None,
) -> Tensor:
    """Per-decision or per-trajectory weights of trajectories that lie one after the other.

    Args:
        target_log_prob: ``log pi(a|s)``, shape ``(n,)``, in order of time within each trajectory.
        behaviour_log_prob: ``log mu(a|s)``, the same shape.
        segment_ends: Boolean, the same shape: the last step of each trajectory. The last of all must be one.
        per_decision: The product up to each step; if false, that of the whole trajectory at each of its steps.
        max_weight: The largest weight; larger ones become it. None: no bound.

    Returns:
        One weight a step, shape ``(n,)``, detached.

    Raises:
        ValueError: As `per_decision_weights`; also if the last step ends no trajectory.
    """
    check_mask(segment_ends, target_log_prob)
    if not bool(segment_ends[-1]):
        raise ValueError("segment_ends must be true at the last step: every trajectory has an end")
    segment = segment_ends.cumsum(dim=0) - segment_ends.to(torch.long)
    lengths = torch.bincount(segment)
    step = torch.arange(len(segment), device=segment.device) - (lengths.cumsum(dim=0) - lengths)[segment]

    def padded(values: Tensor) -> Tensor:
        rows = values.new_zeros(len(lengths), int(lengths.max()))
        rows[segment, step] = values
        return rows

    target, behaviour = padded(target_log_prob.detach()), padded(behaviour_log_prob.detach())
    mask = padded(torch.ones_like(segment_ends))
    if per_decision:
        return per_decision_weights(target, behaviour, mask, max_weight)[segment, step]
    return trajectory_weights(target, behaviour, mask, max_weight)[segment]
