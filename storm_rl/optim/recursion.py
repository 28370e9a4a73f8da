r"""The STORM+ recursion on lists of tensors: the one place where its equations stand.

Minimise :math:`f(x) = E_\xi[f(x; \xi)]` with :math:`g_t = \nabla f(x_t; \xi_t)` and :math:`d_1 = g_1`
(Levy, Kavis, Cevher, NeurIPS 2021, Algorithm 1, arXiv 2111.01040):

.. math::
    a_{t+1} &= (1 + \sum_{i \le t} \lVert g_i \rVert^2)^{-2/3} \\
    \eta_t &= (\sum_{i \le t} \lVert d_i \rVert^2 / a_{i+1})^{-1/3} \\
    x_{t+1} &= x_t - \eta_t d_t \\
    d_{t+1} &= \nabla f(x_{t+1}; \xi_{t+1}) + (1 - a_{t+1}) (d_t - \nabla f(x_t; \xi_{t+1}))

Indices matter: ``a_{t+1}`` knows the gradients up to ``t`` only, ``eta_t`` divides by ``a_{i+1}`` and not by
``a_i``, and the last line takes both gradients on the *same* sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Squared Euclidean norm over all ``tensors`` together, accumulated in float64."""
    if not tensors:
        return 0.0
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors])
    return float(norms.square().sum())


def storm_plus_momentum(sum_squared_gradients: float) -> float:
    r"""``a_{t+1} = (1 + \sum_{i <= t} ||g_i||^2)^(-2/3)``, in (0, 1]; 1 forgets the past."""
    return float((1.0 + sum_squared_gradients) ** (-2.0 / 3.0))


def storm_plus_step_size(sum_weighted_directions: float) -> float:
    r"""``eta_t = (\sum_{i <= t} ||d_i||^2 / a_{i+1})^(-1/3)``.

    A sum of 0 means that every direction so far was exactly zero: nothing moves, whatever the step, and the
    step size is given as 0 so that ``eta_t d_t`` stays finite.
    """
    return float(sum_weighted_directions ** (-1.0 / 3.0)) if sum_weighted_directions > 0.0 else 0.0


def recursive_direction(
    gradients: Sequence[Tensor],
    previous_direction: Sequence[Tensor],
    gradients_at_previous: Sequence[Tensor],
    momentum: float,
) -> list[Tensor]:
    """``d_t = g_t + (1 - a_t) (d_{t-1} - g'_t)``, as new tensors.

    Args:
        gradients: ``g_t``, the gradients at the current parameters, one tensor a parameter.
        previous_direction: ``d_{t-1}``.
        gradients_at_previous: ``g'_t``, the gradients at the *previous* parameters on the sample of ``g_t``
            (importance-weighted where the sample's law moves with the parameters).
        momentum: ``a_t``; 1 gives ``g_t`` alone.
    """
    return [
        gradient + (1.0 - momentum) * (direction - at_previous)
        for gradient, direction, at_previous in zip(gradients, previous_direction, gradients_at_previous, strict=True)
    ]
