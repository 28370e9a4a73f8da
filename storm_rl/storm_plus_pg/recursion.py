"""The recursion over policy gradients: what is remembered between two updates, and how strongly."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from storm_rl.optim.recursion import (
    recursive_direction,
    squared_norm,
    storm_plus_momentum,
    storm_plus_step_size,
)

Momentum = Literal["measured", "storm+"] | float

# Weight of the past in the running ratio of the direction's error to the gradient's noise: one rollout's estimate
# of the error is a small difference of large numbers.
ERROR_SMOOTHING = 0.8

# Elements of a long float32 vector whose norm is taken in float32. Stored results were computed so: float64
# throughout moves the last bits of a_t, and with them every run.
NORM_ROW = 256


class Proposal(NamedTuple):
    """What one update would take: ``g_t`` and ``d_t``, flat, ``a_t``, and the running error ratio behind it."""

    gradient: Tensor
    direction: Tensor
    momentum: float
    error_ratio: float


class PolicyRecursion:
    r"""``d_t``, ``a_t`` and ``eta_t`` for flat policy gradients (equations in :mod:`storm_rl.optim.recursion`).

    Gradients come as those of ``k`` independent parts of the rollout, ``(k, n)``; their mean is ``g_t``.

    Args:
        momentum: How ``a_t`` is set. ``"storm+"``: the paper's schedule. ``"measured"``: what minimises the error
            of ``d_t`` as measured, see :meth:`_measured_momentum`. A number in (0, 1]: constant (STORM-PG, Yuan
            et al. 2020); 1 forgets the past.
        momentum_floor: Lower bound of a scheduled or measured ``a_t``, in [0, 1]; 0 leaves the paper as it is.

        corrected: False leaves the gradient difference out: plain momentum ``d_t = a_t g_t + (1 - a_t) d_{t-1}``,
            for comparison.

    Raises:
        ValueError: A momentum or floor outside its range.
    """

    def __init__(self, momentum: Momentum, momentum_floor: float, corrected: bool = True) -> None:
        known = momentum in ("measured", "storm+") if isinstance(momentum, str) else 0.0 < momentum <= 1.0
        if not known:
            raise ValueError(f'momentum must be "measured", "storm+" or a number in (0, 1], got {momentum!r}')
        if not 0.0 <= momentum_floor <= 1.0:
            raise ValueError(f"momentum_floor must lie in [0, 1], got {momentum_floor!r}")
        self.rule = momentum
        self.momentum_floor = momentum_floor
        self.corrected = corrected
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

    def propose(self, gradients: Tensor, gradients_at_previous: Tensor | None, overlap: float = 0.0) -> Proposal:
        """``d_t`` and ``a_t`` from the parts of ``g_t`` and of the weighted gradient at the previous parameters.

        Changes nothing; :meth:`accept` does.

        Args:
            gradients: Parts of ``g_t``, ``(k, n)``.
            gradients_at_previous: The same parts of the rollout at the previous parameters, ``(k, n)``; None if
                there are none.
            overlap: Share of the transitions that the previous direction has already used.
        """
        gradient = gradients.mean(dim=0)
        if self.direction is None or gradients_at_previous is None:
            return Proposal(gradient, gradient, 1.0, self.error_ratio)
        momentum, error_ratio = self.scheduled_momentum, self.error_ratio
        if self.rule == "measured":
            momentum, error_ratio = self._measured_momentum(self.direction, gradients, gradients_at_previous, overlap)
        # With g_t in the place of g'_t the recursion is plain momentum.
        reference = gradients_at_previous.mean(dim=0) if self.corrected else gradient
        (direction,) = recursive_direction([gradient], [self.direction], [reference], momentum)
        return Proposal(gradient, direction, momentum, error_ratio)

    def _measured_momentum(
        self, direction: Tensor, gradients: Tensor, gradients_at_previous: Tensor, overlap: float
    ) -> tuple[float, float]:
        r"""The ``a_t`` that minimises the expected squared error of ``d_t``, and the running error ratio.

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
            return 1.0, self.error_ratio
        mismatch = _squared_norm(gradients_at_previous.mean(dim=0) - direction)
        noise_at_previous = _covariance_of_mean(gradients_at_previous, gradients_at_previous)
        error = max(0.0, mismatch - (1.0 - 2.0 * overlap) * noise_at_previous)
        ratio = ERROR_SMOOTHING * self.error_ratio + (1.0 - ERROR_SMOOTHING) * error / noise
        drift = ratio * noise + _covariance_of_mean(difference, difference)
        cross = _covariance_of_mean(gradients, difference) + overlap * noise
        denominator = drift + noise - 2.0 * cross
        momentum = (drift - cross) / denominator if denominator > 0.0 else 1.0
        return min(1.0, max(self.momentum_floor, momentum)), ratio

    def accept(self, proposal: Proposal, direction_square: float, parameters: Tensor) -> float:
        """Take a proposal into the state and give ``eta_t``.

        Args:
            proposal: What :meth:`propose` gave.
            direction_square: ``||d_t||^2`` in the metric of the step.
            parameters: ``theta_t``, flat, copied: the previous parameters of the next update.
        """
        self.sum_squared_gradients += _squared_norm(proposal.gradient)
        self.direction = proposal.direction
        self.previous_parameters = parameters.clone()
        self.momentum = proposal.momentum
        self.error_ratio = proposal.error_ratio
        # The paper divides by a_{t+1}, which a measured a_t does not know yet.
        weight = max(proposal.momentum, 1e-3) if self.rule == "measured" else self.scheduled_momentum
        self.sum_weighted_directions += direction_square / weight
        return storm_plus_step_size(self.sum_weighted_directions)

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


def _squared_norm(vector: Tensor) -> float:
    """Squared Euclidean norm; over the norms of rows of ``NORM_ROW`` where the vector is long, float32 and on a CPU."""
    if vector.dtype != torch.float32 or vector.device.type != "cpu":
        return squared_norm([vector])
    whole = vector.numel() // NORM_ROW * NORM_ROW
    parts = vector
    if whole >= 16 * NORM_ROW:
        rows = torch.linalg.vector_norm(vector[:whole].reshape(-1, NORM_ROW), dim=1)
        parts = torch.cat([rows, vector[whole:]])
    squared = float(torch.linalg.vector_norm(parts, dtype=torch.float64)) ** 2
    # Squares of float32 have left its range outside of these bounds.
    return squared if 1e-20 < squared < math.inf else squared_norm([vector])
