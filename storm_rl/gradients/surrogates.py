r"""Surrogates: scalars whose gradient is a policy-gradient estimate, for automatic differentiation.

Each is :math:`\frac{1}{N} \sum_i \sum_k A_{ik} \log \pi_\theta(a_{ik} | s_{ik})` with frozen coefficients. At
the parameters that sampled the data, give ``log_prob`` at these parameters and no weights. At *older* (or any
other) parameters give ``log_prob`` at those, and the importance weights from the sampling policy to them: the
gradient is then an estimate of the gradient of ``J`` at the older parameters from the newer data. The signs
are those of a gradient to *ascend*; a minimising optimiser needs the negative.

``log_prob`` is padded, shape ``(n_episodes, n_steps)``. Evaluate the policy on the steps that exist and let
`pad` place the results: a NaN that a network makes of padding would enter the gradient even where the mask is
false.
"""

import torch
from torch import Tensor

from storm_rl.common.importance_weights import check_mask, masked
from storm_rl.gradients.returns import Baseline, gpomdp_advantages, reinforce_advantages


def pad(values: Tensor, mask: Tensor) -> Tensor:
    """Place one value for each true entry of ``mask``, episode after episode; zeros elsewhere.

    Args:
        values: Shape ``(*leading, n_true)``, for any leading dimensions.
        mask: Boolean, shape ``(n_episodes, n_steps)``.

    Returns:
        Shape ``(*leading, n_episodes, n_steps)``; gradients flow through.

    Raises:
        ValueError: If there is not one value for each true entry.
    """
    if values.shape[-1] != int(mask.sum()):
        raise ValueError(f"{values.shape[-1]} values for a mask with {int(mask.sum())} true entries")
    padded = values.new_zeros(*values.shape[:-1], *mask.shape)
    padded[..., mask] = values
    return padded


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
    """Its gradient is the REINFORCE estimate; see `returns.reinforce_advantages` for arguments and errors."""
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
    """Its gradient is the GPOMDP estimate; see `returns.gpomdp_advantages` for arguments and errors."""
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
