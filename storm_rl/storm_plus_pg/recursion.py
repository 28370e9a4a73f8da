"""The recursion over policy gradients: what is remembered between two updates, and how strongly."""

from typing import Any, Literal

import torch
from torch import Tensor

from storm_rl.optim.recursion import (
    recursive_direction,
    squared_norm,
    storm_plus_momentum,
    storm_plus_step_size,
)

Momentum = Literal["storm+"] | float


class PolicyRecursion:
    r"""``d_t``, ``a_t`` and ``eta_t`` for flat policy gradients (equations in :mod:`storm_rl.optim.recursion`).

    Args:
        momentum: ``"storm+"`` for the paper's :math:`a_t`, or a constant in (0, 1] (STORM-PG, Yuan et al. 2020);
            1 forgets the past: plain policy gradient with the step size of STORM+.
        momentum_floor: Lower bound of the paper's ``a_t``, in [0, 1]; 0 leaves the paper as it is.

    Raises:
        ValueError: A momentum or floor outside its range.
    """

    def __init__(self, momentum: Momentum, momentum_floor: float) -> None:
        if momentum != "storm+" and (isinstance(momentum, str) or not 0.0 < momentum <= 1.0):
            raise ValueError(f'momentum must be "storm+" or a number in (0, 1], got {momentum!r}')
        if not 0.0 <= momentum_floor <= 1.0:
            raise ValueError(f"momentum_floor must lie in [0, 1], got {momentum_floor!r}")
        self.rule = momentum
        self.momentum_floor = momentum_floor
        self.direction: Tensor | None = None
        self.previous_parameters: Tensor | None = None
        self.sum_squared_gradients = 0.0
        self.sum_weighted_directions = 0.0

    @property
    def momentum(self) -> float:
        """``a_{t+1}`` from the gradients seen so far; 1 before the first."""
        if self.rule == "storm+":
            return max(self.momentum_floor, storm_plus_momentum(self.sum_squared_gradients))
        return float(self.rule) if self.direction is not None else 1.0

    def propose(self, gradient: Tensor, gradient_at_previous: Tensor | None) -> Tensor:
        """``d_t`` from ``g_t`` and the weighted gradient at the previous parameters; changes nothing."""
        if self.direction is None or gradient_at_previous is None:
            return gradient
        (direction,) = recursive_direction([gradient], [self.direction], [gradient_at_previous], self.momentum)
        return direction

    def accept(self, gradient: Tensor, direction: Tensor, direction_square: float, parameters: Tensor) -> float:
        """Take ``d_t`` into the sums and give ``eta_t``.

        Args:
            gradient: ``g_t``, flat.
            direction: ``d_t``, flat.
            direction_square: ``||d_t||^2`` in the metric of the step.
            parameters: ``theta_t``, flat, copied: the previous parameters of the next update.
        """
        self.sum_squared_gradients += squared_norm([gradient])
        self.direction = direction
        self.previous_parameters = parameters.clone()
        self.sum_weighted_directions += direction_square / self.momentum
        return storm_plus_step_size(self.sum_weighted_directions)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and floats only, so that it loads with ``weights_only=True``."""
        return {
            "direction": self.direction,
            "previous_parameters": self.previous_parameters,
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
        self.sum_squared_gradients = float(state["sum_squared_gradients"])
        self.sum_weighted_directions = float(state["sum_weighted_directions"])
