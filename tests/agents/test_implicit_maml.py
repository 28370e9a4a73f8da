"""Implicit MAML: meta-gradients against closed forms and differences of the bilevel objective, steps, surrogates."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.implicit_maml import (
    ImplicitMAML,
    InnerProblems,
    conjugate_gradients,
    curvature_product,
    dice_losses,
    implicit_gradients,
    inner_gradients,
    lvc_losses,
    proximal_step,
)
from agents.task_rollouts import Policies
from envs.families import FAMILIES
from envs.mdps import EnumerableMDP, slippery_cliff, two_state
from storm_rl.storm_plus_pg.metric import conjugate_gradient

K, N, STRENGTH = 3, 5, 0.7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def definite(seed: int, k: int = K, n: int = N) -> Tensor:
    factors = random(k, n, n, seed=seed)
    return factors @ factors.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)


def quadratic(metric: Tensor) -> tuple[InnerProblems, Tensor, Tensor]:
    hessians, slopes = definite(1), random(K, N, seed=2)

    def form(matrices: Tensor, vectors: Tensor) -> Tensor:
        return 0.5 * torch.einsum("ki,kij,kj->k", vectors, matrices, vectors)

    def loss(parameters: Tensor) -> Tensor:
        return form(hessians, parameters) - (slopes * parameters).sum(dim=1)

    return InnerProblems(loss, lambda start, found: form(metric, found - start)), hessians, slopes


@pytest.mark.parametrize("metric", [torch.eye(N, dtype=torch.float64).expand(K, N, N), definite(3)], ids=["I", "M"])
def test_on_a_quadratic_the_meta_gradient_is_the_closed_form(metric: Tensor) -> None:
    problems, hessians, slopes = quadratic(metric)
    start, goal = random(1, N, seed=4).expand(K, -1), random(K, N, seed=5)
    right = slopes[..., None] + STRENGTH * metric @ start[..., None]
    solution = torch.linalg.solve(hessians + STRENGTH * metric, right)[..., 0]
    # Of the outer loss |phi - goal|^2 / 2; d phi / d theta = (A + lambda M)^-1 lambda M.
    jacobian = torch.linalg.solve(hessians + STRENGTH * metric, STRENGTH * metric)
    expected = (jacobian.mT @ (solution - goal)[..., None])[..., 0]
    found = implicit_gradients(problems, start, solution, solution - goal, STRENGTH, max_steps=4 * N).value
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)

    reached = start
    for _ in range(250):
        reached = proximal_step(problems, start, reached, STRENGTH, rate=0.1, max_steps=4 * N)
    torch.testing.assert_close(reached, solution, rtol=1e-8, atol=1e-9)


def mdp_problems(mdps: list[EnumerableMDP]) -> InnerProblems:
    shape = (len(mdps), mdps[0].n_states, mdps[0].n_actions)

    def loss(parameters: Tensor) -> Tensor:
        return torch.stack([-mdp.objective(row) for mdp, row in zip(mdps, parameters.reshape(shape), strict=True)])

    def divergence(start: Tensor, parameters: Tensor) -> Tensor:
        old, new = (torch.log_softmax(each.reshape(shape), dim=2) for each in (start, parameters))
        kl = (old.exp() * (old - new)).sum(dim=2).mean(dim=1)
        return kl + 0.05 * (parameters - start).square().sum(dim=1)

    return InnerProblems(loss, divergence)


def newton(problems: InnerProblems, start: Tensor, strength: float) -> Tensor:
    """The solution of a single inner problem, with dense derivatives."""

    def objective(row: Tensor) -> Tensor:
        return (problems.loss(row[None]) + strength * problems.divergence(start, row[None])).sum()

    found = start[0]
    for _ in range(8):
        slope = torch.autograd.functional.jacobian(objective, found)
        found = found - torch.linalg.solve(torch.autograd.functional.hessian(objective, found), slope)
    return found[None]


def derivative(of: Callable[[Tensor], Tensor], at: Tensor, radius: float = 1e-4) -> Tensor:
    moves = radius * torch.eye(at.shape[1], dtype=at.dtype)
    return torch.stack([(of(at + move) - of(at - move)).sum() / (2.0 * radius) for move in moves])


@pytest.mark.parametrize("seed", [0, 1])
def test_on_an_mdp_the_meta_gradient_is_that_of_the_bilevel_objective(seed: int) -> None:
    inner, outer = mdp_problems([two_state()]), mdp_problems([two_state(horizon=2)])
    start, strength = 0.7 * random(1, 4, seed=seed), 2.0

    def solved(at: Tensor) -> Tensor:
        return newton(inner, at, strength)

    solution = solved(start)
    expected = derivative(lambda at: outer.loss(solved(at)), start)
    gradients = inner_gradients(outer, start, solution, 0.0)
    found = implicit_gradients(inner, start, solution, gradients, strength, max_steps=30).value[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    # And the Hessian matters: first-order MAML is another vector.
    assert float((gradients[0] - expected).norm()) > 0.1 * float(expected.norm())


def test_systems_side_by_side_are_the_librarys_one_by_one_and_stop_at_negative_curvature() -> None:
    matrices, targets = definite(6), random(K, N, seed=7)
    for steps in (2, 30):
        found, indefinite = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], targets, steps)
        for row, matrix, target in zip(found, matrices, targets, strict=True):
            torch.testing.assert_close(row, conjugate_gradient(lambda v, a=matrix: a @ v, target, steps))
        assert not indefinite.any()
    mixed = matrices.clone()
    mixed[1] = -mixed[1]
    found, indefinite = conjugate_gradients(lambda v: (mixed @ v[..., None])[..., 0], targets, 30)
    assert indefinite.tolist() == [False, True, False]
    assert not found[1].any()
    torch.testing.assert_close(found[[0, 2]], torch.linalg.solve(matrices, targets)[[0, 2]])
    solved = torch.linalg.solve(matrices, targets)
    again, _ = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], targets, 1, solved)
    torch.testing.assert_close(again, solved)


def test_with_a_margin_only_an_indefinite_hessian_is_scaled_down() -> None:
    problems, hessians, _ = quadratic(torch.eye(N, dtype=torch.float64).expand(K, N, N))
    signs = torch.tensor([1.0, -1.0, -0.05], dtype=torch.float64)
    mixed = InnerProblems(lambda found: signs * problems.loss(found), problems.divergence)
    start, outer = torch.zeros(K, N, dtype=torch.float64), random(K, N, seed=8)
    found = implicit_gradients(mixed, start, start, outer, STRENGTH, max_steps=30, margin=0.5)
    assert found.share[0] == found.share[2] == 1.0
    assert 0.0 <= float(found.share[1]) < 1.0
    for row in (0, 1, 2):
        matrix = float(found.share[row]) * signs[row] * hessians[row] / STRENGTH + torch.eye(N, dtype=torch.float64)
        torch.testing.assert_close(found.value[row], torch.linalg.solve(matrix, outer[row]), rtol=1e-4, atol=1e-6)
    steep = InnerProblems(lambda found: -1_000.0 * problems.loss(found), problems.divergence)
    first_order = implicit_gradients(steep, start, start, outer, STRENGTH, max_steps=30, margin=0.5)
    assert not first_order.share.any()
    torch.testing.assert_close(first_order.value, outer)


def network_problems(seed: int = 0, hidden: tuple[int, ...] = (4,)) -> tuple[InnerProblems, Policies, Tensor, Tensor]:
    family = FAMILIES["pendulums"]
    policies = Policies(family.make().action_space, (1.0, 1.0, 4.0), hidden)
    states = random(2, 6, 3, seed=seed)
    parameters = 0.5 * random(2, policies.n_parameters, seed=seed)
    actions, advantages = random(2, 6, 1, seed=seed + 1), random(2, 6, seed=seed + 2)
    behaviour = policies.distribution(parameters, states).log_prob(actions)
    mask = torch.ones(2, 6, dtype=torch.bool)

    def loss(found: Tensor) -> Tensor:
        return lvc_losses(policies.distribution(found, states).log_prob(actions), behaviour, advantages, mask)

    def divergence(start: Tensor, found: Tensor) -> Tensor:
        return policies.kl(start, found, states) + 0.05 * (found - start).square().sum(dim=1)

    return InnerProblems(loss, divergence), policies, parameters, states


def test_with_a_network_the_kls_own_hessian_and_mixed_derivatives_are_taken() -> None:
    problems, policies, parameters, _ = network_problems(hidden=(2,))
    strength, steps = 3.0, 6 * policies.n_parameters

    def solved(start: Tensor) -> Tensor:
        # Tasks do not see each other: the second row of each is left out.
        def paired(row: Tensor) -> Tensor:
            return torch.cat([row, parameters[1:]])

        single = InnerProblems(
            lambda found: problems.loss(paired(found))[:1],
            lambda origin, found: problems.divergence(paired(origin), paired(found))[:1],
        )
        return newton(single, start, strength)

    solution = torch.cat([solved(parameters[:1]), parameters[1:]])
    assert float((solution - parameters)[0].norm()) > 0.05
    outer = torch.zeros_like(solution)
    outer[0, 0], outer[0, 1] = solution[0, 0].cos(), 1.0
    found = implicit_gradients(problems, parameters, solution, outer, strength, max_steps=steps).value[0]
    move = 1e-4 * random(1, policies.n_parameters, seed=11)
    above, below = (solved(parameters[:1] + sign * move)[0] for sign in (1.0, -1.0))
    change = above[0].sin() + above[1] - below[0].sin() - below[1]
    torch.testing.assert_close(2.0 * found @ move[0], change, rtol=1e-4, atol=0.0)


def test_the_step_is_along_the_natural_gradient_of_the_damped_fisher_matrix() -> None:
    problems, policies, parameters, states = network_problems()
    steps = 4 * policies.n_parameters
    found = proximal_step(problems, parameters, parameters, 0.0, max_kl=0.01, max_steps=steps) - parameters
    for row in range(2):
        mean, log_std = parameters[row, :-1].requires_grad_(True), parameters[row, -1].detach()
        whole = torch.cat([mean, log_std[None]])[None].expand(2, -1)
        means = policies.distribution(whole, states).mean[row, :, 0]  # type: ignore[attr-defined]
        slopes = torch.stack([torch.autograd.grad(each, mean, retain_graph=True)[0] for each in means])
        fisher = torch.zeros(policies.n_parameters, policies.n_parameters, dtype=torch.float64)
        fisher[:-1, :-1] = slopes.T @ slopes * (-2.0 * log_std).exp() / len(means)
        fisher[-1, -1] = 2.0
        damped = fisher + 0.1 * torch.eye(policies.n_parameters, dtype=torch.float64)
        gradient = inner_gradients(problems, parameters, parameters, 0.0)[row]
        direction = -torch.linalg.solve(damped, gradient)
        expected = direction * (0.02 / (direction @ damped @ direction)).sqrt()
        torch.testing.assert_close(found[row], expected.detach(), rtol=1e-6, atol=1e-9)


def test_a_step_is_never_longer_than_its_kl_and_pulled_back_to_the_start() -> None:
    problems, _, start, _ = network_problems()
    far = start + 0.02 * random(*start.shape, seed=9)
    metric = curvature_product(problems.divergence(far, at := far.clone().requires_grad_(True)), at)
    for strength in (1e-3, 0.0):
        step = proximal_step(problems, start, far, strength, max_kl=0.01, max_steps=100) - far
        length = 0.5 * (step * metric(step)).sum(dim=1)
        torch.testing.assert_close(length, torch.full_like(length, 0.01), rtol=1e-6, atol=0.0)
    # Hardly anything but the proximal term: a step on it is Newton's, and leads to the start.
    after = proximal_step(problems, start, far, 1e4, max_steps=100)
    assert ((after - start).norm(dim=1) < 0.1 * (far - start).norm(dim=1)).all()


def expected_hessian(mdp: EnumerableMDP, logits: Tensor, loss: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Of a loss of single trajectories, by their probabilities at ``logits``."""
    every = mdp.trajectories()
    probabilities = mdp.probabilities(logits, every)

    def mean(found: Tensor) -> Tensor:
        return sum((probability * loss(found, i) for i, probability in enumerate(probabilities)), torch.zeros(()))

    return torch.autograd.functional.hessian(mean, logits).reshape(logits.numel(), -1)


@pytest.mark.parametrize("mdp", [two_state(horizon=2), slippery_cliff(horizon=3)], ids=["two states", "cliff"])
def test_dices_hessian_is_the_returns_and_lvcs_leaves_out_what_its_docstring_says(mdp: EnumerableMDP) -> None:
    logits, every = 0.5 * random(mdp.n_states, mdp.n_actions, seed=3), mdp.trajectories()
    exact = -torch.autograd.functional.hessian(mdp.objective, logits).reshape(logits.numel(), -1)
    steps = torch.arange(mdp.horizon)
    discounts = mdp.gamma ** steps.double()

    def dice(found: Tensor, i: int) -> Tensor:
        log_prob = mdp.log_prob(found, every)
        return dice_losses(log_prob[[i], None], every.rewards[[i], None], every.mask[[i], None], mdp.gamma).sum()

    def lvc(found: Tensor, i: int) -> Tensor:
        log_prob, mask = mdp.log_prob(found, every)[[i]], every.mask[[i]]
        reward_to_go = (every.rewards[[i]] * discounts).flip(1).cumsum(dim=1).flip(1)
        # A sum over steps, not their mean.
        return lvc_losses(log_prob, log_prob.detach(), reward_to_go, mask).sum() * mask.sum()

    torch.testing.assert_close(expected_hessian(mdp, logits, dice), exact, rtol=1e-9, atol=1e-10)

    cross = torch.zeros_like(exact)
    probabilities = mdp.probabilities(logits, every)
    for i, probability in enumerate(probabilities):
        scores = torch.autograd.functional.jacobian(
            lambda found, i=i: torch.where(every.mask[i], mdp.log_prob(found, every)[i], 0.0), logits
        ).reshape(mdp.horizon, -1)
        reward_to_go = (every.rewards[i] * discounts).flip(0).cumsum(dim=0).flip(0)
        for late in steps:
            for early in steps[:late]:
                product = torch.outer(scores[early], scores[late])
                cross -= probability * reward_to_go[late] * (product + product.T)
    torch.testing.assert_close(expected_hessian(mdp, logits, lvc) + cross, exact, rtol=1e-9, atol=1e-10)
    assert float(cross.norm()) > 0.01 * float(exact.norm())


def agent(**arguments: object) -> ImplicitMAML:
    family = FAMILIES["cart-poles"]
    policies = Policies(family.make().action_space, (2.4, 2.0, 0.2, 2.0), (8,))
    return ImplicitMAML(policies, policies.initial(0), reward_scale=20.0, horizon=60, **arguments)  # type: ignore


def test_an_update_moves_the_start_by_its_kl_and_is_the_same_with_the_same_seed() -> None:
    family, ends = FAMILIES["cart-poles"], []
    tasks = family.draw(3, seed=0)
    for _ in range(2):
        learner = agent(inner_steps=2, outer_kl=0.01)
        before = learner.start
        found = learner.update(family.make_vec(tasks, 4, seed=0), 3)
        ends.append(learner.start)
        assert 0.0 <= found["share"] <= 1.0
        assert learner.env_steps > 3 * 3 * 4 * 8
        rollouts = learner.adapt(family.make_vec(tasks, 4, seed=0), 3, 0, 0.0)[1][0]
        moved = learner.policies.kl(before[None].expand(3, -1), ends[-1][None].expand(3, -1), rollouts.observations)
        assert 0.001 < float(moved.mean()) < 0.02  # With the damping, and to second order, 0.01.
    torch.testing.assert_close(*ends, rtol=0.0, atol=0.0)
    assert not np.array_equal(ends[0], before)


def test_a_joint_policy_learns_and_an_adapted_one_as_well() -> None:
    family = FAMILIES["cart-poles"]
    joint = agent(inner_steps=0, outer_kl=0.1)
    returns = [joint.update(family.make_vec(family.draw(4, seed), 10, seed=seed), 4)["before"] for seed in range(6)]
    assert returns[-1] > returns[0] + 15.0
    env = family.make_vec(family.draw(4, 99), 20, seed=99)
    rollouts = agent(inner_kl=0.1).adapt(env, 4, 3, 0.0)[1]
    assert rollouts[-1].returns.mean() > rollouts[0].returns.mean() + 10.0


def test_wrong_arguments_are_refused() -> None:
    problems, _, start, _ = network_problems()
    with pytest.raises(ValueError, match=r"strength must be positive, got 0\.0"):
        implicit_gradients(problems, start, start, start, 0.0)
    with pytest.raises(ValueError, match=r"margin must be in \[0, 1\), got 1\.0"):
        implicit_gradients(problems, start, start, start, 1.0, margin=1.0)
    with pytest.raises(ValueError, match="max_kl must be finite"):
        proximal_step(problems, start, start, 0.0)
    with pytest.raises(ValueError, match=r"got -1\.0 and 0\.1"):
        proximal_step(problems, start, start, -1.0, max_kl=0.1)
    with pytest.raises(ValueError, match="inner_steps must be 0 or more, got -1"):
        agent(inner_steps=-1)
