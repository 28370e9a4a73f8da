"""The recursion over policy gradients: what is remembered between two updates, and how strongly."""

from typing import Any, Literal

import torch
from torch import Tensor

from storm_rl.optim.recursion import recursive_direction, squared_norm, storm_plus_momentum, storm_plus_step_size

Momentum = Literal["measured", "storm+"] | float

# Weight of the past in the running ratio of the direction's error to the gradient's noise: one rollout's estimate
# of the error is a small difference of large numbers.
ERROR_SMOOTHING = 0.8
# A measured momentum may be 0, and the step size divides by it.
LEAST_DIVISOR = 1e-3


class PolicyRecursion:
    r"""``d_t``, ``a_t`` and ``eta_t`` for flat policy gradients.

    .. math::
        d_t &= g_t + (1 - a_t) (d_{t-1} - g'_t), \qquad d_1 = g_1 \\
        \eta_t &= \Big( \sum_{i \le t} d_i^T M_i^{-1} d_i / b_i \Big)^{-1/3}

    with :math:`g'_t` the gradient at the previous parameters on the data of :math:`g_t`, and :math:`M` the metric of
    the step, in which :math:`\eta_t` has no unit. The paper (see :mod:`storm_rl.optim.recursion`) has :math:`M = I`
    and :math:`b_i = a_{i+1}`, and so has ``momentum="storm+"`` (there :math:`a_{i+1}` is bounded by the floor). A
    measured :math:`a_{i+1}` is not known yet when step :math:`i` is taken: there
    :math:`b_i = \max(a_i, 10^{-3})`. A constant momentum has :math:`b_i = a`.

    Gradients come as those of ``k`` independent parts of the rollout, ``(k, n)``; their mean is ``g_t``.

    Args:
        momentum: How ``a_t`` is set. ``"storm+"``: the paper's schedule. ``"measured"``: what minimises the error
            of ``d_t`` as measured, see :meth:`measured_momentum`. A number in (0, 1]: constant (STORM-PG, Yuan
            et al. 2020); 1 forgets the past.
        momentum_floor: Lower bound of a scheduled or measured ``a_t``, in [0, 1]; 0 leaves the paper as it is.

    Attributes:
        direction: ``d_t`` of the last update; None before the first.
        previous_parameters: ``theta_t`` of the last update, flat.
        momentum: ``a_t`` of the last update; 1 before the first.

    Raises:
        ValueError: A momentum or floor outside its range.
    """

    def __init__(self, momentum: Momentum, momentum_floor: float) -> None:
        known = momentum in ("measured", "storm+") if isinstance(momentum, str) else 0.0 < momentum <= 1.0
        if not known:
            raise ValueError(f'momentum must be "measured", "storm+" or a number in (0, 1], got {momentum!r}')
        if not 0.0 <= momentum_floor <= 1.0:
            raise ValueError(f"momentum_floor must lie in [0, 1], got {momentum_floor!r}")
        self.rule = momentum
        self.momentum_floor = momentum_floor
        self.direction: Tensor | None = None
        self.previous_parameters: Tensor | None = None
        self.momentum = 1.0
        self.error_ratio = 0.0
        self.sum_squared_gradients = 0.0
        self.sum_weighted_directions = 0.0

    @property
    def needs_previous(self) -> bool:
        """Whether the next direction needs the gradient at the previous parameters."""
        return self.previous_parameters is not None and (self.rule == "measured" or self.scheduled_momentum < 1.0)

    @property
    def scheduled_momentum(self) -> float:
        """``a_{t+1}`` where the gradients seen so far determine it; 1 before the first."""
        if isinstance(self.rule, str):
            return max(self.momentum_floor, storm_plus_momentum(self.sum_squared_gradients))
        return float(self.rule) if self.direction is not None else 1.0

    def next_direction(self, gradients: Tensor, gradients_at_previous: Tensor | None, overlap: float = 0.0) -> Tensor:
        """Set ``a_t`` and ``d_t`` from the parts of ``g_t`` and ``g'_t`` (None at first), ``(k, n)``; give ``d_t``.

        ``overlap`` is the share of the transitions that the previous direction has already used.
        """
        gradient = gradients.mean(dim=0)
        self.momentum, direction = 1.0, gradient
        if self.direction is not None and gradients_at_previous is not None:
            self.momentum = self.scheduled_momentum
            if self.rule == "measured":
                self.momentum = self.measured_momentum(self.direction, gradients, gradients_at_previous, overlap)
            direction = self._mixed(gradient, self.direction, gradients_at_previous.mean(dim=0))
        self.sum_squared_gradients += squared_norm([gradient])
        self.direction = direction
        return direction

    def _mixed(self, gradient: Tensor, direction: Tensor, gradient_at_previous: Tensor) -> Tensor:
        (mixed,) = recursive_direction([gradient], [direction], [gradient_at_previous], self.momentum)
        return mixed

    def next_step_size(self, direction_square: float, parameters: Tensor) -> float:
        """``eta_t`` from ``d_t^T M_t^{-1} d_t``; ``parameters``, ``theta_t``, are the next update's previous ones."""
        self.previous_parameters = parameters.clone()
        divisor = max(self.momentum, LEAST_DIVISOR) if self.rule == "measured" else self.scheduled_momentum
        self.sum_weighted_directions += direction_square / divisor
        return storm_plus_step_size(self.sum_weighted_directions)

    def measured_momentum(
        self, direction: Tensor, gradients: Tensor, gradients_at_previous: Tensor, overlap: float
    ) -> float:
        r"""The ``a_t`` that minimises the expected squared error of ``d_t``; updates the running error ratio.

        Let :math:`e` be the error of :math:`d_{t-1}`, and :math:`V_g`, :math:`V_{g'}`, :math:`V_\Delta` the traces of
        the covariances of :math:`g_t`, :math:`g'_t` and :math:`\Delta = g_t - g'_t`, :math:`C` that of :math:`g_t`
        and :math:`\Delta`, all from the parts of the window. The error of :math:`d_t` is
        :math:`a n + (1-a)(e + \delta)` with the noises :math:`n` of :math:`g_t` and :math:`\delta` of :math:`\Delta`.
        :math:`d_{t-1}` has already used a share :math:`\rho` (``overlap``) of the transitions, so :math:`e` and
        :math:`n` have a covariance as well, about :math:`K = \rho V_g`, and the expected square is

        .. math::
            (1-a)^2 (E + V_\Delta) + a^2 V_g + 2 a (1-a) (C + K), \qquad
            a = \frac{E + V_\Delta - C - K}{E + V_\Delta + V_g - 2C - 2K}.

        :math:`\lVert g'_t - d_{t-1} \rVert^2 - (1 - 2\rho) V_{g'}` estimates :math:`E = \lVert e \rVert^2`; its
        ratio to :math:`V_g` is smoothed over updates. Taking the overlap for independent data would underestimate
        :math:`E` and trust the past too much.
        """
        difference = gradients - gradients_at_previous
        noise = _covariance_of_mean(gradients, gradients)
        if noise <= 0.0:
            return 1.0
        mismatch = squared_norm([gradients_at_previous.mean(dim=0) - direction])
        noise_at_previous = _covariance_of_mean(gradients_at_previous, gradients_at_previous)
        error = max(0.0, mismatch - (1.0 - 2.0 * overlap) * noise_at_previous)
        self.error_ratio = ERROR_SMOOTHING * self.error_ratio + (1.0 - ERROR_SMOOTHING) * error / noise
        drift = self.error_ratio * noise + _covariance_of_mean(difference, difference)
        cross = _covariance_of_mean(gradients, difference) + overlap * noise
        denominator = drift + noise - 2.0 * cross
        momentum = (drift - cross) / denominator if denominator > 0.0 else 1.0
        return min(1.0, max(self.momentum_floor, momentum))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and floats only, so that it loads with ``weights_only=True``."""
        return {
            "direction": self.direction,
            "previous_parameters": self.previous_parameters,
            "momentum": self.momentum,
            "error_ratio": self.error_ratio,
            "sum_squared_gradients": self.sum_squared_gradients,
            "sum_weighted_directions": self.sum_weighted_directions,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore what :meth:`state_dict` gave."""
        if strict and set(state) != set(self.state_dict()):
            raise ValueError(f"not the state of a {type(self).__name__}: keys {sorted(state)}")
        for key in ("direction", "previous_parameters"):
            value = state[key]
            setattr(self, key, value.clone() if isinstance(value, torch.Tensor) else None)
        for key in ("momentum", "error_ratio", "sum_squared_gradients", "sum_weighted_directions"):
            setattr(self, key, float(state[key]))


def _covariance_of_mean(first: Tensor, second: Tensor) -> float:
    """Trace of the covariance of two means over ``k`` parts, ``(k, n)`` each; 0 for a single part."""
    parts = len(first)
    if parts < 2:
        return 0.0
    centred = (first - first.mean(dim=0)) * (second - second.mean(dim=0))
    return float(centred.sum(dtype=torch.float64)) / (parts * (parts - 1))
