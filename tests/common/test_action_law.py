import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from storm_rl import STORMPG

OBSERVATIONS = {
    "MlpPolicy": spaces.Box(-1, 1, (3,), np.float32),
    "CnnPolicy": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}


class Constant(gym.Env[np.ndarray, int]):
    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Box) -> None:
        self.observation_space = space

    def reset(self, **kwargs: object) -> tuple[np.ndarray, dict[str, object]]:
        return self.observation_space.sample(), {}


@pytest.mark.parametrize("policy", OBSERVATIONS)
def test_evaluating_another_point_leaves_the_policy_its_own_parameters_and_statistics(policy: str) -> None:
    model = STORMPG(policy, DummyVecEnv([lambda: Constant(OBSERVATIONS[policy])]), seed=0, device="cpu")
    law, observations = model._law, model.policy.obs_to_tensor(model.observation_space.sample())[0]
    actions = torch.zeros(1, dtype=torch.long)
    before = {name: (values, values.clone()) for name, values in model.policy.named_parameters()}
    before |= {name: (values, values.clone()) for name, values in model.policy.named_buffers()}
    here = law(observations, actions).detach()
    other = {name: values + 0.1 for name, values in law.point().items()}
    assert not torch.allclose(law.at(other, observations, actions), here)
    after = dict(model.policy.named_parameters()) | dict(model.policy.named_buffers())
    for name, (tensor, values) in before.items():
        assert after[name] is tensor, name
        assert torch.equal(tensor, values), name
    assert torch.equal(law(observations, actions), here)
