"""Scalars whose gradient is a policy-gradient estimate: advantages times log-probabilities.

``log_prob`` is padded, shape ``(n_episodes, n_steps)``; no gradient flows through the advantages.
"""

import torch
from torch import Tensor

from storm_rl.common.importance_weights import check_mask, masked
from storm_rl.episodic.returns import Baseline, gpomdp_advantages, reinforce_advantages
from storm_rl.storm_plus_pg.rollouts import generalised_advantages


def score_surrogate(log_prob: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """``(1/N) sum_i sum_k A_ik log_prob_ik`` over the N episodes, a scalar; no gradient through
    ``advantages``.

    Raises:
        ValueError: If shapes differ or the mask leaves nothing.
    """
    check_mask(mask, log_prob)
    check_mask(mask, advantages)
    return masked(log_prob * advantages.detach(), mask).sum() / len(log_prob)


def reinforce_surrogate(
    log_prob: Tensor,
    rewards: Tensor,
    mask: Tensor,
    gamma: float,
    baseline: Baseline = "none",
    weights: Tensor | None = None,
) -> Tensor:
    """Its gradient is the REINFORCE estimate; see `reinforce_advantages`."""
    return score_surrogate(log_prob, reinforce_advantages(rewards, mask, gamma, baseline, weights), mask)


def gpomdp_surrogate(
    log_prob: Tensor,
    rewards: Tensor,
    mask: Tensor,
    gamma: float,
    baseline: Baseline = "none",
    weights: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Its gradient is the GPOMDP estimate; see `gpomdp_advantages`."""
    return score_surrogate(log_prob, gpomdp_advantages(rewards, mask, gamma, baseline, weights, values), mask)


def actor_critic_surrogate(
    log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""``mean_k rho_k A_k log_prob_k`` over *steps*: the estimate that actor-critic methods follow.

    With per-step weights it is the gradient of ``mean_k rho_k(theta) A_k``, the surrogate of TRPO and PPO. At
    older parameters it is biased: states and advantages stay those of the sampling policy.

    Args:
        log_prob: Any shape.
        advantages: The same shape; no gradient flows through them.
        mask: Boolean, the same shape. None: all steps count.
        weights: `importance_weights.per_step_weights` of the same shape. None: all 1.

    Raises:
        ValueError: If shapes differ or the mask leaves nothing.
    """
    mask = torch.ones_like(log_prob, dtype=torch.bool) if mask is None else mask
    for values in (log_prob, advantages, *(() if weights is None else (weights,))):
        check_mask(mask, values)
    coefficients = advantages.detach() if weights is None else weights.detach() * advantages.detach()
    return masked(log_prob * coefficients, mask).sum() / mask.sum()


def padded_advantages(rewards: Tensor, mask: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """GAE of padded episodes that terminate, by the agent's `generalised_advantages`."""
    rewards, values = masked(rewards, mask), masked(values, mask)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    ends = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    advantages = generalised_advantages(rewards.T, values.T, following.T, ends.T, gamma, gae_lambda)
    return masked(advantages.T, mask)
