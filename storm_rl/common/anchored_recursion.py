r"""The recursion that all variance-reduced policy gradients share, and the rule that tells them apart.

.. math:: d_t = g(\theta_t; \tau_t) + (1 - a_t) \, (m - g_w(\tilde\theta; \tau_t))

``m`` is a remembered gradient estimate at the *anchor* :math:`\tilde\theta`, and ``g_w`` the importance-weighted
gradient at the anchor on the current batch. A large batch forgets the past (``a = 1``) and sets a new anchor. The
algorithms differ in what they remember and in when they take a large batch:

==========  ===========================  =============  ==================================
algorithm   remembered gradient, anchor  ``a``          next large batch
==========  ===========================  =============  ==================================
SVRPG       of the last large batch      0              by the ratio of its two steps
SRVR-PG     of the last step             0              every ``epoch_length`` steps
STORM-PG    of the last step             constant       never again
PAGE-PG     of the last step             0              by a coin
DEF-PG      of the last step             0              by a coin; weights both gradients
==========  ===========================  =============  ==================================
"""

from typing import Any

import torch
from torch import Tensor

from storm_rl.common.checks import check_range
from storm_rl.optim.recursion import recursive_direction

Vector = dict[str, Tensor]
"""Named tensors: parameters, or a gradient with respect to them."""


class AnchoredRecursion:
    """State of one recursion: the anchor, the gradient remembered there, and what the next batch is to be.

    Subclasses override `schedule` and, to keep the anchor of the last large batch, `moves_anchor`.

    Args:
        momentum: ``a`` of small batches, in [0, 1].

    Attributes:
        anchor: Parameters (and statistics) of the policy at which the second gradient is wanted; None at first.
        memory: The gradient remembered at the anchor; None at first.
        large_batch: Whether the next batch is a large one, whose gradient is taken alone.

    Raises:
        ValueError: If ``momentum`` is outside [0, 1].
    """

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
            point: The current policy's parameters (and statistics); kept as the anchor where the rule says so.
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
            names = list(gradient)
            mixed = recursive_direction(
                [gradient[name] for name in names],
                [self.memory[name] for name in names],
                [gradient_at_anchor[name] for name in names],
                self.momentum,
            )
            direction = dict(zip(names, mixed, strict=True))
            self.small_batches += 1
        if self.large_batch or self.moves_anchor:
            self.anchor = {name: values.detach().clone() for name, values in point.items()}
            self.memory = {name: values.detach().clone() for name, values in direction.items()}
        return direction

    def schedule(self, step_size: float) -> None:
        """Decide on `large_batch` once the step is done.

        Args:
            step_size: Effective size of the step: its norm over the norm of the (averaged) direction.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python only, so that it can be read with ``weights_only=True``."""
        return {
            "anchor": dict(self.anchor or {}),
            "memory": dict(self.memory or {}),
            "large_batch": self.large_batch,
            "small_batches": self.small_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Restore what `state_dict` gave; ``strict`` is there for SB3, which passes it."""
        self.anchor = {name: values.clone() for name, values in state_dict["anchor"].items()} or None
        self.memory = {name: values.clone() for name, values in state_dict["memory"].items()} or None
        self.large_batch = bool(state_dict["large_batch"])
        self.small_batches = int(state_dict["small_batches"])


def vector_norm(vector: Vector) -> float:
    """Euclidean norm over all tensors together, accumulated in float64."""
    return float(torch.stack([values.double().square().sum() for values in vector.values()]).sum().sqrt())
