r"""Importance weights: how data of a behaviour policy stands in for data of a target policy.

A trajectory ``(s_0, a_0, ..., s_{T-1}, a_{T-1})`` was sampled by ``mu`` (behaviour) and an expectation under ``pi``
(target) is wanted. Transition probabilities cancel; what is left is ``rho_h = pi(a_h | s_h) / mu(a_h | s_h)``:

- *per trajectory*, :math:`w = \prod_{h < T} \rho_h`, multiplies all that the trajectory contributes;
- *per decision*, :math:`w_h = \prod_{k \le h} \rho_k`, multiplies the reward at ``h`` (Precup, Sutton, Singh, 2000);
- *per step*, :math:`\rho_h`, multiplies the score at ``h`` with its advantage frozen.

The first two are unbiased; the third is not (it ignores that ``pi`` visits other states), but its variance
does not grow with the horizon. Truncation and self-normalisation bias any of them, for less variance.

Per step, the bias of a gradient is small between near policies; of the *difference* between the gradients at two, which
a recursion uses, it is not: 23 % on the four-step cliff of ``envs.mdps`` at any distance, however small.

Conventions: episodes lie along the first dimension and steps along the second, ``(n_episodes, n_steps)``; a boolean
``mask`` of that shape is true where a step was taken. What stands where it is false (padding) is never read, be it NaN.
All products are sums of logarithms. No gradient flows through a weight: every result is detached.
"""

import math

import torch
from torch import Tensor

from storm_rl.common.checks import check_range


def per_step_weights(target_log_prob: Tensor, behaviour_log_prob: Tensor, max_weight: float | None = None) -> Tensor:
    r""":math:`\rho_h = \pi(a_h | s_h) / \mu(a_h | s_h)`, one ratio a step; any shape.

    Args:
        target_log_prob: ``log pi(a|s)``.
        behaviour_log_prob: ``log mu(a|s)``.
        max_weight: Larger weights become it. None: no bound.

    Raises:
        ValueError: If shapes differ, ``max_weight`` is not positive or a weight not finite.
    """
    return _exponentiate(_log_ratio(target_log_prob, behaviour_log_prob, None), max_weight)


def per_decision_weights(
    target_log_prob: Tensor,
    behaviour_log_prob: Tensor,
    mask: Tensor | None = None,
    max_weight: float | None = None,
    self_normalise: bool = False,
) -> Tensor:
    r""":math:`w_h = \prod_{k \le h} \pi(a_k | s_k) / \mu(a_k | s_k)`, the weight of the reward at ``h``.

    Log-probabilities, ``(n_episodes, n_steps)``, and ``max_weight`` are as in `per_step_weights`. The weight is 0 where
    ``mask``, boolean and of the same shape, is false. None: all steps were taken.

    ``self_normalise`` divides the weights of each step by their mean over *all* episodes, in logarithms, so that they
    cannot overflow. An episode that has ended stays in that mean with its last weight, as an episode in an absorbing
    state would; leaving it out would also divide by the probability of being alive.

    Raises:
        ValueError: As `per_step_weights`; if the mask leaves nothing; if self-normalisation meets a step whose weights
            are all 0.
    """
    check_padded("log-probabilities", target_log_prob, mask)
    log_weights = _log_ratio(target_log_prob, behaviour_log_prob, mask).cumsum(dim=1)
    return masked(_exponentiate(log_weights, max_weight, self_normalise), mask)


def trajectory_weights(
    target_log_prob: Tensor,
    behaviour_log_prob: Tensor,
    mask: Tensor | None = None,
    max_weight: float | None = None,
    self_normalise: bool = False,
) -> Tensor:
    r""":math:`w = \prod_{h < T} \pi(a_h | s_h) / \mu(a_h | s_h)`, one weight an episode; see `per_decision_weights`."""
    check_padded("log-probabilities", target_log_prob, mask)
    log_weights = _log_ratio(target_log_prob, behaviour_log_prob, mask).sum(dim=1)
    return _exponentiate(log_weights, max_weight, self_normalise)


def defensive_weights(
    target_log_prob: Tensor,
    current_log_prob: Tensor,
    previous_log_prob: Tensor,
    defensive: float,
    mask: Tensor | None = None,
    per_decision: bool = False,
) -> Tensor:
    r"""Weights against ``(1 - b) p_current + b p_previous``, the mixture that DEF-PG samples from.

    .. math:: w = \frac{\prod_h \pi(a_h | s_h)}{\sum_j p_j \prod_h \mu_j(a_h | s_h)}

    The mixture is one of trajectories, each sampled throughout by one policy: all products are taken before the sum, up
    to ``h`` for the per-decision form. The weight does not ask which policy sampled the episode: it is the *balance
    heuristic* (Veach, Guibas, SIGGRAPH 1995). Where the target is one of the two, it is *defensive* importance sampling
    (Hesterberg, 1995): at most ``1 / (1 - b)`` (current) or ``1 / b`` (previous), whatever the horizon (Papini,
    Metelli, Restelli, Machine Learning 2024).

    Log-probabilities are those of the target, usually one of the two, of the current and of the previous (anchor,
    snapshot) policy; they and ``mask`` are ``(n_episodes, n_steps)``. ``defensive`` is ``b``, the *previous* policy's
    share of the episodes; the paper's alpha is ``1 - b``. With ``per_decision`` there is a weight a step, of the
    prefix, else one an episode, ``(n_episodes,)``.

    Raises:
        ValueError: If ``defensive`` is outside [0, 1], and as `per_decision_weights`.
    """
    check_range("defensive (the previous policy's share)", defensive, 0.0, 1.0)
    check_padded("log-probabilities", target_log_prob, mask)
    # Relative to the target, -log w = logsumexp_j(log p_j + sum_h (log mu_j - log pi)): in range however long the
    # episode. A policy without a share must not be able to make a weight NaN.
    log_products = []
    for share, behaviour_log_prob in ((1.0 - defensive, current_log_prob), (defensive, previous_log_prob)):
        if share > 0.0:
            log_ratio = _log_ratio(behaviour_log_prob, target_log_prob, mask)
            log_product = log_ratio.cumsum(dim=1) if per_decision else log_ratio.sum(dim=1)
            log_products.append(log_product + math.log(share))
    weights = _exponentiate(-torch.logsumexp(torch.stack(log_products), dim=0), None)
    return masked(weights, mask) if per_decision else weights


def effective_sample_size(weights: Tensor) -> Tensor:
    r""":math:`(\sum_i w_i)^2 / \sum_i w_i^2` over all weights, a scalar (Kish, 1965).

    It is the number of equally weighted samples that would be as informative: n for equal weights, 1 when one
    weight has everything, 0 when all are 0.

    Raises:
        ValueError: If a weight is negative or not finite.
    """
    weights = weights.detach()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("weights must be finite and not negative")
    largest = weights.max() if weights.numel() else weights.new_zeros(())
    if float(largest) == 0.0:
        return largest
    scaled = weights / largest  # Squares of large or tiny weights stay in range.
    return scaled.sum().square() / scaled.square().sum()


def check_padded(name: str, values: Tensor, mask: Tensor | None) -> None:
    """Raise ``ValueError`` unless ``values`` are floating-point, ``(n_episodes, n_steps)``, and ``mask`` is right."""
    if values.dim() != 2 or not values.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point, one number a step, of shape (n_episodes, n_steps); got {values.dtype} "
            f"of shape {tuple(values.shape)}"
        )
    if mask is not None:
        check_mask(mask, values)


def check_mask(mask: Tensor, values: Tensor) -> None:
    """Raise ``ValueError`` unless ``mask`` is boolean, of the shape of ``values``, and true somewhere."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got dtype {mask.dtype}")
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the values have {tuple(values.shape)}")
    if not bool(mask.any()):
        raise ValueError("mask is false everywhere: no step is left to estimate from")


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """``values`` with zeros where the mask is false. Not a product, because 0 * NaN is NaN."""
    return values if mask is None else torch.where(mask, values, torch.zeros_like(values))


def _log_ratio(target_log_prob: Tensor, behaviour_log_prob: Tensor, mask: Tensor | None) -> Tensor:
    """``log pi - log mu``, detached, 0 where the mask is false."""
    if target_log_prob.shape != behaviour_log_prob.shape:
        raise ValueError(
            "log-probabilities must agree in shape: target has "
            f"{tuple(target_log_prob.shape)}, behaviour has {tuple(behaviour_log_prob.shape)}"
        )
    return masked(target_log_prob.detach() - behaviour_log_prob.detach(), mask)


def _exponentiate(log_weights: Tensor, max_weight: float | None, self_normalise: bool = False) -> Tensor:
    """``exp``, bounded by ``max_weight`` if there is one, or a clear error in place of inf and NaN.

    Self-normalised, divided by the mean over episodes (dimension 0), the weights are at most their number: the
    division comes before the exponential, so that nothing can overflow.
    """
    if max_weight is not None:
        if not max_weight > 0.0:
            raise ValueError(f"max_weight must be positive, got {max_weight}")
        log_weights = log_weights.clamp(max=math.log(max_weight))
    if self_normalise:
        log_total = torch.logsumexp(log_weights, dim=0, keepdim=True)
        if bool(torch.isneginf(log_total).any()):
            raise ValueError("cannot self-normalise: all weights of a step are 0, the policies have nothing in common")
        log_weights = log_weights - log_total + math.log(len(log_weights))
    weights = log_weights.exp()
    if bool(torch.isnan(weights).any()):
        raise ValueError(
            "a weight is NaN: a log-probability is NaN, or an action is impossible under both the target and a "
            "behaviour policy"
        )
    if bool(torch.isinf(weights).any()):
        raise ValueError(
            f"a weight overflows {weights.dtype}: its logarithm is {float(log_weights.max()):.6g}. The two policies "
            "are too far apart for unbounded weights; set max_weight, use mixture weights or take smaller steps"
        )
    return weights
