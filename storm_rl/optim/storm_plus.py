"""STORM+ (Levy, Kavis, Cevher, NeurIPS 2021)."""

from storm_rl.optim.recursion import Number, storm_plus_momentum, storm_plus_step_size
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer


class STORMPlus(RecursiveOptimizer):
    r"""STORM+: variance reduction by recursive momentum, with nothing to tune.

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
