r"""Log-probabilities and gradients of one batch at two or more parameter vectors.

Every variance-reduced policy gradient needs :math:`\sum_k A_k \nabla \log \pi_\theta(a_k | s_k)` at the
current and at older parameters, on the same data, where the coefficients of one set of parameters (importance
weights) depend on the log-probabilities of the other. So the work comes in two halves: log-probabilities at
all points, then one backward pass with any coefficients. Stacked parameters and `torch.vmap` do both halves
for all points at once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]


class LogProbAtPoints:
    """Log-probabilities of a batch at several parameter vectors, and gradients of their linear combinations.

    Args:
        log_prob: Function of named parameters (for instance by `torch.func.functional_call`) that returns
            log-probabilities, any shape. With ``vectorised`` it must not look at values (no ``if`` on a
            tensor).
        points: Parameter vectors, each with the same names and shapes. They are copied, and not changed.
        vectorised: Evaluate all points in one pass over stacked parameters; otherwise one after the other,
            which is the plain form that the first is tested against.
        with_respect_to: Names whose gradients are wanted; the others (observation statistics, say) are only part of
            the point. None: all.

    Attributes:
        values: Log-probabilities, detached, shape ``(n_points, *shape)``.

    Raises:
        ValueError: If there is no point, or names or shapes differ between points.

    Example:
        >>> batch = torch.tensor([1.0, 2.0])
        >>> points = [{"theta": torch.tensor(0.5)}, {"theta": torch.tensor(1.5)}]
        >>> both = LogProbAtPoints(lambda parameters: -0.5 * (batch - parameters["theta"]) ** 2, points)
        >>> [gradient["theta"].item() for gradient in both.gradients(torch.ones(2, 2))]
        [2.0, 0.0]
    """

    def __init__(
        self,
        log_prob: Callable[[dict[str, Tensor]], Tensor],
        points: Sequence[Parameters],
        vectorised: bool = True,
        with_respect_to: Collection[str] | None = None,
    ) -> None:
        self._stacked = stack_parameters(points)
        self._n_points = len(points)
        self._names = [name for name in self._stacked if with_respect_to is None or name in with_respect_to]
        for name in self._names:
            self._stacked[name].requires_grad_(True)
        with torch.enable_grad():
            if vectorised:
                # Dropout and sampled noise differ between points, as they would in separate passes.
                self._attached = torch.vmap(log_prob, randomness="different")(self._stacked)
            else:
                self._attached = torch.stack([log_prob(self._point(i)) for i in range(self._n_points)])
        self.values = self._attached.detach()

    def gradients(self, coefficients: Tensor) -> list[dict[str, Tensor]]:
        r"""``sum_k coefficients[p, k] grad log_prob_k`` at each point ``p``; zeros for parameters not
        involved.

        May be called again with other coefficients.

        Raises:
            ValueError: If ``coefficients`` have not the shape of ``values``.
        """
        if coefficients.shape != self.values.shape:
            raise ValueError(
                f"coefficients have shape {tuple(coefficients.shape)}, the log-probabilities {tuple(self.values.shape)}"
            )
        leaves = [self._stacked[name] for name in self._names]
        stacked = torch.autograd.grad(
            self._attached,
            leaves,
            coefficients.to(self._attached.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        filled = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, stacked, strict=True)
        ]
        return [
            {name: gradient[i] for name, gradient in zip(self._names, filled, strict=True)}
            for i in range(self._n_points)
        ]

    def _point(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self._stacked.items()}


def stack_parameters(points: Sequence[Parameters]) -> dict[str, Tensor]:
    """Named parameters of several points as named stacks, ``(n_points, *shape)``; detached copies.

    Raises:
        ValueError: If there is no point, or names or shapes differ between points.
    """
    if not points:
        raise ValueError("at least one parameter vector is needed")
    shapes = {name: values.shape for name, values in points[0].items()}
    for point in points[1:]:
        if {name: values.shape for name, values in point.items()} != shapes:
            raise ValueError("the parameter vectors differ in names or shapes; anchors must come from this policy")
    return {name: torch.stack([point[name].detach() for point in points]) for name in points[0]}


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A detached copy of the module's trainable parameters by name: a point to come back to."""
    return {name: values.detach().clone() for name, values in module.named_parameters() if values.requires_grad}
