r"""The metric in which a direction is measured and stepped along: the policy's Fisher matrix, damped."""

from collections.abc import Callable, Sequence

import torch
from stable_baselines3.common.distributions import Distribution, kl_divergence
from torch import Tensor

from storm_rl.common.checks import PlainState
from storm_rl.common.policies import ObservationBatch, batch_size, concatenate, select

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix as its product with a flat vector."""


class FisherMetric(PlainState):
    r""":math:`M = F + \lambda I`, with the Fisher matrix on states of the last rollouts.

    The metric must cover what :math:`d` remembers: with states of the newest rollout only, components of
    :math:`d` that come from earlier ones are amplified by :math:`1 / \lambda`.

    Args:
        damping: :math:`\lambda`.
        max_steps: Conjugate-gradient iterations of one inverse product.
        n_rollouts: Number of recent rollouts whose states are kept.
        max_states: Number of states kept in all, an equal share of each rollout. Memory is bounded by this many
            observations.
    """

    state_names = ("rollouts",)

    def __init__(self, damping: float, max_steps: int, n_rollouts: int, max_states: int) -> None:
        self.damping = damping
        self.max_steps = max_steps
        self.n_rollouts = n_rollouts
        self.max_states = max_states
        self.rollouts: list[ObservationBatch] = []

    def remember(self, observations: ObservationBatch) -> None:
        """Add a rollout's states; drop the oldest rollout and thin out the others to an equal share."""
        self.rollouts = [*self.rollouts, observations][-self.n_rollouts :]
        share = self.max_states // len(self.rollouts)
        for index, rollout in enumerate(self.rollouts):
            if (size := batch_size(rollout)) > share:
                self.rollouts[index] = select(rollout, torch.randperm(size)[:share])

    @property
    def states(self) -> ObservationBatch:
        """The states that the Fisher matrix is averaged over."""
        return concatenate(self.rollouts)

    def inverse_product(self, fisher_product: Product, direction: Tensor) -> Tensor:
        r""":math:`(F + \lambda I)^{-1} d` by conjugate gradients."""
        return conjugate_gradient(lambda v: fisher_product(v) + self.damping * v, direction, self.max_steps)


def mean_kl(old: Distribution, new: Distribution) -> Tensor:
    """Mean over states of KL(old || new), in nats, summed over action dimensions; a scalar."""
    divergence = kl_divergence(old, new)
    return divergence.reshape(divergence.shape[0], -1).sum(dim=1).mean()


def fisher_vector_product(kl: Tensor, parameters: Sequence[Tensor]) -> Product:
    r"""The map :math:`v \mapsto F v` for the Fisher matrix of a policy.

    The Hessian of :math:`KL(\pi_{\theta_0} || \pi_\theta)` in :math:`\theta`, at :math:`\theta = \theta_0`, is the
    Fisher matrix (Schulman et al., "Trust Region Policy Optimization", 2015, appendix C), so one differentiation
    of the KL's gradient along :math:`v` gives the product. ``kl`` is a scalar with graph, taken at that point.
    """
    gradients = torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True)
    flat_gradient = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def product(vector: Tensor) -> Tensor:
        products = torch.autograd.grad(
            flat_gradient, parameters, grad_outputs=vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in products])

    return product


def conjugate_gradient(product: Product, target: Tensor, max_steps: int, tolerance: float = 1e-10) -> Tensor:
    r"""Solve ``A x = b`` for a symmetric positive definite ``A`` and ``b`` the flat ``target``.

    Hestenes and Stiefel, 1952; at most ``max_steps`` products, until ``||b - A x||^2 <= tolerance * ||b||^2``. Stopped
    early, the iterate still satisfies :math:`b^T x > 0`, so that it stays a direction of ascent for ``b``.
    """
    solution = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    residual_square = residual.dot(residual)
    threshold = tolerance * residual_square
    for _ in range(max_steps):
        if residual_square <= threshold:
            break
        image = product(direction)
        step = residual_square / direction.dot(image)
        solution += step * direction
        residual -= step * image
        new_square = residual.dot(residual)
        direction = residual + (new_square / residual_square) * direction
        residual_square = new_square
    return solution
