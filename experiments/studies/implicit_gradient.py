r"""How good an implicit meta-gradient is, and what it holds in memory, against the number of inner steps.

The error is that on small MDPs (`inner_mdps`), whose inner and outer losses are exact, to the gradient of the bilevel
objective: inner problems solved to rounding error, and central differences. The memory is that of policy networks on
episodes of cart-poles: bytes of the tensors that autograd has saved at the most, which depends on no machine.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from agents.implicit_maml import InnerProblems, implicit_gradients, inner_gradients, lvc_losses, proximal_step
from agents.task_rollouts import Policies, collect
from envs.families import FAMILIES
from envs.mdps import EnumerableMDP, two_state

STEPS = (1, 2, 3, 5, 8, 12, 20, 30)
STRENGTH = 2.0
DAMPING = 0.1
# Of plain gradient steps, whose path is differentiated; small enough to converge.
GRADIENT_RATE = 0.5


class Path(NamedTuple):
    """A meta-gradient ``(k, n)``, and the bytes that were saved at the most."""

    gradients: Tensor
    saved: int


def inner_mdps(n_tasks: int = 3) -> list[EnumerableMDP]:
    """The MDP of two states with rewards of its own in each task, drawn with the task's number as seed."""
    plain, tasks = two_state(), []
    for seed in range(n_tasks):
        noise = torch.randn(plain.rewards.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        tasks.append(EnumerableMDP(plain.initial, plain.transitions, plain.rewards + noise, plain.terminal, 3, 0.9))
    return tasks


def mdp_problems(mdps: list[EnumerableMDP]) -> InnerProblems:
    """Exact losses of softmax policies, ``(k, n_states * n_actions)``; the KL is the mean over all states."""
    shape = (len(mdps), mdps[0].n_states, mdps[0].n_actions)
    # `objective` would enumerate them at each call.
    trajectories = [mdp.trajectories() for mdp in mdps]
    discounts = mdps[0].gamma ** torch.arange(mdps[0].horizon, dtype=torch.float64)
    returns = [(each.rewards * discounts).sum(dim=1) for each in trajectories]

    def loss(parameters: Tensor) -> Tensor:
        rows = zip(mdps, parameters.reshape(shape), trajectories, returns, strict=True)
        return torch.stack([-(mdp.probabilities(logits, every) * gained).sum() for mdp, logits, every, gained in rows])

    def divergence(start: Tensor, parameters: Tensor) -> Tensor:
        old, new = (torch.log_softmax(each.reshape(shape), dim=2) for each in (start, parameters))
        kl = (old.exp() * (old - new)).sum(dim=2).mean(dim=1)
        return kl + 0.5 * DAMPING * (parameters - start).square().sum(dim=1)

    return InnerProblems(loss, divergence)


def cart_pole_problems(n_tasks: int = 4, copies: int = 4, horizon: int = 50) -> tuple[InnerProblems, Tensor]:
    """Inner problems of networks on the same episodes throughout, and their start ``(k, n)``, in float64."""
    family = FAMILIES["cart-poles"]
    env = family.make_vec(family.draw(n_tasks, seed=0), copies, seed=0)
    policies = Policies(env.action_space, (2.4, 2.0, 0.2, 2.0))
    start = policies.initial(0).expand(n_tasks, -1)
    rollouts = collect(env, policies, start, horizon, np.random.default_rng(0), reward_scale=20.0)
    observations, behaviour, advantages = (
        tensor.double() for tensor in (rollouts.observations, rollouts.log_prob, rollouts.advantages)
    )

    def loss(parameters: Tensor) -> Tensor:
        log_prob = policies.distribution(parameters, observations).log_prob(rollouts.actions)
        return lvc_losses(log_prob, behaviour, advantages, rollouts.mask)

    def divergence(origin: Tensor, parameters: Tensor) -> Tensor:
        damped = 0.5 * DAMPING * (parameters - origin).square().sum(dim=1)
        return policies.kl(origin, parameters, observations) + damped

    return InnerProblems(loss, divergence), start.double()


class SavedTensors:
    """Bytes of the tensors that autograd holds for backward passes of what is computed inside the block.

    Attributes:
        most: The most there were at a time.
    """

    def __init__(self) -> None:
        self.now = self.most = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Held(self, tensor), lambda held: held.tensor
        )

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)


class _Held:
    """A saved tensor, counted while it is held."""

    def __init__(self, counter: SavedTensors, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor.detach()
        counter.now += tensor.nbytes
        counter.most = max(counter.most, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.tensor.nbytes


def implicit(problems: InnerProblems, start: Tensor, steps: int, strength: float = STRENGTH) -> Path:
    """The implicit gradient of the losses after ``steps`` proximal natural steps."""
    with SavedTensors() as saved:
        found = start
        for _ in range(steps):
            found = proximal_step(problems, start, found, strength, rate=0.5, max_steps=50)
        outer = inner_gradients(problems, start, found, 0.0)
        value = implicit_gradients(problems, start, found, outer, strength, max_steps=50).value
    return Path(value, saved.most)


def first_order(problems: InnerProblems, start: Tensor, steps: int, strength: float = STRENGTH) -> Tensor:
    """First-order MAML's: the gradient where the same steps end."""
    found = start
    for _ in range(steps):
        found = proximal_step(problems, start, found, strength, rate=0.5, max_steps=50)
    return inner_gradients(problems, start, found, 0.0)


def through_the_path(problems: InnerProblems, start: Tensor, steps: int, strength: float = STRENGTH) -> Path:
    """MAML's: ``steps`` gradient steps on the inner problems, differentiated."""
    with SavedTensors() as saved:
        origin = start.detach().requires_grad_(True)
        found = origin
        for _ in range(steps):
            values = problems.loss(found) + strength * problems.divergence(origin, found)
            found = found - GRADIENT_RATE * torch.autograd.grad(values.sum(), found, create_graph=True)[0]
        gradients = torch.autograd.grad(problems.loss(found).sum(), origin)[0]
    return Path(gradients, saved.most)


def solve(problems: InnerProblems, start: Tensor, strength: float = STRENGTH, most: int = 500) -> Tensor:
    """The solutions of exact inner problems, to rounding error.

    Raises:
        RuntimeError: They are not reached in ``most`` steps.
    """
    found = start
    for _ in range(most):
        if float(inner_gradients(problems, start, found, strength).abs().max()) < 1e-13:
            return found
        found = proximal_step(problems, start, found, strength, rate=0.7, max_steps=50)
    raise RuntimeError(f"the inner problems are not solved after {most} steps")


def differences(problems: InnerProblems, start: Tensor, strength: float = STRENGTH, radius: float = 1e-4) -> Tensor:
    """Gradients of the bilevel objectives by central differences, ``(k, n)``."""
    found = torch.zeros_like(start)
    for index in range(start.shape[1]):
        moved = torch.zeros_like(start)
        moved[:, index] = radius
        above, below = (problems.loss(solve(problems, start + sign * moved, strength)) for sign in (1.0, -1.0))
        found[:, index] = (above - below) / (2.0 * radius)
    return found.detach()


def measure(report: Callable[[float], None]) -> list[dict[str, Any]]:
    """A row for each number of inner steps: relative errors of the mean meta-gradient, and bytes saved."""
    problems = mdp_problems(inner_mdps())
    start = 0.5 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = differences(problems, start).mean(dim=0)
    networks, network_start = cart_pole_problems()
    rows = []
    for done, steps in enumerate(STEPS, 1):
        gradients = {
            "implicit": implicit(problems, start, steps).gradients,
            "first-order": first_order(problems, start, steps),
            "through the path": through_the_path(problems, start, steps).gradients,
        }
        errors = {name: float((each.mean(dim=0) - exact).norm() / exact.norm()) for name, each in gradients.items()}
        saved = {path.__name__: path(networks, network_start, steps).saved for path in (implicit, through_the_path)}
        rows += [
            {"gradient": name, "inner_steps": steps, "error": error, "saved_bytes": saved.get(name.replace(" ", "_"))}
            for name, error in errors.items()
        ]
        report(done)
    return rows
