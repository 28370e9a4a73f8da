"""The recursion where gradients are of policies some updates old."""

import math

from torch import Tensor

from storm_rl.storm_plus_pg.recursion import PolicyRecursion


class DelayedRecursion(PolicyRecursion):
    r"""The recursion with less memory where gradients are some updates old and change much from update to update.

    Gradients of :math:`\tau` updates ago and a step under which the gradient changes by a share :math:`\kappa` make a
    loop, :math:`x_{k+1} = x_k - \kappa x_{k-\tau}` along an eigenvector of the Hessian. It is stable up to the delay

    .. math:: \tau^*(\kappa) = \frac{\pi}{4 \arcsin(\kappa / 2)} - \frac12.

    Memory that is not corrected, :math:`d_t = a g_t + (1 - a) d_{t-1}`, lags :math:`(1 - a) / a` updates behind in
    addition, and :math:`\tau + (1 - a) / a \le \tau^*` is a floor,

    .. math:: a_t \ge \frac{1}{1 + \max(0, \tau^*(\kappa) - \tau)} \qquad (0 \text{ for } \tau = 0).

    Where the correction :math:`d_{t-1} - g'_t` is exact, :math:`d_t` does not lag, and no floor is needed; here it is
    importance-weighted step by step, and biased. How this follows from Liu, Li, Shi, Zhou, Zhao, "Towards understanding
    acceleration tradeoff between momentum and asynchrony in nonconvex stochastic optimization" (NeurIPS 2018, arXiv
    1806.01660), and what it is worth, is on the documentation's page on delay.

    Args:
        step_memory: As of the base.

    Attributes:
        delay: :math:`\tau`, the mean age of what is learned from, in updates.
        loop_gain: :math:`\kappa` of the last update, along its previous direction.
        floor: The least :math:`a_t` that the last update could have.
    """

    def __init__(self, step_memory: float | None = None) -> None:
        super().__init__(step_memory)
        self.delay = 0.0
        self.loop_gain = 0.0
        self.floor = 0.0

    def next_momentum(self, parameters: Tensor, gradients: Tensor, at_previous: Tensor, used: float) -> float:
        """As the base class's, and not below the floor."""
        assert self.direction is not None
        self.loop_gain = loop_gain(self.direction, (gradients - at_previous).mean(dim=0))
        self.floor = momentum_floor(self.loop_gain, self.delay)
        return max(self.floor, super().next_momentum(parameters, gradients, at_previous, used))


def loop_gain(direction: Tensor, difference: Tensor) -> float:
    r"""The share of the last direction by which its own step has shortened the gradient; 0 where it has grown.

    :math:`\kappa = -d^T (g_t - g'_t) / d^T d` with :math:`d = d_{t-1}`. To first order :math:`g_t - g'_t = -\eta H
    M^{-1} d`, of which this is a Rayleigh quotient.

    Args:
        direction: :math:`d_{t-1}`, flat.
        difference: :math:`g_t - g'_t`, flat.
    """
    square = float(direction @ direction)
    return max(0.0, -float(direction @ difference) / square) if square > 0.0 else 0.0


def momentum_floor(gain: float, delay: float) -> float:
    """The floor of :class:`DelayedRecursion` for a loop gain and a delay in updates, neither negative."""
    if gain <= 0.0 or delay <= 0.0:
        return 0.0
    allowed = math.pi / (4.0 * math.asin(min(1.0, gain / 2.0))) - 0.5
    return 1.0 / (1.0 + max(0.0, allowed - delay))
