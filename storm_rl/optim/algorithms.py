"""The optimisers side by side, told apart by their momentum and step size: STORM+, STORM and META-STORM."""

from typing import Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from storm_rl.optim.checks import nonnegative
from storm_rl.optim.recursion import Number, power, storm_plus_momentum, storm_plus_step_size
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer, SharedOptions

VARIANTS = ("difference", "gradient", "none")


class STORMPlus(RecursiveOptimizer):
    r"""STORM+ (Levy, Kavis, Cevher, NeurIPS 2021): variance reduction by recursive momentum, with nothing to tune.

    With :math:`g_t = \nabla f(x_t; \xi_t)` and :math:`d_1 = g_1`,

    .. math::
        a_{t+1} &= (1 + \sum_{i \le t} \lVert g_i \rVert^2)^{-2/3} \\
        \eta_t &= (\sum_{i \le t} \lVert d_i \rVert^2 / a_{i+1})^{-1/3} \\
        x_{t+1} &= x_t - \eta_t d_t \\
        d_{t+1} &= \nabla f(x_{t+1}; \xi_{t+1}) + (1 - a_{t+1}) (d_t - \nabla f(x_t; \xi_{t+1}))

    (Algorithm 1 of arXiv 2111.01040). Norms run over all parameter groups together. Each step evaluates the
    closure twice, at :math:`x_{t+1}` and at :math:`x_t`, on the same sample.

    Args:
        params: Parameters, or dicts that define groups.
        lr: Multiplies :math:`\eta_t`. The paper has 1; a scheduler may change it.
        momentum_floor: Least :math:`a_t` in the recursion of :math:`d`; the step size keeps the paper's :math:`a`. 0 is
            the paper. 0.1 forgets old directions, and the noise of the first sample, within some ten steps, where the
            paper's :math:`a` of a large loss is so small that they stay. A heuristic of this project, see its study of
            loss scales; a floor in the step size too was worse.
        weight_decay: Decoupled decay: parameters are multiplied by ``1 - lr * weight_decay`` before the step
            (Loshchilov, Hutter, arXiv 1711.05101). With ``lr = 1`` useful values are near 1e-4.
        per_coordinate: Keep the sums for each coordinate, as AdaGrad does, instead of one for all. A heuristic of the
            META-STORM paper's experiments (arXiv 2209.14853), without a proof. Needs two more tensors a parameter.
        maximize: Ascend. May differ between groups, which gives descent-ascent.
        replay: Give the second evaluation the random numbers of the first: torch's, Python's and numpy's global states.
            Without it dropout or augmentation make the two gradients differ in sample, and the variance is *not*
            reduced.

    Buffers of modules that the closure calls (BatchNorm's running statistics) change once a step, as by the
    evaluation at the current parameters. See the notes of the documentation page on memory and on closures.

    Raises:
        ValueError: If an option is negative, NaN or out of its range.
        TypeError: If an option is not a number, or a parameter is complex.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = STORMPlus(model.parameters())
        >>> inputs, targets = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure():
        ...     loss = torch.nn.functional.mse_loss(model(inputs), targets)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    algorithm = "STORM+"

    def _momentum(self, noise_sum: Number) -> Number:
        return storm_plus_momentum(noise_sum)

    def _direction_weight(self, squared_direction: Number, momentum: Number) -> Number:
        return squared_direction / momentum

    def _step_size(self, noise_sum: Number, direction_sum: Number, momentum: Number) -> Number:
        return storm_plus_step_size(direction_sum)


class STORM(RecursiveOptimizer):
    r"""STORM (Cutkosky, Orabona, NeurIPS 2019), the predecessor of STORM+, with three constants.

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
        step_size, c = self._step_size(noise_sum), float(self.param_groups[0]["c"])
        momentum = c * (step_size * step_size)
        return momentum.clamp(max=1.0) if isinstance(momentum, Tensor) else min(1.0, momentum)

    def _step_size(self, noise_sum: Number, *_: Number) -> Number:
        k, w = float(self.param_groups[0]["k"]), float(self.param_groups[0]["w"])
        return k * power(w + noise_sum, -1.0 / 3.0)


class MetaSTORM(RecursiveOptimizer):
    r"""META-STORM and its variants (Liu, Nguyen, Nguyen, Ene, Nguyen, 2022).

    As STORM+ without constants of the problem, and without its bound on function values.

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
        return power(1.0 + noise_sum / float(self.param_groups[0]["a_0"]), -2.0 / 3.0)

    def _step_size(self, noise_sum: Number, direction_sum: Number, momentum: Number) -> Number:
        p, b_0 = float(self.param_groups[0]["p"]), float(self.param_groups[0]["b_0"])
        return power(momentum, (1.0 - p) / 2.0) * power(b_0 + direction_sum, -p)  # a^q / b^p with p + 2q = 1
