"""A large constant in the rewards: found, taken out of what the critics learn, and nowhere else."""

import math
from typing import Any

import gymnasium
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

from storm_rl import STORMPlusPG
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.rollouts import DiscountedReturnStatistics, shaped_rewards

GAMMA = 0.9


def statistics_of(rewards: Tensor, terminated: Tensor, gamma: float = GAMMA) -> DiscountedReturnStatistics:
    statistics = DiscountedReturnStatistics(gamma, rewards.shape[1])
    half = len(rewards) // 2  # In two rollouts.
    for part in (slice(half), slice(half, None)):
        statistics.add_rollout(rewards[part], terminated[part], terminated[part])
    return statistics


def never(rewards: Tensor) -> Tensor:
    return torch.zeros_like(rewards, dtype=torch.bool)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_offset_is_what_the_excess_of_the_constant_adds_up_to(sign: float) -> None:
    rewards = 50.0 + 2.0 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (rewards.mean() - 3.0 * rewards.std(unbiased=False)) / (1.0 - GAMMA)
    assert statistics_of(sign * rewards, never(rewards)).offset == pytest.approx(sign * float(expected), rel=1e-9)


def test_terminations_are_part_of_the_best_constant_and_of_its_deviation() -> None:
    rewards = 50.0 + torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terminated = never(rewards)
    terminated[10] = True  # 4 of 800 steps.
    rate = 4 / 800
    best = float(rewards.mean()) / (1.0 - GAMMA + GAMMA * rate)
    deviation = math.sqrt(float(rewards.var(unbiased=False)) + (GAMMA * best) ** 2 * rate * (1.0 - rate))
    # Against the definition: the temporal differences of a critic that says `best` everywhere have mean 0.
    differences = rewards + GAMMA * best * (~terminated).double() - best
    assert float(differences.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(differences.std(unbiased=False)) == pytest.approx(deviation, rel=0.01)
    expected = max(0.0, best - 3.0 * deviation / (1.0 - GAMMA))
    assert statistics_of(rewards, terminated).offset == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "deviation", "ends", "gamma"),
    [
        (-1.0, 0.0, False, 0.99),  # Mountain car before its first goal.
        (0.1, 0.0, False, 0.99),
        (1.0, 0.0, True, 0.99),  # Cart-pole.
        (-6.0, 4.0, False, 0.99),  # Pendulum.
        (100.0, 1.0, False, 1.0),
        (0.0, 1.0, False, 0.99),
    ],
)
def test_there_is_none_where_the_constant_is_not_large(mean: float, deviation: float, ends: bool, gamma: float) -> None:
    rewards = mean + deviation * torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terminated = never(rewards)
    terminated[19::20] = ends
    statistics = statistics_of(rewards, terminated, gamma)
    assert statistics.offset == 0.0
    assert shaped_rewards(rewards, terminated, statistics.offset, gamma) is rewards


def test_shaped_returns_are_returns_less_the_offset_and_the_scale_is_theirs() -> None:
    rewards = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terminated = never(rewards)
    terminated[-1, 0] = True
    shaped = shaped_rewards(rewards, terminated, 7.0, GAMMA)
    discounts = GAMMA ** torch.arange(30, dtype=torch.float64)[:, None]
    difference = (discounts * (rewards - shaped)).sum(dim=0)
    # Where an episode goes on, what follows has a value that is less by the offset as well.
    assert difference.tolist() == pytest.approx([7.0, 7.0 * (1.0 - GAMMA**30)], rel=1e-6)
    plain, shifted = statistics_of(rewards, never(rewards)), statistics_of(rewards + 1e3, never(rewards))
    assert shifted.scale < 20.0 * plain.scale  # A constant of 1,000 would give thousands.


class Shifted(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return float(reward) + 100.0


def shifted(**kwargs: Any) -> STORMPlusPG:
    env = make_vec_env("Pendulum-v1", 4, seed=0, wrapper_class=Shifted)
    return STORMPlusPG("MlpPolicy", env, n_steps=64, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ELU], ids=["numpy", "autograd"])
def test_values_are_in_units_of_return_from_the_second_rollout_on(activation: type[torch.nn.Module]) -> None:
    model = shifted(policy_kwargs={"activation_fn": activation}).learn(512)
    observations = model.window.newest.observations
    with torch.no_grad():
        values = model.policy.predict_values(observations).flatten()
    # About 94 a step, a hundred times. Learned from 0 they would have come a few of a hundred steps far.
    assert 7_000.0 < float(values.min()) < float(values.max()) < 11_000.0
    torch.testing.assert_close(model.networks().values(observations), values, rtol=1e-5, atol=0.1)
    assert model.policy.value_offset > 5_000.0


def test_a_frozen_last_layer_keeps_its_offset() -> None:
    model = shifted()
    model.policy.value_head.linear.requires_grad_(False)
    model.learn(512)
    assert model.policy.value_offset == 0.0


def test_files_of_versions_without_an_offset_are_read() -> None:
    model = shifted().learn(512)
    policy, statistics = model.policy.state_dict(), model.return_statistics.state_dict()
    fresh = shifted()
    fresh.policy.load_state_dict({name: values for name, values in policy.items() if not name.endswith("offset")})
    former = {name: values for name, values in statistics.items() if not name.startswith("steps")}
    fresh.return_statistics.load_state_dict(former)
    assert isinstance(fresh.policy, StandardisedActorCriticPolicy)
    assert fresh.policy.value_offset == fresh.return_statistics.offset == 0.0
    assert fresh.return_statistics.scale == model.return_statistics.scale
    fresh.learn(256)
