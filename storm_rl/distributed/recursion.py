"""The recursion where gradients are of policies some updates old."""

from torch import Tensor

from storm_rl.storm_plus_pg.recursion import PolicyRecursion


class DelayedRecursion(PolicyRecursion):
    r"""The recursion with less memory, the more updates old its gradients are.

    For stochastic gradient descent with momentum :math:`\mu` on streaming PCA, near the solution, a delay of
    :math:`\tau \asymp (1 - \mu)^2 / ((\lambda_1 + C) \, \eta^{1/2 - \gamma})` updates, :math:`\gamma \in (0, 1/2]`,
    costs nothing as :math:`\eta \to 0` (Liu, Li, Shi, Zhou, Zhao, "Towards understanding acceleration tradeoff between
    momentum and asynchrony in nonconvex stochastic optimization", NeurIPS 2018, arXiv 1806.01660, theorem 2). Here
    :math:`1 - \mu` is :math:`a_t`. With the delay given, :math:`\gamma \to 0`, and 1 for :math:`\lambda_1 + C`, that is
    a floor,

    .. math:: a_t \ge \min(1, \sqrt{\tau} \, \ell_{t-1}^{1/4}).

    There :math:`\eta` is about the length of a step on the unit sphere. :math:`\ell` is the length of the last step in
    the policy's metric, :math:`\eta_t (d_t^T M_t^{-1} d_t)^{1/2}`, before it is bounded. At a fixed step size the exact
    floor of momentum is in proportion to the delay, and of a recursion whose correction is exact it is 0: see the
    documentation's page on delay, which also has what this floor saves.

    Args:
        step_memory: As of the base.

    Attributes:
        delay: :math:`\tau`, the mean age of what is learned from, in updates.
        last_step: :math:`\ell_{t-1}`.
    """

    def __init__(self, step_memory: float | None = None) -> None:
        super().__init__(step_memory)
        self.delay = 0.0
        self.last_step = 0.0

    @property
    def floor(self) -> float:
        """The least momentum :math:`a_t` of the next update."""
        return float(min(1.0, self.delay**0.5 * self.last_step**0.25))

    def next_momentum(self, parameters: Tensor, gradients: Tensor, at_previous: Tensor, used: float) -> float:
        """As the base class's, and not below the floor."""
        return max(self.floor, super().next_momentum(parameters, gradients, at_previous, used))

    def next_step_size(self, direction_square: float) -> float:
        """As the base class's, which the next floor depends on."""
        step_size = super().next_step_size(direction_square)
        self.last_step = step_size * max(direction_square, 0.0) ** 0.5
        return step_size
