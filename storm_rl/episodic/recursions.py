r"""The recursion that all variance-reduced policy gradients share, and the rule that tells them apart.

.. math:: d_t = g(\theta_t; \tau_t) + (1 - a_t) \, (m - g_w(\tilde\theta; \tau_t))

``m`` is a remembered gradient estimate at the *anchor* :math:`\tilde\theta`, and ``g_w`` the importance-weighted
gradient at the anchor on the current batch. A large batch forgets the past (``a = 1``) and sets a new anchor. The
algorithms differ in what they remember, of the last step or, for SVRPG, of the last large batch; in ``a``, which is 0
but for STORM-PG; and in when they take a large batch.
"""

from typing import ClassVar

import torch
from torch import Tensor

from storm_rl.common.checks import PlainState, check_integer, check_range
from storm_rl.optim.recursion import update_direction

Vector = dict[str, Tensor]
"""Named tensors: parameters, or a gradient with respect to them."""


class AnchoredRecursion(PlainState):
    """State of one recursion: the anchor, the gradient remembered there, and what the next batch is to be.

    Subclasses override `schedule` and, to keep the anchor of the last large batch, `moves_anchor`. ``momentum`` is
    the ``a`` of small batches, in [0, 1].

    Attributes:
        anchor: Parameters (and statistics) of the policy at which the second gradient is wanted; None at first.
        memory: The gradient remembered at the anchor; None at first.
        large_batch: Whether the next batch is a large one, whose gradient is taken alone.

    Raises:
        ValueError: If ``momentum`` is outside [0, 1].
    """

    state_names: ClassVar[tuple[str, ...]] = ("anchor", "memory", "large_batch", "small_batches")
    moves_anchor = True

    def __init__(self, momentum: float = 0.0) -> None:
        check_range("momentum", momentum, 0.0, 1.0)
        self.momentum = momentum
        self.restart()

    def restart(self) -> None:
        """Forget everything: the next batch is a large one. Needed when the task or the policy is exchanged."""
        self.anchor: Vector | None = None
        self.memory: Vector | None = None
        self.large_batch = True
        self.small_batches = 0

    def direction(self, point: Vector, gradient: Vector, gradient_at_anchor: Vector | None = None) -> Vector:
        """The direction ``d_t``, and remember what the next step needs.

        Args:
            point: The current policy's parameters (and statistics); the next anchor where the rule says so.
            gradient: ``g(theta_t; tau_t)``.
            gradient_at_anchor: ``g_w(anchor; tau_t)`` on the same batch; needed unless `large_batch`.

        Raises:
            ValueError: If a small batch comes without an anchor or without the gradient there.
        """
        if self.large_batch:
            direction, self.small_batches = gradient, 0
        else:
            if self.memory is None or gradient_at_anchor is None:
                raise ValueError("a small batch needs an anchor and the gradient there; begin with a large batch")
            direction = {name: self.memory[name].clone() for name in gradient}
            at_anchor = [gradient_at_anchor[name] for name in gradient]
            update_direction(list(direction.values()), list(gradient.values()), at_anchor, float(self.momentum))
            self.small_batches += 1
        if self.large_batch or self.moves_anchor:
            self.anchor = {name: values.detach().clone() for name, values in point.items()}
            self.memory = {name: values.detach().clone() for name, values in direction.items()}
        return direction

    def schedule(self, step_size: float) -> None:
        """Decide on `large_batch` after a step; ``step_size`` is its norm over that of the averaged direction."""
        raise NotImplementedError


class SnapshotRecursion(AnchoredRecursion):
    r"""The anchor is the last snapshot and stays there until a new one pays.

    A snapshot is due when :math:`\alpha_{FG} / N > \alpha_{SI} / B`: the step of the last large batch was longer,
    for each trajectory that it took, than the step of the last small one (section 5.2 of the paper); and at the
    latest after ``max_sub_iterations`` small batches. N is ``batch_size``, B ``mini_batch_size``.
    """

    state_names = (*AnchoredRecursion.state_names, "snapshot_step_size")
    moves_anchor = False

    def __init__(self, batch_size: int, mini_batch_size: int, max_sub_iterations: int) -> None:
        check_integer("max_sub_iterations", max_sub_iterations, 1)
        self.batch_size = batch_size
        self.mini_batch_size = mini_batch_size
        self.max_sub_iterations = max_sub_iterations
        self.snapshot_step_size = 0.0
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """Compare the two Adams' effective step sizes."""
        if self.large_batch:
            self.snapshot_step_size, self.large_batch = step_size, False
            return
        exhausted = self.small_batches >= self.max_sub_iterations
        better = self.snapshot_step_size / self.batch_size > step_size / self.mini_batch_size
        self.large_batch = exhausted or better


class EpochRecursion(AnchoredRecursion):
    """SARAH's recursion: a large batch, then ``epoch_length - 1`` small ones, each corrected at the step before.

    Of length 1 it is the plain gradient of large batches.
    """

    def __init__(self, epoch_length: int) -> None:
        check_integer("epoch_length", epoch_length, 1)
        self.epoch_length = epoch_length
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """A new epoch after ``epoch_length`` updates."""
        self.large_batch = self.small_batches >= self.epoch_length - 1


class MomentumRecursion(AnchoredRecursion):
    """STORM's recursion with constant momentum: one large batch at the start, small ones ever after."""

    def schedule(self, step_size: float) -> None:
        """Small batches only."""
        self.large_batch = False


class CoinRecursion(AnchoredRecursion):
    """SARAH's recursion without epochs: the next batch is large with probability ``probability``, in (0, 1]."""

    def __init__(self, probability: float) -> None:
        check_range("probability", probability, 0.0, 1.0, low_included=False)
        self.probability = probability
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """Toss the coin, with torch's seeded generator."""
        self.large_batch = bool(torch.rand(()) < self.probability)


def vector_norm(vector: Vector) -> float:
    """Euclidean norm over all tensors together, accumulated in float64."""
    return float(torch.stack([values.double().square().sum() for values in vector.values()]).sum().sqrt())
