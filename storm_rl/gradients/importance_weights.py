r"""Importance weights: how data of a behaviour policy stands in for data of a target policy.

A trajectory ``tau = (s_0, a_0, ..., s_{T-1}, a_{T-1})`` was sampled by ``mu`` (behaviour) and an expectation under
``pi`` (target) is wanted. The transition probabilities cancel, so only log-probabilities of actions matter, with
``rho_h = pi(a_h | s_h) / mu(a_h | s_h)``:

====================  =============================================  ======================================
form                  weight                                          multiplies
====================  =============================================  ======================================
per trajectory        :math:`w = \prod_{h < T} \rho_h`                everything the trajectory contributes
per decision          :math:`w_h = \prod_{k \le h} \rho_k`            the reward at ``h`` (Precup et al., 2000)
per step              :math:`\rho_h`                                  the score at ``h``, advantages frozen
====================  =============================================  ======================================

The first two are unbiased; the third is not (it ignores that ``pi`` visits other states), and its variance does
not grow with the horizon. Truncation and self-normalisation bias any of them, for less variance.

Conventions: episodes lie along the first dimension and steps along the second, ``(n_episodes, n_steps)``; a boolean
``mask`` of that shape is true where a step was taken. What stands where the mask is false (padding, steps after
the end of an episode) is never read, be it NaN. All products are sums of logarithms. No gradient flows through a
weight: every result is detached.
"""

import math

import torch
from torch import Tensor


def per_step_weights(
    target_log_prob: Tensor,
    behaviour_log_prob: Tensor,
    truncation: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r""":math:`\rho_h = \pi(a_h | s_h) / \mu(a_h | s_h)`, one ratio a step.

    Args:
        target_log_prob: ``log pi(a|s)``, any shape.
        behaviour_log_prob: ``log mu(a|s)``, the same shape.
        truncation: The largest weight; larger ones become it. None: no bound.
        mask: Boolean, the same shape; where false, the weight is 0 whatever the log-probabilities are.

    Returns:
        The weights, of the same shape, detached from the graph.

    Raises:
        ValueError: If shapes differ, the mask leaves nothing, ``truncation`` is not positive, or a weight is not
            finite.
    """
    log_ratio = _log_ratio(target_log_prob, behaviour_log_prob, mask)
    return _masked(_exponentiate(log_ratio, truncation), mask)


def effective_sample_size(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r""":math:`(\sum_i w_i)^2 / \sum_i w_i^2` over all weights, a scalar (Kish, 1965).

    It is the number of equally weighted samples that would be as informative: n for equal weights, 1 when one
    weight has everything. All weights zero means that no sample counts, and gives 0.

    Args:
        weights: Non-negative weights, any shape.
        mask: Boolean, the same shape; weights where it is false are not counted.

    Raises:
        ValueError: If shapes differ, the mask leaves nothing, or a weight is negative or not finite.
    """
    if mask is not None:
        check_mask(mask, weights)
        weights = weights[mask]
    weights = weights.detach()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("weights must be finite and not negative; mask out the steps that have none")
    largest = weights.max() if weights.numel() else weights.new_zeros(())
    if float(largest) == 0.0:
        return largest
    scaled = weights / largest  # Squares of large or tiny weights stay in range.
    return scaled.sum().square() / scaled.square().sum()


def check_mask(mask: Tensor, values: Tensor) -> None:
    """Raise ``ValueError`` unless ``mask`` is boolean, of the shape of ``values``, and true somewhere."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got dtype {mask.dtype}")
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the values have {tuple(values.shape)}")
    if not bool(mask.any()):
        raise ValueError("mask is false everywhere: no step is left to estimate from")


def _log_ratio(target_log_prob: Tensor, behaviour_log_prob: Tensor, mask: Tensor | None) -> Tensor:
    """``log pi - log mu``, 0 where the mask is false."""
    if target_log_prob.shape != behaviour_log_prob.shape:
        raise ValueError(
            "log-probabilities must agree in shape: target has "
            f"{tuple(target_log_prob.shape)}, behaviour has {tuple(behaviour_log_prob.shape)}"
        )
    if mask is not None:
        check_mask(mask, target_log_prob)
    return _masked(target_log_prob.detach() - behaviour_log_prob.detach(), mask)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """``values`` with zeros where the mask is false. Not a product: 0 * NaN is NaN."""
    return values if mask is None else torch.where(mask, values, torch.zeros_like(values))


def _exponentiate(log_weights: Tensor, truncation: float | None) -> Tensor:
    """``exp``, bounded by ``truncation`` if there is one, or a clear error in place of inf and NaN."""
    if truncation is not None:
        if not truncation > 0.0:
            raise ValueError(f"truncation must be positive (the largest weight allowed), got {truncation}")
        log_weights = log_weights.clamp(max=math.log(truncation))
    weights = log_weights.exp()
    if bool(torch.isnan(weights).any()):
        raise ValueError(
            "a weight is NaN: a log-probability is NaN, or the action is impossible under both policies"
        )
    if bool(torch.isinf(weights).any()):
        raise ValueError(
            f"a weight overflows {weights.dtype}: its logarithm is {float(log_weights.max()):.6g}. The two policies "
            "are too far apart for unbounded weights; set a truncation, use mixture weights or take smaller steps"
        )
    return weights
