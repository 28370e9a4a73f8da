"""Expectations by enumeration: every trajectory of a small MDP, weighted with its probability."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from envs.mdps import EnumerableMDP, Trajectories, slippery_cliff, two_state
from storm_rl.common.importance_weights import (
    defensive_weights,
    per_decision_weights,
    per_step_weights,
    trajectory_weights,
)
from storm_rl.episodic.returns import (
    Baseline,
    discount_factors,
    gpomdp_advantages,
    monte_carlo_returns,
)
from tests.episodic.surrogates import (
    actor_critic_surrogate,
    gpomdp_surrogate,
    padded_advantages,
    reinforce_surrogate,
    score_surrogate,
)

MDPS = [two_state(), slippery_cliff()]
SMALL = [two_state(horizon=2), slippery_cliff(horizon=2)]
EXACT = {"atol": 1e-10, "rtol": 0.0}

Estimate = Callable[[Tensor, Trajectories], Tensor]
"""Surrogate of the log-probabilities at the parameters in question, on some of the trajectories."""


def logits_of(mdp: EnumerableMDP, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(mdp.n_states, mdp.n_actions, dtype=torch.float64, generator=generator)


def take(trajectories: Trajectories, rows: list[int]) -> Trajectories:
    return Trajectories(*(field[rows] for field in trajectories))


def expectation(mdp: EnumerableMDP, at: Tensor, sampled_by: Tensor, estimate: Estimate) -> Tensor:
    """Expected gradient of ``estimate`` at ``at``, over single trajectories of the distribution ``sampled_by``."""
    everything = mdp.trajectories()
    distribution = sampled_by if sampled_by.dim() == 1 else mdp.probabilities(sampled_by, everything)
    logits = at.clone().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for i, probability in enumerate(distribution):
        one = take(everything, [i])
        total = total + probability * estimate(mdp.log_prob(logits, one), one)
    return torch.autograd.grad(total, logits)[0]


def expectation_over_pairs(mdp: EnumerableMDP, at: Tensor, sampled_by: Tensor, estimate: Estimate) -> Tensor:
    """As `expectation`, over pairs of independent trajectories."""
    everything = mdp.trajectories()
    distribution = sampled_by if sampled_by.dim() == 1 else mdp.probabilities(sampled_by, everything)
    logits = at.clone().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(distribution)):
        for j in range(len(distribution)):
            pair = take(everything, [i, j])
            total = total + distribution[i] * distribution[j] * estimate(mdp.log_prob(logits, pair), pair)
    return torch.autograd.grad(total, logits)[0]


def state_values(mdp: EnumerableMDP, trajectories: Trajectories) -> Tensor:
    return torch.linspace(-1.0, 2.0, mdp.n_states, dtype=torch.float64)[trajectories.states]


@pytest.mark.parametrize("mdp", MDPS)
def test_reinforce_is_unbiased(mdp: EnumerableMDP) -> None:
    theta = logits_of(mdp, 0)
    found = expectation(
        mdp, theta, theta, lambda log_prob, t: reinforce_surrogate(log_prob, t.rewards, t.mask, mdp.gamma)
    )
    torch.testing.assert_close(found, mdp.gradient(theta), **EXACT)


@pytest.mark.parametrize("mdp", MDPS)
@pytest.mark.parametrize("baseline", ["none", "state_value"])
def test_gpomdp_is_unbiased(mdp: EnumerableMDP, baseline: Baseline) -> None:
    theta = logits_of(mdp, 0)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        values = state_values(mdp, t) if baseline == "state_value" else None
        return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, baseline, values=values)

    torch.testing.assert_close(expectation(mdp, theta, theta, estimate), mdp.gradient(theta), **EXACT)


@pytest.mark.parametrize("mdp", SMALL)
@pytest.mark.parametrize("surrogate", [reinforce_surrogate, gpomdp_surrogate])
def test_leave_one_out_baseline_is_unbiased_with_and_without_weights(
    mdp: EnumerableMDP, surrogate: Callable[..., Tensor]
) -> None:
    old, current = logits_of(mdp, 0), logits_of(mdp, 1)

    def weighted(log_prob: Tensor, t: Trajectories) -> Tensor:
        weigh = trajectory_weights if surrogate is reinforce_surrogate else per_decision_weights
        weights = weigh(log_prob, mdp.log_prob(current, t), t.mask)
        return surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "leave_one_out", weights)

    def plain(log_prob: Tensor, t: Trajectories) -> Tensor:
        return surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "leave_one_out")

    def defensive(log_prob: Tensor, t: Trajectories) -> Tensor:
        per_decision = surrogate is gpomdp_surrogate
        both = mdp.log_prob(current, t), mdp.log_prob(old, t)
        weights = defensive_weights(log_prob, *both, 0.3, t.mask, per_decision)
        return surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "leave_one_out", weights)

    torch.testing.assert_close(expectation_over_pairs(mdp, old, old, plain), mdp.gradient(old), **EXACT)
    torch.testing.assert_close(expectation_over_pairs(mdp, old, current, weighted), mdp.gradient(old), **EXACT)
    both = [mdp.probabilities(policy, mdp.trajectories()) for policy in (current, old)]
    mixture = 0.7 * both[0] + 0.3 * both[1]
    torch.testing.assert_close(expectation_over_pairs(mdp, old, mixture, defensive), mdp.gradient(old), **EXACT)


def test_average_baseline_shrinks_the_gradient_by_exactly_one_over_n() -> None:
    mdp = two_state(horizon=2)
    theta = logits_of(mdp, 0)
    for surrogate in (reinforce_surrogate, gpomdp_surrogate):
        found = expectation_over_pairs(
            mdp,
            theta,
            theta,
            lambda log_prob, t, surrogate=surrogate: surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "average"),
        )
        torch.testing.assert_close(found, mdp.gradient(theta) / 2, **EXACT)


@pytest.mark.parametrize("mdp", MDPS)
@pytest.mark.parametrize("form", ["trajectory", "trajectory_gpomdp", "per_decision", "per_decision_critic"])
def test_weighted_gradient_at_old_parameters_is_unbiased(mdp: EnumerableMDP, form: str) -> None:
    """Under pi_{theta_t}, the weighted gradient at theta_{t-1} is on average the exact gradient there."""
    old, current = logits_of(mdp, 0), logits_of(mdp, 1)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        behaviour = mdp.log_prob(current, t)
        if form == "trajectory":
            weights = trajectory_weights(log_prob, behaviour, t.mask)
            return reinforce_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, weights=weights)
        if form == "trajectory_gpomdp":
            weights = trajectory_weights(log_prob, behaviour, t.mask)
            return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, weights=weights)
        weights = per_decision_weights(log_prob, behaviour, t.mask)
        if form == "per_decision":
            return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, weights=weights)
        values = state_values(mdp, t)
        return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "state_value", weights, values)

    torch.testing.assert_close(expectation(mdp, old, current, estimate), mdp.gradient(old), **EXACT)


@pytest.mark.parametrize("mdp", MDPS)
@pytest.mark.parametrize("per_decision", [False, True])
def test_defensive_weights_are_unbiased_for_data_of_the_mixture(mdp: EnumerableMDP, per_decision: bool) -> None:
    old, current = logits_of(mdp, 0), logits_of(mdp, 1)
    everything = mdp.trajectories()
    mixture = 0.7 * mdp.probabilities(current, everything) + 0.3 * mdp.probabilities(old, everything)

    def defensive(log_prob: Tensor, t: Trajectories) -> Tensor:
        weights = defensive_weights(log_prob, mdp.log_prob(current, t), mdp.log_prob(old, t), 0.3, t.mask, per_decision)
        return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, weights=weights)

    for target in (old, current):
        torch.testing.assert_close(expectation(mdp, target, mixture, defensive), mdp.gradient(target), **EXACT)


def relative_bias(mdp: EnumerableMDP, found: Tensor, theta: Tensor) -> float:
    exact = mdp.gradient(theta)
    return float((found - exact).norm() / exact.norm())


def exact_values(mdp: EnumerableMDP, logits: Tensor, trajectories: Trajectories) -> Tensor:
    """Of the states at their times, since the horizon is finite; by backward induction."""
    policy, values = torch.softmax(logits, dim=-1), torch.zeros(mdp.n_states, dtype=torch.float64)
    by_time = []
    for _ in range(mdp.horizon):
        targets = (mdp.transitions * (mdp.rewards + mdp.gamma * values)).sum(-1)
        values = torch.where(mdp.terminal, 0.0, (policy * targets).sum(-1))
        by_time.append(values)
    times = torch.arange(mdp.horizon).expand_as(trajectories.states)
    return torch.stack(by_time[::-1])[times, trajectories.states]


def discounted_gae(mdp: EnumerableMDP, t: Trajectories, values: Tensor, gae_lambda: float) -> Tensor:
    advantages = padded_advantages(t.rewards, t.mask, values, mdp.gamma, gae_lambda)
    return advantages * discount_factors(mdp.horizon, mdp.gamma, advantages)


@pytest.mark.parametrize("mdp", MDPS)
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_gae_with_exact_values_is_unbiased_for_every_lambda(mdp: EnumerableMDP, gae_lambda: float) -> None:
    """Once the discount of the step's own time is put back; for lambda 1 any values will do."""
    theta = logits_of(mdp, 0)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        values = state_values(mdp, t) if gae_lambda == 1.0 else exact_values(mdp, theta, t)
        return score_surrogate(log_prob, discounted_gae(mdp, t, values, gae_lambda), t.mask)

    torch.testing.assert_close(expectation(mdp, theta, theta, estimate), mdp.gradient(theta), **EXACT)


@pytest.mark.parametrize(("gae_lambda", "bias"), [(0.95, 0.078), (0.5, 0.62), (0.0, 0.96)])
def test_bias_of_gae_without_a_critic_is_what_the_documentation_says(gae_lambda: float, bias: float) -> None:
    mdp = slippery_cliff()
    theta = logits_of(mdp, 0)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        return score_surrogate(log_prob, discounted_gae(mdp, t, torch.zeros_like(t.rewards), gae_lambda), t.mask)

    found = relative_bias(mdp, expectation(mdp, theta, theta, estimate), theta)
    assert found == pytest.approx(bias, rel=0.03)


def test_bias_of_the_average_baseline_with_early_ends_is_what_the_documentation_says() -> None:
    mdp = slippery_cliff(horizon=3)
    theta = logits_of(mdp, 0)
    found = expectation_over_pairs(
        mdp,
        theta,
        theta,
        lambda log_prob, t: gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, "average"),
    )
    assert relative_bias(mdp, found, theta) == pytest.approx(0.5014, abs=1e-4)


BIAS = {
    ("per step", 0.05): 0.0029,
    ("per step", 1.0): 0.053,
    ("truncated at 1", 0.05): 0.028,
    ("truncated at 1", 1.0): 0.38,
    ("self-normalised, two episodes", 0.05): 0.0100,
    ("self-normalised, two episodes", 1.0): 0.216,
}
"""Relative bias on the cliff, by distance in logits: the numbers in `importance_weights`."""


@pytest.mark.parametrize(("form", "distance"), BIAS)
def test_bias_of_the_biased_forms_is_what_the_documentation_says(form: str, distance: float) -> None:
    mdp = slippery_cliff(horizon=2 if form.startswith("self") else 4)
    old = logits_of(mdp, 0)
    current = old + distance * logits_of(mdp, 1)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        behaviour = mdp.log_prob(current, t)
        if form == "per step":
            weights = per_step_weights(log_prob, behaviour)
            return score_surrogate(log_prob, weights * gpomdp_advantages(t.rewards, t.mask, mdp.gamma), t.mask)
        max_weight = 1.0 if form.startswith("truncated") else None
        weights = per_decision_weights(log_prob, behaviour, t.mask, max_weight, form.startswith("self"))
        return gpomdp_surrogate(log_prob, t.rewards, t.mask, mdp.gamma, weights=weights)

    expect = expectation_over_pairs if form.startswith("self") else expectation
    bias = relative_bias(mdp, expect(mdp, old, current, estimate), old)
    assert bias == pytest.approx(BIAS[form, distance], rel=0.03)


@pytest.mark.parametrize("distance", [0.005, 0.05, 1.0])
def test_the_bias_of_a_difference_of_per_step_gradients_does_not_vanish_with_the_step(distance: float) -> None:
    mdp = slippery_cliff(horizon=4)
    old = logits_of(mdp, 0)
    current = old + distance * logits_of(mdp, 1)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        weights = per_step_weights(log_prob, mdp.log_prob(current, t))
        return score_surrogate(log_prob, weights * gpomdp_advantages(t.rewards, t.mask, mdp.gamma), t.mask)

    found = expectation(mdp, current, current, estimate) - expectation(mdp, old, current, estimate)
    exact = mdp.gradient(current) - mdp.gradient(old)
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(0.23, abs=0.01)


def test_actor_critic_with_any_values_and_lambda_one_is_the_undiscounted_step_gradient() -> None:
    """With gamma = 1 nothing is dropped, so the estimate is the exact gradient over the episode's length."""
    mdp = two_state(gamma=1.0)
    theta = logits_of(mdp, 0)

    def estimate(log_prob: Tensor, t: Trajectories) -> Tensor:
        advantages = padded_advantages(t.rewards, t.mask, state_values(mdp, t), 1.0, 1.0)
        return actor_critic_surrogate(log_prob, advantages, t.mask)

    found = expectation(mdp, theta, theta, estimate)
    torch.testing.assert_close(found * mdp.horizon, mdp.gradient(theta), **EXACT)


def garbage(t: Trajectories, log_prob: Tensor, value: float) -> tuple[Tensor, Tensor]:
    return torch.where(t.mask, t.rewards, value), torch.where(t.mask, log_prob, value)


@pytest.mark.parametrize("value", [1e30, float("nan"), float("inf")])
def test_padding_changed_to_garbage_changes_nothing(value: float) -> None:
    mdp = slippery_cliff()
    old, current = logits_of(mdp, 0), logits_of(mdp, 1)
    t = mdp.trajectories()
    target, behaviour = mdp.log_prob(old, t), mdp.log_prob(current, t)
    rewards, dirty_target = garbage(t, target, value)
    _, dirty_behaviour = garbage(t, behaviour, value)
    values = torch.where(t.mask, state_values(mdp, t), value)

    def everything(rewards: Tensor, target: Tensor, behaviour: Tensor, values: Tensor) -> list[Tensor]:
        decision = per_decision_weights(target, behaviour, t.mask, self_normalise=True)
        return [
            decision,
            trajectory_weights(target, behaviour, t.mask, self_normalise=True),
            defensive_weights(target, behaviour, target, 0.5, t.mask),
            defensive_weights(target, behaviour, target, 0.5, t.mask, per_decision=True),
            monte_carlo_returns(rewards, t.mask, 0.9),
            padded_advantages(rewards, t.mask, values, 0.9, 0.8),
            gpomdp_surrogate(target, rewards, t.mask, 0.9, "leave_one_out", decision),
            gpomdp_surrogate(target, rewards, t.mask, 0.9, "state_value", decision, values),
            reinforce_surrogate(target, rewards, t.mask, 0.9, "average"),
            actor_critic_surrogate(target, rewards, t.mask),
        ]

    clean = everything(t.rewards, target, behaviour, state_values(mdp, t))
    dirty = everything(rewards, dirty_target, dirty_behaviour, values)
    for expected, found in zip(clean, dirty, strict=True):
        assert torch.equal(expected, found)
