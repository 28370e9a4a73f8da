r"""Leaving saddle points with gradients alone (Zhang, Li, NeurIPS 2021, arXiv 2111.14069)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from storm_rl.common.random_state import random_state, set_random_state
from storm_rl.optim.checks import checked_gradient, checked_loss, nonnegative
from storm_rl.optim.closure import Closure, watch_buffers
from storm_rl.optim.recursion import squared_norm


class Curvature(NamedTuple):
    """A direction of length 1 (all parameters one after the other), the curvature along it, the step's length or 0."""

    direction: Tensor
    value: float
    step: float


class SaddleEscape:
    r"""An optimiser's steps, and one along negative curvature where gradients are small.

    At a saddle gradients vanish, and steps with them. Which way leads down is in the Hessian, whose product with a
    direction is a difference of two gradients. The power method on :math:`I - \nabla^2 f / \ell` turns any direction
    towards the most negative curvature (the paper's Algorithm 1, its iterate scaled to length 1):

    .. math:: u \leftarrow v / \lVert v \rVert, \qquad v = u - \frac{\nabla f(x + r u) - \nabla f(x)}{\ell r}

    After a step of the optimiser that leaves a small gradient in ``p.grad``, it is run from where that step has led,
    all gradients on the closure's sample. If the curvature :math:`u^\top \nabla^2 f u` is at most :math:`-\gamma`,
    parameters move along :math:`u`, away from the gradient. The recursions of STORM+, STORM and META-STORM go on from
    there: they take gradients at the parameters as they are and at the former ones.

    Departures from the paper: a search ends as soon as the curvature is enough; :math:`\ell` is the largest
    :math:`\lVert \nabla f(x + r u) - \nabla f(x) \rVert / r` so far, there a bound that is known; :math:`\gamma` and
    the length, there :math:`\sqrt{\rho \epsilon}` and :math:`\frac14 \sqrt{\epsilon / \rho}` by the Hessian's Lipschitz
    constant :math:`\rho`, are arguments; the length is halved, at most ten times, until the step lowers the loss.

    Args:
        optimizer: One of :mod:`storm_rl.optim`, or of torch's.
        max_gradient_norm: Largest norm of a gradient that is small, :math:`\epsilon`.
        min_curvature: :math:`\gamma`.
        step_length: Length of a step.
        radius: :math:`r`, the distance of the two gradients.
        max_iterations: Gradients of one search, but for the first.
        wait: Steps from one search to the next: minima have small gradients too.

    Attributes:
        last: What the last search found; None before the first.
        escapes: Number of steps along negative curvature.

    Raises:
        ValueError: An argument outside its range, or parameter groups of which only some maximise. By a search: a loss
            or gradient that is NaN or infinite; parameters are then as the optimiser left them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_gradient_norm: float,
        min_curvature: float,
        step_length: float = 0.1,
        radius: float = 1e-2,
        max_iterations: int = 100,
        wait: int = 20,
    ) -> None:
        positive = {"max_gradient_norm": max_gradient_norm, "min_curvature": min_curvature, "step_length": step_length}
        for name, value in {**positive, "radius": radius, "max_iterations": max_iterations}.items():
            nonnegative(name, value, positive=True)
        nonnegative("wait", wait)
        signs = {-1.0 if group.get("maximize") else 1.0 for group in optimizer.param_groups}
        if len(signs) > 1:
            raise ValueError("some parameter groups maximise and others do not: a saddle may be what is looked for")
        self.optimizer, self.max_gradient_norm, self.min_curvature = optimizer, max_gradient_norm, min_curvature
        self.step_length, self.radius, self.max_iterations, self.wait = step_length, radius, max_iterations, wait
        self.last: Curvature | None = None
        self.escapes = 0
        self._sign, self._since_search = signs.pop(), wait
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor | float:
        """The optimiser's step, and what it returns; then a search if the gradient was small."""
        loss: Tensor | float = self.optimizer.step(closure)  # type: ignore[arg-type]
        self._since_search += 1
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._since_search > self.wait and math.sqrt(squared_norm(gradients)) <= self.max_gradient_norm:
            self._since_search = 0
            self.last = self.search(closure)
            self.escapes += self.last.step > 0.0
        return loss

    @torch.no_grad()
    def search(self, closure: Closure) -> Curvature:
        """Search from the parameters as they are, and step if the curvature is enough; all else is left as it was."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients, state = [p.grad for p in parameters], random_state({p.device for p in parameters})
        start = reached = torch.cat([p.flatten() for p in parameters])

        def move(point: Tensor) -> None:
            for p, values in zip(parameters, torch.split(point, [p.numel() for p in parameters]), strict=True):
                p.copy_(values.view_as(p))

        def evaluate(point: Tensor) -> tuple[float, Tensor]:
            move(point)
            set_random_state(state)
            for p in parameters:
                p.grad = None
            with torch.enable_grad():
                loss = float(checked_loss(closure(), "SaddleEscape"))
            parts = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
            gradient = torch.cat([checked_gradient(part, "SaddleEscape").flatten() for part in parts])
            if not gradient.isfinite().all():
                raise ValueError("SaddleEscape: a gradient is NaN or infinite; parameters were left as they were")
            return self._sign * loss, self._sign * gradient

        with watch_buffers() as buffers:
            try:
                loss, gradient = evaluate(start)
                direction = torch.randn(len(start), generator=self._generator).to(start)
                change, curvature, smoothness, step = torch.zeros_like(start), 0.0, 1.0, 0.0
                for iteration in range(self.max_iterations):
                    turned = direction - change / smoothness
                    if not turned.any():  # All curvature is that of this direction.
                        break
                    direction = turned / turned.norm()
                    change = (evaluate(start + self.radius * direction)[1] - gradient) / self.radius
                    curvature, norm = float(direction @ change), float(change.norm())
                    smoothness = max(smoothness, norm) if iteration else norm
                    if curvature <= -self.min_curvature or norm == 0.0:
                        break
                direction *= -1.0 if direction @ gradient > 0.0 else 1.0
                for halvings in range(11 if curvature <= -self.min_curvature else 0):
                    length = self.step_length / 2**halvings
                    if evaluate(start + length * direction)[0] < loss:
                        step, reached = length, start + length * direction
                        break
                return Curvature(direction, curvature, step)
            finally:
                move(reached)
                buffers.restore()
                set_random_state(state)
                for p, before in zip(parameters, gradients, strict=True):
                    p.grad = before
