r"""Implicit MAML: a start from which few natural steps solve a task (Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019).

A task's *inner problem* is to lower its loss near the start :math:`\theta`, and the start is learned for what comes of
it (arXiv 1909.04630, where :math:`D = \frac12 \lVert \phi - \theta \rVert^2`, equation 4):

.. math::
    \phi_i^*(\theta) = \arg\min_\phi \; L_i(\phi) + \lambda D_i(\theta, \phi), \qquad
    \min_\theta \; \frac1k \sum_i \tilde L_i(\phi_i^*(\theta))

Here :math:`L_i` is minus the return of a policy, and :math:`D_i` the mean of :math:`KL(\pi_\theta || \pi_\phi)` over
states of the task, with the metric's damping :math:`\delta` as :math:`\frac\delta2 \lVert \phi - \theta \rVert^2`. At
:math:`\phi^*` the inner gradient vanishes, and so does its change with :math:`\theta`: with :math:`H` the Hessian of
:math:`L_i` and subscripts for derivatives,

.. math::
    \Big(\frac{d \phi^*}{d \theta}\Big)^\top \nabla \tilde L = -\lambda D_{\theta\phi}
    (H + \lambda D_{\phi\phi})^{-1} \nabla \tilde L(\phi^*)

To second order :math:`D_{\phi\phi} = -D_{\theta\phi} = M`, the damped Fisher matrix, and this is the paper's
:math:`(I + \frac1\lambda H M^{-1})^{-1} \nabla \tilde L`. How :math:`\phi^*` was found does not matter, and of the way
to it nothing is kept.

Tasks are side by side: parameters are ``(k, n)``, a row for each, losses and divergences ``(k,)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.task_rollouts import Policies, Rollouts, collect
from storm_rl.storm_plus_pg.metric import Product, conjugate_gradient, fisher_vector_product

# Of a task's Hessian, in the place of the share before it where that leaves too little curvature.
SHARES = (0.5, 0.25, 0.125, 0.0)


class InnerProblems(NamedTuple):
    """The inner problems of ``k`` tasks."""

    loss: Callable[[Tensor], Tensor]
    """From parameters ``(k, n)`` to ``L_i``, ``(k,)``; the loss of a row depends on this row alone."""
    divergence: Callable[[Tensor, Tensor], Tensor]
    """From start and parameters, both ``(k, n)``, to ``D_i``, ``(k,)``: least, and 0, where they are equal."""


class ImplicitGradients(NamedTuple):
    """The gradients of the tasks' losses in the start, by `implicit_gradients`."""

    value: Tensor
    """``(k, n)``."""
    share: Tensor
    """Of the loss's Hessian that was taken in, ``(k,)``; 1 in all rows without a margin."""


def curvature_product(values: Tensor, parameters: Tensor) -> Product:
    """Products with the Hessians of ``k`` values with graph, each in its row of ``parameters``: ``(k, n) -> (k, n)``.

    Of a KL divergence at equal policies they are the library's Fisher-vector products.
    """
    product = fisher_vector_product(values.sum(), [parameters])
    return lambda vectors: product(vectors.reshape(-1)).reshape(vectors.shape)


def conjugate_gradients(
    product: Product, target: Tensor, max_steps: int, start: Tensor | None = None, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """The library's `conjugate_gradient` for ``k`` systems side by side, which may be indefinite.

    A row stops as there, or before the first direction whose curvature is not positive (Steihaug, 1983): what it has
    come to is kept. Sampled Hessians need this, as do inner problems that are not at a minimum yet.

    Returns:
        The solutions ``(k, n)``, and in which rows a curvature was not positive, ``(k,)``.
    """
    solution = torch.zeros_like(target) if start is None else start.clone()
    residual = target.clone() if start is None else target - product(start)
    direction = residual.clone()
    square = residual.square().sum(dim=1)
    threshold = tolerance * target.square().sum(dim=1)
    indefinite = torch.zeros_like(square, dtype=torch.bool)
    for _ in range(max_steps):
        active = (square > threshold) & ~indefinite
        if not bool(active.any()):
            break
        image = product(direction)
        curvature = (direction * image).sum(dim=1)
        indefinite |= active & (curvature <= 0.0)
        active &= ~indefinite
        step = torch.where(active, square / curvature, 0.0)[:, None]
        solution = solution + step * direction
        residual = residual - step * image
        new_square = residual.square().sum(dim=1)
        direction = torch.where(active[:, None], residual + (new_square / square)[:, None] * direction, 0.0)
        square = torch.where(active, new_square, 0.0)
    return solution, indefinite


def inner_gradients(problems: InnerProblems, start: Tensor, parameters: Tensor, strength: float) -> Tensor:
    r""":math:`\nabla L + \lambda \nabla_\phi D(\theta, \phi)`, ``(k, n)``: 0 where the inner problems are solved."""
    at = parameters.detach().requires_grad_(True)
    values = problems.loss(at) + (strength * problems.divergence(start.detach(), at) if strength else 0.0)
    return torch.autograd.grad(values.sum(), at)[0]


def proximal_step(
    problems: InnerProblems,
    start: Tensor,
    parameters: Tensor,
    strength: float,
    rate: float = 1.0,
    max_kl: float = math.inf,
    max_steps: int = 10,
) -> Tensor:
    r"""A natural step on the inner problems: the parameters after it, ``(k, n)``.

    .. math:: \phi - \frac{\alpha}{\lambda} M^{-1} (\nabla L(\phi) + \lambda \nabla_\phi D(\theta, \phi))

    with :math:`M` the Hessian of :math:`D(\phi, \cdot)` at :math:`\phi`: the damped Fisher matrix. Its fixed points
    solve the inner problems.

    Args:
        problems: The inner problems.
        start: :math:`\theta` in each row.
        parameters: :math:`\phi`.
        strength: :math:`\lambda`. 0: without the proximal term, a natural step of exactly ``max_kl``.
        rate: :math:`\alpha`; 1 is Newton's step where the loss is linear in the policy's natural parameters.
        max_kl: The step is shortened until its quadratic KL, with the damping, is at most this, as STORM+PG's.
        max_steps: Conjugate-gradient iterations.

    Raises:
        ValueError: Neither a proximal term nor a finite ``max_kl`` says how long the step is.
    """
    if strength < 0.0 or not max_kl > 0.0:
        raise ValueError(f"strength must be 0 or more and max_kl positive, got {strength} and {max_kl}")
    if strength == 0.0 and math.isinf(max_kl):
        raise ValueError("without a proximal term (strength=0) max_kl must be finite: it is the length of the step")
    gradients = inner_gradients(problems, start, parameters, strength)
    at = parameters.detach().requires_grad_(True)
    metric = curvature_product(problems.divergence(parameters.detach(), at), at)
    direction, _ = conjugate_gradients(metric, -gradients, max_steps)
    square = (direction * metric(direction)).sum(dim=1, keepdim=True).clamp(min=1e-30)
    longest = (2.0 * max_kl / square).sqrt()
    size = longest if strength == 0.0 else longest.clamp(max=rate / strength)
    return (parameters + size * direction).detach()


def implicit_gradients(
    problems: InnerProblems,
    start: Tensor,
    solution: Tensor,
    outer_gradients: Tensor,
    strength: float,
    max_steps: int = 10,
    margin: float = 0.0,
) -> ImplicitGradients:
    r"""The gradient in the start of a loss at the inner problems' solutions, exact if they are solutions.

    Two systems by conjugate gradients. The first, :math:`\lambda D_{\phi\phi} y_0 = \nabla \tilde L`, knows the metric
    alone: its solution gives :math:`\nabla \tilde L` back where D is quadratic, which is first-order MAML. From there
    the second has the Hessian of the loss as well.

    A sampled Hessian may be far off, and indefinite. With a margin a task whose curvature falls below that share of the
    metric's, in a direction of conjugate gradients, is solved again with a half, a quarter, an eighth of the loss's
    Hessian; what is left has the first-order gradient. (The authors' code divides that Hessian by
    :math:`\lambda + 10` in place of :math:`\lambda`, for all tasks.)

    Args:
        problems: The inner problems, as at their solutions.
        start: :math:`\theta` in each row, ``(k, n)``.
        solution: :math:`\phi_i^*`, ``(k, n)``.
        outer_gradients: :math:`\nabla \tilde L_i(\phi_i^*)`, ``(k, n)``.
        strength: :math:`\lambda`, positive.
        max_steps: Conjugate-gradient iterations of each system.
        margin: In [0, 1). 0: the whole Hessian, and conjugate gradients stop where it is not positive.

    Raises:
        ValueError: A margin outside its range, or a strength that is not positive.
    """
    if not strength > 0.0:
        raise ValueError(f"strength must be positive, got {strength}: it is what ties the solutions to the start")
    if not 0.0 <= margin < 1.0:
        raise ValueError(f"margin must be in [0, 1), got {margin}")
    origin, at = start.detach().requires_grad_(True), solution.detach().requires_grad_(True)
    metric = curvature_product(strength * problems.divergence(solution.detach(), at), at)
    hessian = curvature_product(problems.loss(at), at)
    proximal = curvature_product(strength * problems.divergence(start.detach(), at), at)
    first, _ = conjugate_gradients(metric, outer_gradients, max_steps)
    share, solved = torch.ones_like(outer_gradients[:, :1]), first
    for next_share in SHARES:
        least = torch.full_like(share, math.inf)

        def whole(vectors: Tensor, share: Tensor = share, least: Tensor = least) -> Tensor:
            image = share * hessian(vectors) + proximal(vectors)
            if margin > 0.0:
                curvature, scale = ((vectors * each).sum(dim=1, keepdim=True) for each in (image, metric(vectors)))
                # Rows that have stopped are 0 / 0.
                torch.fmin(least, curvature / scale, out=least)
            return image

        solved, indefinite = conjugate_gradients(whole, outer_gradients, max_steps, first)
        fails = indefinite[:, None] | (least < margin)
        if margin == 0.0 or not bool(fails.any()):
            break
        share = torch.where(fails, next_share, share)
    pull = torch.autograd.grad(strength * problems.divergence(origin, at).sum(), at, create_graph=True)[0]
    value = -torch.autograd.grad((pull * solved).sum(), origin)[0]
    value = torch.where(share > 0.0, value, outer_gradients)
    return ImplicitGradients(value, share[:, 0])


def lvc_losses(log_prob: Tensor, behaviour_log_prob: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""Minus the mean of :math:`\frac{\pi_\phi}{\mu} A` over the steps of each task, ``(k,)``; arguments ``(k, b)``.

    The *low variance curvature* surrogate (Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP", ICLR 2019). At
    :math:`\phi = \mu` its gradient is the policy gradient. Its Hessian is that of the return less the terms in which
    a step's score meets the scores of the steps before it: these change where later actions are taken.
    """
    ratios = (log_prob - behaviour_log_prob).exp()
    return -torch.where(mask, ratios * advantages, 0.0).sum(dim=1) / mask.sum(dim=1)


def dice_losses(log_prob: Tensor, rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    r"""Minus the mean return of each task's episodes, ``(k,)``, all of whose derivatives are unbiased.

    DiCE (Foerster et al., ICML 2018): the reward of step h is multiplied by :math:`\prod_{l \le h} \pi_\phi / \mu`,
    whose value at :math:`\phi = \mu` is 1. Arguments are ``(k, m, t)``. Unlike that of `lvc_losses` its Hessian is
    right everywhere, and has a variance that grows with the horizon.
    """
    log_prob = torch.where(mask, log_prob, 0.0)
    boxes = (log_prob - log_prob.detach()).cumsum(dim=2).exp()
    discounts = gamma ** torch.arange(rewards.shape[2], dtype=rewards.dtype)
    return -torch.where(mask, boxes * rewards * discounts, 0.0).sum(dim=2).mean(dim=1)


@dataclass
class ImplicitMAML:
    r"""Learns the start of policies that adapt by `proximal_step`, with fresh episodes for each step.

    The inner losses are `lvc_losses` of standardised advantages; the start moves along the natural gradient of the
    mean loss after adaptation, by a constant KL. With ``inner_steps=0`` it is a policy gradient on the mixture of the
    tasks: a *joint* policy.

    Args:
        policies: The networks.
        start: Their parameters, ``(n,)``; moves with each `update`.
        seed: Of actions and of the metric's states.
        horizon: Steps of an episode.
        inner_steps: Steps of an adaptation.
        implicit: False: first-order MAML, which moves the start by the gradient at the adapted parameters as it is.
        strength: :math:`\lambda`, in units of the reward scale.
        rate: :math:`\alpha` of the inner steps.
        inner_kl: Largest KL of an inner step, in nats.
        outer_kl: KL of a step of the start, in nats.
        damping: :math:`\delta`.
        margin: As of `implicit_gradients`.
        max_steps: Conjugate-gradient iterations.
        n_states: States of each task in the metric.

    Attributes:
        env_steps: Taken so far, in all environments.
    """

    policies: Policies
    start: Tensor
    seed: int = 0
    horizon: int = 200
    reward_scale: float = 1.0
    inner_steps: int = 3
    implicit: bool = True
    strength: float = 0.3
    rate: float = 1.0
    inner_kl: float = 0.3
    outer_kl: float = 0.02
    damping: float = 0.1
    margin: float = 0.5
    max_steps: int = 10
    n_states: int = 200

    def __post_init__(self) -> None:
        if self.inner_steps < 0:
            raise ValueError(f"inner_steps must be 0 or more, got {self.inner_steps}")
        self.env_steps = 0
        self._actions = np.random.default_rng(self.seed)
        self._states = torch.Generator().manual_seed(self.seed)

    def adapt(self, env: VecEnv, n_tasks: int, steps: int, strength: float) -> tuple[Tensor, list[Rollouts]]:
        """Adapt to the tasks of ``env``: parameters after ``steps`` steps, ``(k, n)``, and the episodes before each.

        The episodes of the last parameters come last: there are ``steps + 1``. A ``strength`` of 0 leaves the proximal
        term out.
        """
        parameters = start = self.start.expand(n_tasks, -1)
        rollouts = [self._collect(env, parameters)]
        for _ in range(steps):
            problems = self.inner_problems(rollouts[-1])
            parameters = proximal_step(problems, start, parameters, strength, self.rate, self.inner_kl, self.max_steps)
            rollouts.append(self._collect(env, parameters))
        return parameters, rollouts

    def inner_problems(self, rollouts: Rollouts) -> InnerProblems:
        """As these episodes show them."""
        states = rollouts.states(self.n_states, self._states)

        def loss(parameters: Tensor) -> Tensor:
            log_prob = self.policies.distribution(parameters, rollouts.observations).log_prob(rollouts.actions)
            return lvc_losses(log_prob, rollouts.log_prob, rollouts.advantages, rollouts.mask)

        def divergence(start: Tensor, parameters: Tensor) -> Tensor:
            damped = 0.5 * self.damping * (parameters - start).square().sum(dim=1)
            return self.policies.kl(start, parameters, states) + damped

        return InnerProblems(loss, divergence)

    def update(self, env: VecEnv, n_tasks: int) -> dict[str, float]:
        """A step of the start on the tasks of ``env``; what is worth knowing about it.

        Gives the mean return before and after adaptation, and the mean share of the tasks' Hessians that was taken in.
        """
        adapted, rollouts = self.adapt(env, n_tasks, self.inner_steps, self.strength)
        first, last = rollouts[0], rollouts[-1]
        start = self.start.expand(n_tasks, -1)
        share = 0.0
        # Gradient and Hessian of the same episodes would have errors in common.
        outer = self.inner_problems(last.part(first=True) if self._needs_hessian else last)
        gradients = inner_gradients(outer, start, adapted, 0.0)
        if self._needs_hessian:
            problems = self.inner_problems(last.part(first=False))
            found = implicit_gradients(problems, start, adapted, gradients, self.strength, self.max_steps, self.margin)
            gradients, share = found.value, float(found.share.mean())
        self._move(first, gradients.mean(dim=0))
        return {
            "before": float(first.returns.mean()),
            "after": float(last.returns.mean()),
            "share": share,
        }

    @property
    def _needs_hessian(self) -> bool:
        return self.implicit and self.inner_steps > 0

    def _move(self, rollouts: Rollouts, gradient: Tensor) -> None:
        at = self.start.detach().requires_grad_(True)
        states = rollouts.states(self.n_states, self._states)
        rows = at.expand(len(states), -1)
        divergence = self.policies.kl(rows.detach(), rows, states).mean()
        divergence = divergence + 0.5 * self.damping * (at - self.start).square().sum()
        metric = fisher_vector_product(divergence, [at])
        direction = conjugate_gradient(metric, -gradient, self.max_steps)
        square = direction.dot(metric(direction)).clamp(min=1e-30)
        self.start = (self.start + (2.0 * self.outer_kl / square).sqrt() * direction).detach()

    def _collect(self, env: VecEnv, parameters: Tensor) -> Rollouts:
        found = collect(env, self.policies, parameters, self.horizon, self._actions, self.reward_scale)
        self.env_steps += int(found.mask.sum())
        return found
