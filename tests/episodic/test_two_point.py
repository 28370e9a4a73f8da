import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from storm_rl import STORMPG
from storm_rl.episodic.two_point import LogProbAtPoints

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
    distribution, observations = (
        model.action_distribution,
        model.policy.obs_to_tensor(model.observation_space.sample())[0],
    )
    actions = torch.zeros(1, dtype=torch.long)
    before = {name: (values, values.clone()) for name, values in model.policy.named_parameters()}
    before |= {name: (values, values.clone()) for name, values in model.policy.named_buffers()}
    here = distribution(observations, actions).detach()
    other = {name: values + 0.1 for name, values in distribution.point().items()}
    assert not torch.allclose(distribution.with_parameters(other, observations, actions), here)
    after = dict(model.policy.named_parameters()) | dict(model.policy.named_buffers())
    for name, (tensor, values) in before.items():
        assert after[name] is tensor, name
        assert torch.equal(tensor, values), name
    assert torch.equal(distribution(observations, actions), here)


@pytest.mark.parametrize("policy", OBSERVATIONS)
def test_gradients_at_two_points_are_those_of_two_networks(policy: str) -> None:
    model = STORMPG(policy, DummyVecEnv([lambda: Constant(OBSERVATIONS[policy])]), seed=0, device="cpu")
    distribution = model.action_distribution
    observations = model.policy.obs_to_tensor(np.stack([model.observation_space.sample() for _ in range(6)]))[0]
    actions, coefficients = torch.tensor([0, 1, 1, 0, 1, 0]), torch.randn(2, 6)
    here = {name: values.clone() for name, values in distribution.point().items()}
    there = {name: values + 0.1 * torch.rand_like(values) for name, values in here.items()}
    found = LogProbAtPoints(distribution, [here, there], observations, actions)
    for point, values, gradient, row in zip(
        (here, there), found.values, found.gradients(coefficients), coefficients, strict=True
    ):
        with torch.no_grad():  # The policy's own distribution still holds the graph, which cannot be copied.
            model.policy.get_distribution(observations)
        other = copy.deepcopy(model.policy)
        other.load_state_dict({name.removeprefix("policy."): tensor for name, tensor in point.items()}, strict=False)
        log_prob = other.get_distribution(observations).log_prob(actions)
        torch.testing.assert_close(values, log_prob.detach())
        (log_prob * row).sum().backward()
        named = dict(other.named_parameters())
        for name in distribution.actor_names:
            expected = named[name.removeprefix("policy.")].grad
            torch.testing.assert_close(gradient[name], expected, rtol=1e-4, atol=1e-5)


def test_bad_points_and_coefficients_are_refused() -> None:
    model = STORMPG("MlpPolicy", DummyVecEnv([lambda: Constant(OBSERVATIONS["MlpPolicy"])]), seed=0, device="cpu")
    here, observations, actions = model.action_distribution.point(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    other = {name: torch.zeros(7) for name in here}
    with pytest.raises(ValueError, match="names or shapes"):
        LogProbAtPoints(model.action_distribution, [here, other], observations, actions)
    at_points = LogProbAtPoints(model.action_distribution, [here], observations, actions)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        at_points.gradients(torch.zeros(2))
