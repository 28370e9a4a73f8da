r"""How much delay a recursion with memory bears: the linear theory of gradient descent with stale gradients.

Near a minimum with a Hessian of eigenvalue :math:`h`, gradients of :math:`\tau` steps ago and a step size
:math:`\eta` make a loop of gain :math:`\kappa = \eta h` a step. With heavy-ball momentum :math:`\mu`

.. math:: x_{k+1} = x_k + \mu (x_k - x_{k-1}) - \kappa x_{k-\tau},

whose characteristic equation is :math:`(z - 1)(z - \mu) = -\kappa z^{1-\tau}`. The loop is stable up to the delay at
which a root meets the unit circle, :math:`z = e^{i\omega}`: absolute values give :math:`\omega`, and arguments

.. math::
    2 \sin\tfrac\omega2 \, |e^{i\omega} - \mu| = \kappa, \qquad
    \tau^* = \tfrac12 + \frac{\pi/2 - \arg(e^{i\omega} - \mu)}{\omega}.
"""

import math

import numpy as np
from scipy.optimize import brentq
from torch import Tensor


def allowed_delay(gain: float, momentum: float = 0.0) -> float:
    r"""The delay :math:`\tau^*`, in steps, up to which heavy ball is stable; infinite for a gain of 0.

    Args:
        gain: :math:`\kappa`, at most :math:`2 (1 + \mu)`, beyond which no delay is borne: the value is 0 there.
        momentum: :math:`\mu`, in [0, 1).

    Raises:
        ValueError: A negative gain, or a momentum outside [0, 1).
    """
    if gain < 0.0:
        raise ValueError(f"gain must be 0 or more, got {gain}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if gain == 0.0:
        return math.inf
    if gain >= 2.0 * (1.0 + momentum):
        return 0.0

    def excess(angle: float) -> float:
        return float(2.0 * math.sin(angle / 2.0) * abs(np.exp(1j * angle) - momentum) - gain)

    angle = float(brentq(excess, 0.0, math.pi))
    return max(0.0, 0.5 + (math.pi / 2.0 - float(np.angle(np.exp(1j * angle) - momentum))) / angle)


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


def lag_floor(gain: float, delay: float) -> float:
    r"""The least ``a`` of a running mean :math:`d_k = a g_k + (1 - a) d_{k-1}` of stale gradients.

    It lags :math:`(1 - a) / a` steps behind, and :math:`\tau + (1 - a) / a \le \tau^*(\kappa)` with what is borne
    without memory, :math:`\tau^* = \pi / (4 \arcsin(\kappa / 2)) - 1/2`, is

    .. math:: a \ge \frac{1}{1 + \max(0, \tau^*(\kappa) - \tau)} \qquad (0 \text{ for } \tau = 0).
    """
    if gain <= 0.0 or delay <= 0.0:
        return 0.0
    allowed = math.pi / (4.0 * math.asin(min(1.0, gain / 2.0))) - 0.5
    return 1.0 / (1.0 + max(0.0, allowed - delay))
