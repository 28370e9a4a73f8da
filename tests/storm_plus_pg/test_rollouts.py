from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg.rollouts import Transitions


class Counter(gym.Env[np.ndarray, int]):
    """Observes [environment, time], pays the time; ends after 5 steps, cut off after 3 in odd environments."""

    observation_space = spaces.Box(-1e3, 1e3, (2,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, index: int) -> None:
        self.index = index

    def _observation(self) -> np.ndarray:
        return np.array([self.index, self.time], dtype=np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        self.time = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        cut_off = self.index % 2 == 1 and self.time == 3
        return self._observation(), float(self.time), self.time == 5, cut_off, {}


def counting_model(n_steps: int, size: int) -> STORMPlusPG:
    indices = iter(range(3))
    env = make_vec_env(lambda: Counter(next(indices)), n_envs=3)
    sizes = {"n_steps": n_steps, "reuse_rollouts": size, "critic_steps": 2}
    return STORMPlusPG("MlpPolicy", env, **sizes, use_action_values=False, seed=0, device="cpu")


def transitions_of(model: STORMPlusPG, gamma: float, lam: float) -> Transitions:
    observations = model.window.observations()
    return model.window.transitions(observations, model.networks(), gamma, lam)


def test_window_is_one_stretch_of_time_for_each_environment() -> None:
    model = counting_model(n_steps=4, size=3).learn(4 * 3 * 5)
    assert len(model.window.rollouts) == 3
    transitions = transitions_of(model, 0.9, 0.8)
    observations = transitions.observations.reshape(3, 12, 2)
    for index in range(3):
        assert (observations[index, :, 0] == index).all()
        times = observations[index, :, 1].tolist()
        length = 3 if index == 1 else 5
        assert times == [(8 + step) % length for step in range(12)]


def test_the_newest_rollouts_of_a_window_are_a_window() -> None:
    window = counting_model(n_steps=4, size=3).learn(4 * 3 * 5).window
    newest = window.newest_rollouts(2)
    assert newest.rollouts == window.rollouts[1:]
    assert newest.newest is window.newest
    assert len(window.rollouts) == 3


def test_observations_after_each_step_are_those_of_the_next_or_of_the_next_episode() -> None:
    rollout = counting_model(n_steps=4, size=1).learn(4 * 3 * 2).window.newest
    following = rollout.next_observations()
    assert isinstance(following, torch.Tensor)
    for (index, time), (next_index, next_time) in zip(rollout.observations.tolist(), following.tolist(), strict=True):
        assert next_index == index
        assert next_time == (time + 1) % (3 if index == 1 else 5)


def test_values_after_each_step_are_zero_at_an_end_and_of_the_last_observation_at_a_cut() -> None:
    model = counting_model(n_steps=6, size=2)
    model.learn(6 * 3 * 2)
    policy, transitions = model.policy, transitions_of(model, gamma=0.5, lam=0.0)
    for (index, time), advantage, value in zip(
        transitions.observations.tolist(), transitions.advantages, transitions.values, strict=True
    ):
        ends = time + 1 == 5
        with torch.no_grad():
            following = 0.0 if ends else float(policy.predict_values(torch.tensor([[index, time + 1]])))
        expected = time + 1 + 0.5 * following - float(value)
        np.testing.assert_allclose(float(advantage), expected, rtol=1e-4, atol=1e-4)


def test_advantages_do_not_depend_on_how_far_the_policy_has_moved() -> None:
    # Cut by ratios to the present policy, they would turn round with a critic that lags behind: same actions, same
    # rewards, another sign.
    model = counting_model(n_steps=4, size=2)
    model.learn(4 * 3 * 2)
    parameters = model.policy.actor_parameters()
    before = transitions_of(model, 0.9, 0.9)
    vector_to_parameters(parameters_to_vector(parameters) * 3.0, parameters)
    after = transitions_of(model, 0.9, 0.9)
    torch.testing.assert_close(before.behaviour_log_prob, after.behaviour_log_prob)
    assert torch.equal(before.advantages, after.advantages)


def test_window_is_emptied_when_the_environments_start_anew() -> None:
    model = counting_model(n_steps=4, size=4)
    model.learn(4 * 3 * 3)
    assert len(model.window.rollouts) == 3
    model.learn(4 * 3)
    assert len(model.window.rollouts) == 1
    model.learn(4 * 3, reset_num_timesteps=False)
    assert len(model.window.rollouts) == 2
