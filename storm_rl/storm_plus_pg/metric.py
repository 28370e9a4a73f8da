"""The metric in which a direction is measured and stepped along: Euclidean, or the policy's Fisher matrix."""

from typing import Any, Protocol

from torch import Tensor

from storm_rl.common.observations import ObservationBatch, concatenate, subsample
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.gradients.fisher import conjugate_gradient
from storm_rl.storm_plus_pg.actor import actor_on_states


class Metric(Protocol):
    """What the agent needs of a metric ``M``: states to measure it on, and ``M^{-1} d``."""

    def remember(self, observations: ObservationBatch) -> None:
        """Take the states of a new rollout into the metric."""

    def inverse_product(self, policy: StandardisedActorCriticPolicy, direction: Tensor) -> Tensor:
        """``M^{-1} d`` at the policy's current parameters, flat."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as tensors."""

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore what :meth:`state_dict` gave."""


class EuclideanMetric:
    """``M = I``: STORM+ as in the paper."""

    def remember(self, observations: ObservationBatch) -> None:
        """Nothing to remember."""

    def inverse_product(self, policy: StandardisedActorCriticPolicy, direction: Tensor) -> Tensor:
        """``d`` itself."""
        return direction

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Nothing to restore."""


class FisherMetric:
    r""":math:`M = F + \lambda I`, with the Fisher matrix on states of the last rollouts.

    The metric must cover what :math:`d` remembers: with states of the newest rollout only, components of
    :math:`d` that come from earlier ones are amplified by :math:`1 / \lambda`.

    Args:
        damping: :math:`\lambda`.
        n_iterations: Conjugate-gradient iterations of one inverse product.
        n_rollouts: Number of recent rollouts whose states are kept.
        max_states: Number of states kept in all, an equal share of each rollout. Memory is bounded by this many
            observations.
    """

    def __init__(self, damping: float, n_iterations: int, n_rollouts: int, max_states: int) -> None:
        self.damping = damping
        self.n_iterations = n_iterations
        self.n_rollouts = n_rollouts
        self.max_states = max_states
        self.rollouts: list[ObservationBatch] = []

    def remember(self, observations: ObservationBatch) -> None:
        """Add a rollout's states; drop the oldest rollout and thin out the others to an equal share."""
        self.rollouts = [*self.rollouts, observations][-self.n_rollouts :]
        share = self.max_states // len(self.rollouts)
        self.rollouts = [subsample(rollout, share) for rollout in self.rollouts]

    def inverse_product(self, policy: StandardisedActorCriticPolicy, direction: Tensor) -> Tensor:
        r""":math:`(F + \lambda I)^{-1} d` by conjugate gradients at the policy's current parameters."""
        product = actor_on_states(policy, concatenate(self.rollouts)).fisher_product()
        return conjugate_gradient(lambda vector: product(vector) + self.damping * vector, direction, self.n_iterations)

    def state_dict(self) -> dict[str, Any]:
        """The remembered states."""
        return {"rollouts": list(self.rollouts)}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore the remembered states."""
        self.rollouts = list(state["rollouts"])
