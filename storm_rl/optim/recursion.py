r"""The recursion of ``d`` on lists of tensors, and STORM+'s rules for ``a`` and ``eta`` on sums of squares.

The docstrings of :class:`~storm_rl.optim.STORMPlus`, :class:`~storm_rl.optim.STORM` and
:class:`~storm_rl.optim.MetaSTORM` put them together. Indices matter: ``a_{t+1}`` knows the gradients up to ``t`` only,
STORM+'s ``eta_t`` divides by ``a_{i+1}`` and not by ``a_i``, and ``d`` takes both gradients on the *same* sample.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
"""A sum over all coordinates, or a tensor with one sum a coordinate."""


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Squared Euclidean norm over all ``tensors`` together, accumulated in float64."""
    if not tensors:
        return 0.0
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    # Added up on one device, so that the sum is copied to the host once.
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum())


def power(base: Number, exponent: float) -> Number:
    """``base ** exponent``; a float's overflow is an error, as Python has it."""
    return base.pow(exponent) if isinstance(base, Tensor) else math.pow(base, exponent)


def storm_plus_momentum(sum_squared_gradients: Number) -> Number:
    r"""``a_{t+1} = (1 + \sum_{i <= t} ||g_i||^2)^(-2/3)``, in (0, 1]; 1 forgets the past."""
    return power(1.0 + sum_squared_gradients, -2.0 / 3.0)


def storm_plus_step_size(sum_weighted_directions: Number) -> Number:
    r"""``eta_t = (\sum_{i <= t} ||d_i||^2 / a_{i+1})^(-1/3)``.

    Where the sum is 0, every direction so far was exactly zero; the step size is 0 there, so that ``eta_t d_t`` is too.
    """
    if isinstance(sum_weighted_directions, Tensor):
        return power(sum_weighted_directions, -1.0 / 3.0).masked_fill_(sum_weighted_directions == 0.0, 0.0)
    return power(sum_weighted_directions, -1.0 / 3.0) if sum_weighted_directions > 0.0 else 0.0


def update_direction(
    direction: Sequence[Tensor],
    gradients: Sequence[Tensor],
    gradients_at_previous: Sequence[Tensor],
    momentum: float | Sequence[Tensor],
) -> None:
    """Turn ``d_{t-1}`` into ``d_t = g_t + (1 - a_t) (d_{t-1} - g'_t)``, in place.

    Args:
        direction: ``d_{t-1}``, overwritten by ``d_t``.
        gradients: ``g_t``, the gradients at the current parameters, one tensor a parameter.
        gradients_at_previous: ``g'_t``, the gradients at the *previous* parameters on the sample of ``g_t``.
        momentum: ``a_t`` for all, or one tensor a parameter with one ``a_t`` a coordinate.
    """
    momenta: Sequence[float | Tensor] = [momentum] * len(direction) if isinstance(momentum, float) else momentum
    for tensor, gradient, at_previous, a in zip(direction, gradients, gradients_at_previous, momenta, strict=True):
        tensor.sub_(at_previous).mul_(1.0 - a).add_(gradient)
