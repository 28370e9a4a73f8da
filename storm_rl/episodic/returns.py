r"""Returns, advantages and baselines of padded episodes.

The objective of an episodic task is :math:`J(\theta) = E[\sum_{h<T} \gamma^h r_h]`. Its gradient estimates
are all of the form

.. math:: \hat g = \frac{1}{N} \sum_i \sum_{k < T_i} A_{ik} \nabla \log \pi_\theta(a_{ik} | s_{ik})

and differ in the coefficients ``A``, called advantages here, which this module computes. The factor
:math:`\gamma^k` of the step's own time is part of ``A`` for REINFORCE and GPOMDP, since it is part of the gradient of
``J``; deep actor-critic practice drops it.

Conventions are those of `importance_weights`: shape ``(n_episodes, n_steps)``, a boolean mask, nothing read
where it is false. All results are zero there and detached.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from storm_rl.common.checks import check_choice, check_range
from storm_rl.common.importance_weights import check_mask, check_padded, masked

Baseline = Literal["none", "average", "leave_one_out", "state_value"]
"""How the mean of a return is subtracted from it.

- ``none``: not at all. Unbiased.
- ``average``: the mean over the batch's episodes that reach the step. The episode's own return is in the
  mean, so the estimate shrinks: where all N episodes reach every step, to exactly ``1 - 1/N`` in expectation;
  a little more where some end early (the bias of N = 2 on the three-step cliff of ``envs.mdps``: 50.1 %).
- ``leave_one_out``: the mean over the *other* episodes that reach the step, 0 where there is none. Unbiased.
- ``state_value``: a critic's ``V(s_k)``. Unbiased if the critic was fitted on other data.
"""


def discount_factors(n_steps: int, gamma: float, like: Tensor) -> Tensor:
    """``gamma^h`` for ``h < n_steps``, typed and placed as ``like``; ``ValueError`` if ``gamma`` is outside [0, 1]."""
    check_range("gamma", gamma, 0.0, 1.0)
    steps = torch.arange(n_steps, dtype=like.dtype, device=like.device)
    return torch.as_tensor(gamma, dtype=like.dtype, device=like.device) ** steps


def monte_carlo_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    r"""Rewards to go, :math:`G_k = \sum_{h \ge k} \gamma^{h-k} r_h`, discounted to their own step.

    Raises:
        ValueError: If shapes differ, the mask leaves nothing, or ``gamma`` is outside [0, 1].
    """
    check_padded("rewards", rewards, mask)
    check_range("gamma", gamma, 0.0, 1.0)
    rewards = masked(rewards.detach(), mask)
    returns = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):  # Dividing a sum by gamma^k would underflow.
        running = rewards[:, step] + gamma * running
        returns[:, step] = running
    return masked(returns, mask)


def reinforce_advantages(
    rewards: Tensor, mask: Tensor, gamma: float, baseline: Baseline = "none", weights: Tensor | None = None
) -> Tensor:
    r"""REINFORCE (Williams, 1992): every step of an episode gets ``w (R - b)``, ``R`` its discounted return.

    ``weights`` are those of trajectories, ``(n_episodes,)``; None: all 1. A state value is no baseline for one.

    Raises:
        ValueError: As `monte_carlo_returns`; for another shape of ``weights``; for ``baseline="state_value"``.
    """
    check_padded("rewards", rewards, mask)
    if baseline == "state_value":
        raise ValueError("REINFORCE has one baseline an episode; state_value needs GPOMDP or actor-critic")
    discounted = masked(rewards.detach(), mask) * discount_factors(rewards.shape[1], gamma, rewards)
    # GPOMDP of episodes of one step, which has the whole return.
    returns = discounted.sum(dim=1, keepdim=True)
    advantages = gpomdp_advantages(returns, torch.ones_like(returns, dtype=torch.bool), gamma, baseline, weights)
    return masked(advantages.expand_as(rewards), mask)


def gpomdp_advantages(
    rewards: Tensor,
    mask: Tensor,
    gamma: float,
    baseline: Baseline = "none",
    weights: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    r"""GPOMDP (Baxter, Bartlett, 2001): :math:`A_k = \sum_{h \ge k} w_h \gamma^h r_h - w_k b_k`.

    It is the estimate :math:`\sum_h w_h \gamma^h r_h \sum_{k \le h} \nabla \log \pi_k` with its sums exchanged: a
    reward concerns the actions up to it only. The step's baseline ``b_k`` carries the weight of the prefix that ends
    with the action, so that it adds nothing in expectation.

    Args:
        rewards: Shape ``(n_episodes, n_steps)``.
        mask: Boolean, the same shape.
        gamma: Discount in [0, 1].
        baseline: See `Baseline`. Under weights the batch means are those of the target policy.
        weights: Per decision, shape ``(n_episodes, n_steps)``, or per trajectory, ``(n_episodes,)``. None: all 1.
        values: ``V(s_k)``, shape ``(n_episodes, n_steps)``, for ``baseline="state_value"`` only.

    Raises:
        ValueError: As `monte_carlo_returns`; for other shapes; if ``values`` and ``baseline`` do not go together.
    """
    check_padded("rewards", rewards, mask)
    check_choice("baseline", baseline, get_args(Baseline))
    factors = discount_factors(rewards.shape[1], gamma, rewards)
    weights = torch.ones_like(rewards) if weights is None else weights
    if weights.shape == rewards.shape[:1]:
        weights = weights[:, None].expand_as(rewards)
    if weights.shape != rewards.shape:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; one a step, {tuple(rewards.shape)}, or one an "
            f"episode, ({len(rewards)},), is needed"
        )
    weights = masked(weights.detach(), mask)
    weighted = weights * masked(rewards.detach(), mask) * factors
    to_go = masked(weighted.flip(1).cumsum(dim=1).flip(1), mask)
    if (values is None) == (baseline == "state_value"):
        raise ValueError(f"values are needed for baseline='state_value' and only there; baseline is {baseline!r}")
    if values is None:
        expected = _batch_baseline(to_go, weights, baseline)
    else:
        check_mask(mask, values)
        expected = masked(values.detach(), mask) * factors
    return masked(to_go - weights * expected, mask)


def _batch_baseline(weighted_returns: Tensor, weights: Tensor, baseline: Baseline) -> Tensor:
    """The target policy's mean return over the episodes alive at each step: sum of w G over sum of w.

    Both are 0 where an episode has ended.
    """
    if baseline == "none":
        return torch.zeros_like(weighted_returns)
    total, count = weighted_returns.sum(dim=0, keepdim=True), weights.sum(dim=0, keepdim=True)
    if baseline == "leave_one_out":
        # Exactly 0 where nobody else is alive.
        total, count = total - weighted_returns, count - weights
    usable = count > 0
    return torch.where(usable, total / torch.where(usable, count, torch.ones_like(count)), 0.0)
