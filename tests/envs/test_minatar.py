import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agents.build import build_model
from envs.minatar import GAMES
from storm_rl import STORMPlusPG

pytest.importorskip("minatar")


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_images_that_repeat_with_the_seed(name: str) -> None:
    env, twin = gym.make(name), gym.make(name)
    check_env(env.unwrapped, skip_render_check=True)
    image, _ = env.reset(seed=3)
    other, _ = twin.reset(seed=3)
    env.action_space.seed(0)
    for _ in range(200):
        np.testing.assert_array_equal(image, other)
        # A cell is four pixels wide, and black or white in each channel.
        cells = image[:, ::4, ::4]
        np.testing.assert_array_equal(cells.repeat(4, axis=1).repeat(4, axis=2), image)
        assert set(np.unique(image)) <= {0, 255}
        action = env.action_space.sample()
        image, _, terminated, truncated, _ = env.step(action)
        other, *_ = twin.step(action)
        if terminated or truncated:
            image, other = env.reset()[0], twin.reset()[0]


def test_a_contestant_on_images_has_a_policy_that_reads_them() -> None:
    model = build_model(STORMPlusPG, "MinAtarBreakout-v1", 0, None, n_envs=2, n_steps=4)
    assert model.policy_class is STORMPlusPG.policy_aliases["CnnPolicy"]
    model.learn(8)
