"""META-STORM and its variants (Liu, Nguyen, Nguyen, Ene, Nguyen, 2022)."""

from typing import Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from storm_rl.optim.checks import nonnegative
from storm_rl.optim.recursion import Number, meta_storm_momentum, meta_storm_step_size
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer, SharedOptions

VARIANTS = ("difference", "gradient", "none")


class MetaSTORM(RecursiveOptimizer):
    r"""META-STORM: as STORM+ without constants of the problem, and without its bound on function values.

    With :math:`g_t = \nabla f(x_t; \xi_t)`, :math:`d_1 = g_1` and :math:`p + 2q = 1`,

    .. math::
        b_t &= (b_0 + \sum_{i \le t} \lVert d_i \rVert^2)^p / a^q \\
        x_{t+1} &= x_t - d_t / b_t \\
        d_{t+1} &= \nabla f(x_{t+1}; \xi_{t+1}) + (1 - a_{t+1}) (d_t - \nabla f(x_t; \xi_{t+1}))

    where the variant chooses :math:`a` (arXiv 2209.14853):

    - ``"difference"``, META-STORM: :math:`a_{t+1} = (1 + \sum_{i \le t} \lVert \nabla f(x_i; \xi_i) - \nabla
      f(x_i; \xi_{i+1}) \rVert^2 / a_0)^{-2/3}`, the noise as measured at one point on two samples. It
      is known only with the next sample, so :math:`b_t` has :math:`a_t`, and :math:`a_1 = 1`.
    - ``"gradient"``, META-STORM-SG: :math:`a_{t+1} = (1 + \sum_{i \le t} \lVert g_i \rVert^2 / a_0)^{-2/3}`;
      :math:`b_t` has :math:`a_{t+1}`.
    - ``"none"``, META-STORM-NA, non-adaptive: :math:`a_{t+1} = (1 + t / a_0)^{-2/3}`; :math:`b_t` has :math:`a_{t+1}`.

    The places of :math:`a_0` and :math:`b_0` are those of the code of the paper's experiments; at their
    default 1 no other reading (powers of them) differs.

    Args:
        params: Parameters, or dicts that define groups.
        lr: The paper's :math:`\eta`, which multiplies the step.
        variant: ``"difference"``, ``"gradient"`` or ``"none"``. The first needs one more tensor a parameter.
        p: Exponent, above 1/6 and at most 1/2. 1/2 weighs the directions as AdaGrad does and the momentum by
            the power 1/4; 1/3 with ``"gradient"`` is nearest to STORM+.
        a_0: Scale of the noise sum; the larger, the longer :math:`a` stays near 1.
        b_0: Holds the first steps back; the larger, the smaller they are.
        **options: See :class:`STORMPlus`.

    Raises:
        ValueError: If an option is negative, NaN or out of its range, or the variant is unknown.
        TypeError: If an option is not a number, or a parameter is complex.
    """

    algorithm = "META-STORM"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        variant: str = "difference",
        p: float = 0.5,
        a_0: float = 1.0,
        b_0: float = 1.0,
        **options: Unpack[SharedOptions],
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        nonnegative("p", p)
        if not 1.0 / 6.0 < p <= 0.5:
            raise ValueError(f"p must be above 1/6 and at most 1/2, got {p!r}")
        nonnegative("a_0", a_0, positive=True)
        nonnegative("b_0", b_0, positive=True)
        self._own_options = {"variant": variant, "p": float(p), "a_0": float(a_0), "b_0": float(b_0)}
        super().__init__(params, lr, **options)

    def _looks_back(self) -> bool:
        return bool(self.param_groups[0]["variant"] == "difference")

    def _noise(self, squared_gradient: Number) -> Number:
        # x**0 is 1 for every x, 0 included: the sum counts steps.
        return squared_gradient**0 if self.param_groups[0]["variant"] == "none" else squared_gradient

    def _momentum(self, noise_sum: Number) -> Number:
        return meta_storm_momentum(noise_sum, self.param_groups[0]["a_0"])

    def _step_size(self, noise_sum: Number, direction_sum: Number, momentum: Number) -> Number:
        options = self.param_groups[0]
        return meta_storm_step_size(direction_sum, momentum, options["b_0"], options["p"])
