"""What an algorithm steps along is its paper's formula, computed here naively: episode by episode, two networks."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

from envs.mdps import EnumerableEnv, slippery_cliff
from storm_rl.common.importance_weights import per_decision_weights, trajectory_weights
from storm_rl.episodic import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG
from storm_rl.episodic.episodes import pad
from storm_rl.episodic.episodic_algorithm import EpisodicAlgorithm
from storm_rl.episodic.recursions import Vector
from storm_rl.episodic.returns import gpomdp_advantages

GAMMA = 0.9


def flat(vector: Vector, names: list[str]) -> Tensor:
    return torch.cat([vector[name].flatten().double() for name in names])


class Recorded:
    """Everything that one update saw and did."""

    def __init__(self, model: EpisodicAlgorithm, direction: Vector, large: bool) -> None:
        with torch.no_grad():  # The policy's own distribution still holds the graph, which cannot be copied.
            model.policy.get_distribution(model.batch.observations)  # type: ignore[arg-type]
        self.policy = copy.deepcopy(model.policy)
        self.batch = model.batch
        self.large = large
        self.direction = flat(direction, model.action_distribution.actor_names)
        self.names = list(model.action_distribution.actor_names)

    def episodes(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        begins = np.cumsum([0, *self.batch.mask.sum(1).tolist()])
        assert isinstance(self.batch.observations, Tensor)
        return [
            (self.batch.observations[a:b], self.batch.actions[a:b], self.batch.rewards[i, : b - a])
            for i, (a, b) in enumerate(itertools.pairwise(begins))
        ]


def record(model: EpisodicAlgorithm, n_updates: int) -> list[Recorded]:
    """Train, and keep a copy of the policy before each step."""
    updates: list[Recorded] = []
    ascend = model._ascend

    def recording(direction: Vector, large: bool) -> float:
        updates.append(Recorded(model, direction, large))
        return ascend(direction, large)

    model._ascend = recording  # type: ignore[method-assign]
    while len(updates) < n_updates:
        model.learn(1, reset_num_timesteps=not updates)
        model.num_timesteps = 0
    return updates


def log_prob(policy: Any, observations: Tensor, actions: Tensor) -> Tensor:
    return policy.get_distribution(observations).log_prob(actions)


def naive_gradient(at: Recorded, policy: Any, behaviours: list[tuple[float, Any]] | None, reinforce: bool) -> Tensor:
    """Mean over episodes of sum_h w_h gamma^h r_h sum_{k<=h} grad log pi(a_k|s_k), no baseline; double sum."""
    named = dict(policy.named_parameters())
    parameters = [named[name.removeprefix("policy.")] for name in at.names]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for observations, actions, rewards in at.episodes():
        scores = log_prob(policy, observations, actions).double()
        length = len(rewards)
        objective = torch.zeros((), dtype=torch.float64)
        for h in range(length):
            reach = length if reinforce else h + 1
            weight = 1.0
            if behaviours is not None:
                target = scores[:reach].sum().exp().item()
                mixture = sum(
                    share * log_prob(b, observations, actions).double()[:reach].sum().exp().item()
                    for share, b in behaviours
                )
                weight = target / mixture
            objective = objective + weight * GAMMA**h * rewards[h] * scores[:reach].sum()
        gradients = torch.autograd.grad(objective, parameters)
        total += torch.cat([gradient.flatten().double() for gradient in gradients])
    return total / len(at.episodes())


def make(algorithm: type[EpisodicAlgorithm], **arguments: Any) -> EpisodicAlgorithm:
    env = make_vec_env(lambda: EnumerableEnv(slippery_cliff()), 2, seed=0)
    sizes: dict[str, Any] = {"batch_size": 5} if algorithm is GPOMDP else {"batch_size": 5, "mini_batch_size": 3}
    defaults: dict[str, Any] = {
        "learning_rate": 0.05,
        "gamma": GAMMA,
        "baseline": "none",
        "seed": 0,
        "policy_kwargs": {"net_arch": [8]},
    }
    return algorithm("MlpPolicy", env, **{**defaults, **sizes, **arguments})


REINFORCE = {"estimator": "reinforce", "weights": "trajectory"}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
def test_gpomdp_and_reinforce(estimator: Any) -> None:
    for update in record(make(GPOMDP, estimator=estimator), 2):
        close(update.direction, naive_gradient(update, update.policy, None, estimator == "reinforce"))


@pytest.mark.parametrize("options", [{}, REINFORCE])
def test_svrpg_is_snapshot_gradient_plus_difference(options: dict[str, Any]) -> None:
    updates = record(make(SVRPG, max_sub_iterations=3, **options), 8)
    reinforce = bool(options)
    snapshot: Recorded | None = None
    kinds = set()
    for update in updates:
        plain = naive_gradient(update, update.policy, None, reinforce)
        kinds.add(update.large)
        if update.large:
            snapshot, expected = update, plain
        else:
            assert snapshot is not None
            weighted = naive_gradient(update, snapshot.policy, [(1.0, update.policy)], reinforce)
            expected = snapshot.direction + plain - weighted
        close(update.direction, expected)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("algorithm", "options", "momentum"),
    [
        (SRVRPG, {"epoch_length": 4}, 0.0),
        (SRVRPG, {"epoch_length": 4, **REINFORCE}, 0.0),
        (STORMPG, {"momentum": 0.4}, 0.4),
        (PAGEPG, {"probability": 0.3}, 0.0),
    ],
)
def test_recursive_algorithms_correct_at_the_step_before(
    algorithm: type[EpisodicAlgorithm], options: dict[str, Any], momentum: float
) -> None:
    updates = record(make(algorithm, **options), 6)
    assert {update.large for update in updates} == {True, False}
    reinforce = "estimator" in options
    for before, update in itertools.pairwise(updates):
        expected = naive_gradient(update, update.policy, None, reinforce)
        if not update.large:
            weighted = naive_gradient(update, before.policy, [(1.0, update.policy)], reinforce)
            expected = expected + (1 - momentum) * (before.direction - weighted)
        close(update.direction, expected)


@pytest.mark.parametrize("options", [{}, REINFORCE])
def test_defpg_weights_both_gradients_against_the_mixture(options: dict[str, Any]) -> None:
    updates = record(make(DEFPG, probability=0.2, defensive=0.3, **options), 6)
    reinforce = bool(options)
    assert {update.large for update in updates} == {True, False}
    for before, update in itertools.pairwise(updates):
        if update.large:
            close(update.direction, naive_gradient(update, update.policy, None, reinforce))
            continue
        mixture = [(0.7, update.policy), (0.3, before.policy)]
        difference = naive_gradient(update, update.policy, mixture, reinforce) - naive_gradient(
            update, before.policy, mixture, reinforce
        )
        close(update.direction, before.direction + difference)


def test_defpg_without_defence_has_the_weights_of_pagepg() -> None:
    model = make(DEFPG, defensive=0.0)
    record(model, 1)
    both = torch.log(torch.rand(2, *model.batch.mask.shape, dtype=torch.float64))
    current, previous = model._importance_weights(both)
    plain = per_decision_weights(both[1], both[0], model.batch.mask)
    assert current is not None
    assert previous is not None
    torch.testing.assert_close(previous, plain)
    torch.testing.assert_close(current, model.batch.mask.double())


def test_defpg_gives_the_anchor_its_share_of_small_batches_only() -> None:
    """Tolerance four standard errors."""
    model = make(DEFPG, defensive=0.3)
    assert not model._draw_sources(1000).any()
    model.recursion.large_batch = False
    assert abs(model._draw_sources(10_000).mean() - 0.3) < 4 * (0.3 * 0.7 / 10_000) ** 0.5


def test_options_of_the_weights_reach_them() -> None:
    bounded, normalised = make(SVRPG, max_weight=1.1), make(SVRPG, weights="trajectory", self_normalise=True)
    for model in (bounded, normalised):
        record(model, 1)
    mask = bounded.batch.mask
    both = torch.log(torch.rand(2, *mask.shape, dtype=torch.float64))
    plain, weights = bounded._importance_weights(both)
    assert plain is None
    assert weights is not None
    torch.testing.assert_close(weights, per_decision_weights(both[1], both[0], mask).clamp(max=1.1))
    mask = normalised.batch.mask
    both = torch.log(torch.rand(2, *mask.shape, dtype=torch.float64))
    weights = normalised._importance_weights(both)[1]
    assert weights is not None
    unnormalised = trajectory_weights(both[1], both[0], mask)
    torch.testing.assert_close(weights, unnormalised / unnormalised.mean())


@pytest.mark.parametrize("baseline", ["average", "leave_one_out", "state_value"])
def test_baselines_are_those_asked_for_and_the_critic_has_not_seen_the_batch(baseline: Any) -> None:
    """The policy was copied before its step and before the critic's fit, which the values must precede."""
    for update in record(make(GPOMDP, baseline=baseline), 3):
        batch, values = update.batch, None
        if baseline == "state_value":
            values = pad(update.policy.predict_values(batch.observations).flatten().double(), batch.mask)
        advantages = gpomdp_advantages(batch.rewards, batch.mask, GAMMA, baseline, values=values)[batch.mask]
        score = log_prob(update.policy, batch.observations, batch.actions)  # type: ignore[arg-type]
        parameters = dict(update.policy.named_parameters())
        gradients = torch.autograd.grad(
            (score * advantages).sum() / len(batch.mask),
            [parameters[name.removeprefix("policy.")] for name in update.names],
        )
        close(update.direction, torch.cat([gradient.flatten().double() for gradient in gradients]))


def test_the_critic_learns_the_mean_discounted_return_of_each_state() -> None:
    """Least squares on states, which are categories here, has that solution."""
    model = make(GPOMDP, baseline="state_value", batch_size=20, critic_epochs=500, critic_learning_rate=0.01)
    record(model, 1)
    batch = model.batch
    assert isinstance(batch.observations, Tensor)
    episodes = [rewards[mask].tolist() for rewards, mask in zip(batch.rewards, batch.mask, strict=True)]
    returns = torch.tensor(
        [sum(GAMMA**h * r for h, r in enumerate(rewards[k:])) for rewards in episodes for k in range(len(rewards))]
    )
    for state in set(batch.observations.tolist()):
        expected, found = (
            returns[batch.observations == state].mean(),
            model.policy.predict_values(torch.tensor([state])),
        )
        torch.testing.assert_close(found.squeeze(), expected, atol=0.03, rtol=0.0)


def test_svrpg_fits_its_critic_at_snapshots_only() -> None:
    updates = record(make(SVRPG, baseline="state_value", max_sub_iterations=2), 8)
    assert {update.large for update in updates[:-1]} == {True, False}
    for update, after in itertools.pairwise(updates):
        values = [each.policy.predict_values(torch.arange(3)) for each in (update, after)]
        assert torch.equal(*values) is not update.large


def test_episodes_of_the_anchor_are_played_by_the_anchor() -> None:
    """Current policy always 0, anchor always 1: the sources decide which actions come out."""
    model = make(DEFPG)
    record(model, 2)
    assert model.recursion.anchor is not None

    def certain(action: int) -> Tensor:
        return torch.tensor([100.0 if a == action else 0.0 for a in range(3)])

    bias = next(name for name in model.action_distribution.actor_names if name.endswith("action_net.bias"))
    dict(model.action_distribution.named_parameters())[bias].data.copy_(certain(0))
    model.recursion.anchor[bias] = certain(1)
    actions = model._act(torch.zeros(3, dtype=torch.long), np.array([0, 1, 0]))
    assert actions.tolist() == [0, 1, 0]


def test_svrpg_halves_the_learning_rate_of_small_batches_and_keeps_two_adams() -> None:
    model = make(SVRPG, max_sub_iterations=2)
    updates = record(model, 7)
    n_large = sum(update.large for update in updates)
    parameter = model.snapshot_optimizer.param_groups[0]["params"][0]  # type: ignore[attr-defined]
    assert model.snapshot_optimizer.param_groups[0]["lr"] == 0.05  # type: ignore[attr-defined]
    assert model.actor_optimizer.param_groups[0]["lr"] == 0.025
    assert model.snapshot_optimizer.state[parameter]["step"] == n_large  # type: ignore[attr-defined]
    assert model.actor_optimizer.state[parameter]["step"] == len(updates) - n_large


def test_step_size_is_the_step_over_adams_first_moment() -> None:
    model = make(GPOMDP)
    before: list[Tensor] = []
    ascend = model._ascend
    sizes: list[float] = []

    def watched(direction: Vector, large: bool) -> float:
        before[:] = [values.detach().clone() for values in model.actor_optimizer.param_groups[0]["params"]]
        sizes.append(ascend(direction, large))
        return sizes[-1]

    model._ascend = watched  # type: ignore[method-assign]
    model.learn(30)
    after = model.actor_optimizer.param_groups[0]["params"]
    step = torch.cat([(a.detach() - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
    moment = torch.cat([model.actor_optimizer.state[p]["exp_avg"].flatten() for p in after]).norm()
    assert sizes[-1] == pytest.approx((step / moment).item(), rel=1e-4)
