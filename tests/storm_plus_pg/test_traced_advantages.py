import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from storm_rl.storm_plus_pg.rollouts import traced_advantages

STEPS, ENVS, GAMMA, LAMBDA = 12, 3, 0.9, 0.8


def data(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values, following = torch.randn(3, STEPS, ENVS, generator=generator, dtype=torch.float64)
    dones = torch.rand(STEPS, ENVS, generator=generator) < 0.2
    ratios = torch.rand(STEPS, ENVS, generator=generator, dtype=torch.float64) * 2.0
    return rewards, values, following, dones, ratios


def test_on_policy_it_is_sb3s_gae_and_lambda_return() -> None:
    rewards, values, _, dones, _ = (tensor.float() for tensor in data())
    last = torch.randn(ENVS)
    buffer = RolloutBuffer(STEPS, spaces.Discrete(2), spaces.Discrete(2), "cpu", LAMBDA, GAMMA, ENVS)
    buffer.rewards, buffer.values = rewards.numpy(), values.numpy()
    buffer.episode_starts[1:] = dones[:-1].numpy()
    buffer.compute_returns_and_advantage(last, dones[-1].numpy())
    following = torch.where(dones.bool(), 0.0, torch.cat([values[1:], last[None]]))
    advantages, targets = traced_advantages(
        rewards, values, following, dones.bool(), torch.ones_like(rewards), GAMMA, LAMBDA
    )
    np.testing.assert_allclose(advantages, buffer.advantages, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, buffer.returns, rtol=1e-5, atol=1e-6)


def test_off_policy_targets_are_v_trace_summed_term_by_term() -> None:
    rewards, values, following, dones, ratios = data(1)
    _, targets = traced_advantages(rewards, values, following, dones, ratios, GAMMA, LAMBDA)
    clipped = ratios.clamp(max=1.0)
    for env in range(ENVS):
        for start in range(STEPS):
            expected, product = values[start, env].clone(), 1.0
            for step in range(start, STEPS):
                delta = rewards[step, env] + GAMMA * following[step, env] - values[step, env]
                expected += product * clipped[step, env] * delta
                product *= GAMMA * LAMBDA * clipped[step, env]
                if dones[step, env]:
                    break
            torch.testing.assert_close(targets[start, env], expected)


def test_advantage_does_not_weigh_the_steps_own_action() -> None:
    rewards, values, following, dones, ratios = data(2)
    first = traced_advantages(rewards, values, following, dones, ratios, GAMMA, LAMBDA)[0]
    ratios[0] = 0.1
    second = traced_advantages(rewards, values, following, dones, ratios, GAMMA, LAMBDA)[0]
    torch.testing.assert_close(first, second)


def test_different_shapes_are_named() -> None:
    rewards, values, following, dones, ratios = data()
    with pytest.raises(ValueError, match=r"agree in shape.*\(11, 3\)"):
        traced_advantages(rewards, values[1:], following, dones, ratios, GAMMA, LAMBDA)
