"""STORM (Cutkosky, Orabona, NeurIPS 2019)."""

from typing import Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from storm_rl.optim.checks import nonnegative
from storm_rl.optim.recursion import Number, storm_momentum, storm_step_size
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer, SharedOptions


class STORM(RecursiveOptimizer):
    r"""STORM, the predecessor of STORM+, with three constants.

    With :math:`g_t = \nabla f(x_t; \xi_t)` and :math:`d_1 = g_1`,

    .. math::
        \eta_t &= k \, (w + \sum_{i \le t} \lVert g_i \rVert^2)^{-1/3} \\
        x_{t+1} &= x_t - \eta_t d_t \\
        a_{t+1} &= \min(1, c \, \eta_t^2) \\
        d_{t+1} &= \nabla f(x_{t+1}; \xi_{t+1}) + (1 - a_{t+1}) (d_t - \nabla f(x_t; \xi_{t+1}))

    (Algorithm 1 of arXiv 1905.10018). The theory's constants keep :math:`c \eta_t^2` below 1; the minimum, which the
    authors' code has too, serves other constants.

    Args:
        params: Parameters, or dicts that define groups.
        k: Scale of the step.
        w: Holds the first steps back; the larger, the smaller they are.
        c: Scale of the momentum; the larger, the faster old directions are forgotten. In theory of the order of the
            squared smoothness. The paper's experiments have ``k`` and ``w`` of 0.1 and search ``c`` over powers of ten;
            the authors' code has 100.
        lr: Multiplies :math:`\eta_t` in the update, not in :math:`a_{t+1}`.
        **options: See :class:`STORMPlus`.

    Raises:
        ValueError: If an option is negative, NaN or out of its range, or ``k`` or ``w`` is 0.
        TypeError: If an option is not a number, or a parameter is complex.
    """

    algorithm = "STORM"

    def __init__(
        self,
        params: ParamsT,
        k: float = 0.1,
        w: float = 0.1,
        c: float = 100.0,
        *,
        lr: float | Tensor = 1.0,
        **options: Unpack[SharedOptions],
    ) -> None:
        nonnegative("k", k, positive=True, most=1e6)
        nonnegative("w", w, positive=True)
        nonnegative("c", c)
        self._own_options = {"k": float(k), "w": float(w), "c": float(c)}
        super().__init__(params, lr, **options)

    def _momentum(self, noise_sum: Number) -> Number:
        options = self.param_groups[0]
        return storm_momentum(storm_step_size(noise_sum, options["k"], options["w"]), options["c"])

    def _step_size(self, noise_sum: Number, direction_sum: Number, momentum: Number) -> Number:
        options = self.param_groups[0]
        return storm_step_size(noise_sum, options["k"], options["w"])
