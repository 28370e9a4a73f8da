"""Data that is kept beyond a step is the algorithm's own, whatever the environments do with their arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from storm_rl import GPOMDP, STORMPlusPG
from tests.contract.cases import ALGORITHMS, VECTOR, RandomEnv, parameters, small

SPACES = {
    "vector": VECTOR,
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
}


class SameArrays(VecEnvWrapper):
    """Gives the same arrays at every step, rewritten, terminal observations included."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.held: dict[str, Any] = {}

    def _written(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._written(f"{name} {key}", part) for key, part in value.items()}
        held = self.held.setdefault(name, np.array(value))
        held[...] = value
        return held

    def reset(self) -> Any:
        return self._written("observation", self.venv.reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for index, info in enumerate(infos):
            if "terminal_observation" in info:
                info["terminal_observation"] = self._written(f"terminal {index}", info["terminal_observation"])
        return (
            self._written("observation", observations),
            self._written("rewards", rewards),
            self._written("dones", dones),
            infos,
        )


@pytest.mark.parametrize("algorithm", [STORMPlusPG, GPOMDP], ids=lambda algorithm: algorithm.__name__)
@pytest.mark.parametrize("name", SPACES)
def test_environments_may_reuse_their_arrays(algorithm: Any, name: str) -> None:
    found = []
    for wrapper in (lambda env: env, SameArrays):
        env = DummyVecEnv([lambda: RandomEnv(None, SPACES[name]) for _ in range(2)])
        policy = "MultiInputPolicy" if name == "dict" else "MlpPolicy"
        model = small(algorithm, wrapper(env), policy).learn(70)
        found.append(parameters(model.learn(70, reset_num_timesteps=False)))
    assert torch.equal(*found)


# What a callback sees and may change


class Names(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.at_start: set[str] | None = None
        self.at_step: set[str] = set()

    def _on_rollout_start(self) -> None:
        if self.at_start is None:
            self.at_start = set(self.locals)

    def _on_step(self) -> bool:
        self.at_step = set(self.locals)
        return True


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_locals_have_the_names_of_stable_baselines(algorithm: Any) -> None:
    callback = Names()
    small(algorithm, RandomEnv(spaces.Box(-1, 1, (1,)))).learn(20, callback=callback)
    names = {"env", "obs_tensor", "actions", "clipped_actions", "new_obs", "rewards", "dones", "infos"}
    if algorithm is STORMPlusPG:
        names |= {"values", "log_probs", "rollout_buffer", "n_steps", "n_rollout_steps"}
    assert names <= callback.at_step
    assert callback.at_start is not None
    assert "env" in callback.at_start


class Bonus(RolloutBuffer):
    def add(self, obs: Any, action: Any, reward: Any, *rest: Any) -> None:
        super().add(obs, action, reward + 100.0, *rest)


class OwnReturns(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
        raise AssertionError("never called")


def test_rewards_that_a_buffer_changes_count_and_its_own_returns_are_refused() -> None:
    model = small(STORMPlusPG, RandomEnv(), rollout_buffer_class=Bonus).learn(32)
    assert (model.window.newest.rewards > 50.0).all()
    with pytest.raises(
        ValueError, match=r"OwnReturns has its own compute_returns_and_advantage.*change rewards in its"
    ):
        small(STORMPlusPG, RandomEnv(), rollout_buffer_class=OwnReturns)
    for wrong in (5, dict):
        with pytest.raises(TypeError, match="rollout_buffer_class must be a subclass of RolloutBuffer"):
            small(STORMPlusPG, RandomEnv(), rollout_buffer_class=wrong)
    with pytest.raises(TypeError, match="subclass of DictRolloutBuffer"):
        small(STORMPlusPG, RandomEnv(None, SPACES["dict"]), "MultiInputPolicy", rollout_buffer_class=RolloutBuffer)
