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
