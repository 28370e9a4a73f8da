import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from storm_rl.storm_plus_pg.rollouts import generalised_advantages

STEPS, ENVS, GAMMA, LAMBDA = 12, 3, 0.9, 0.8


def data(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values, following = torch.randn(3, STEPS, ENVS, generator=generator, dtype=torch.float64)
    dones = torch.rand(STEPS, ENVS, generator=generator) < 0.2
    return rewards, values, following, dones


def test_on_policy_it_is_sb3s_gae_and_lambda_return() -> None:
    rewards, values, _, dones = (tensor.float() for tensor in data())
    last = torch.randn(ENVS)
    buffer = RolloutBuffer(STEPS, spaces.Discrete(2), spaces.Discrete(2), "cpu", LAMBDA, GAMMA, ENVS)
    buffer.rewards, buffer.values = rewards.numpy(), values.numpy()
    buffer.episode_starts[1:] = dones[:-1].numpy()
    buffer.compute_returns_and_advantage(last, dones[-1].numpy())
    following = torch.where(dones.bool(), 0.0, torch.cat([values[1:], last[None]]))
    advantages = generalised_advantages(rewards, values, following, dones.bool(), GAMMA, LAMBDA)
    np.testing.assert_allclose(advantages, buffer.advantages, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values + advantages, buffer.returns, rtol=1e-5, atol=1e-6)


def test_the_sum_ends_with_the_episode() -> None:
    rewards, values, following, dones = data(1)
    advantages = generalised_advantages(rewards, values, following, dones, GAMMA, LAMBDA)
    for env in range(ENVS):
        for start in range(STEPS):
            expected, factor = 0.0, 1.0
            for step in range(start, STEPS):
                delta = rewards[step, env] + GAMMA * following[step, env] - values[step, env]
                expected += factor * float(delta)
                factor *= GAMMA * LAMBDA
                if dones[step, env]:
                    break
            assert float(advantages[start, env]) == pytest.approx(expected, rel=1e-9)


def test_different_shapes_are_named() -> None:
    rewards, values, following, dones = data()
    with pytest.raises(ValueError, match=r"agree in shape.*\(11, 3\)"):
        generalised_advantages(rewards, values[1:], following, dones, GAMMA, LAMBDA)
