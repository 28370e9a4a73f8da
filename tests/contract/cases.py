"""What the contract tests share: the algorithms, small models of them, environments of any spaces."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from storm_rl import GPOMDP, STORMPlusPG, zoo

ALGORITHMS: list[Any] = [row.algorithm for row in zoo.ALGORITHMS.values()]
FAMILY = [algorithm for algorithm in ALGORITHMS if algorithm is not STORMPlusPG]

VECTOR = spaces.Box(-2.0, 2.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
ACTION_SPACES = [
    spaces.Box(-1.0, 2.0, (2,), np.float32),
    spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
]
OBSERVATION_SPACES = {
    "vector": VECTOR,
    "float64": spaces.Box(-2.0, 2.0, (2, 2), np.float64),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "image": IMAGE,
    "channels_first": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "dict": spaces.Dict({"position": VECTOR, "image": IMAGE, "gear": spaces.Discrete(3)}),
}


def small(algorithm: Any, env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **arguments: Any) -> Any:
    """A model with a tiny network and tiny rollouts, on the CPU, seeded."""
    if algorithm is STORMPlusPG:
        sizes = {"n_steps": 32, "critic_steps": 4, "reuse_rollouts": 2, "cg_max_steps": 2}
    else:
        sizes = {"batch_size": 4} if algorithm is GPOMDP else {"batch_size": 4, "mini_batch_size": 3}
    defaults = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm(policy, env, **{**sizes, **defaults, **arguments})


def learning_rate_argument(algorithm: Any) -> str:
    """STORM+PG's is of the critic alone, and says so."""
    return "critic_learning_rate" if algorithm is STORMPlusPG else "learning_rate"


class RandomEnv(gym.Env[Any, Any]):
    """Short episodes of random observations and rewards, any spaces; ``step`` refuses actions outside its space.

    Args:
        action_space: Any.
        observation_space: Any.
        fault: (what, value, step): at that step "reward" or "observation" holds the value.
    """

    def __init__(
        self,
        action_space: spaces.Space[Any] | None = None,
        observation_space: spaces.Space[Any] = VECTOR,
        fault: tuple[str, float, int] | None = None,
    ) -> None:
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space = observation_space
        self.fault = fault
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise AssertionError(f"action {action!r} is outside {self.action_space}")
        self.steps += 1
        observation, reward = self.observation_space.sample(), float(self.np_random.normal())
        ended, cut_off = self.np_random.random() < 0.2, self.np_random.random() < 0.1
        if self.fault is not None and self.steps == self.fault[2]:
            if self.fault[0] == "reward":
                reward = self.fault[1]
            else:
                observation[0] = self.fault[1]
        return observation, reward, bool(ended), bool(cut_off), {}


def parameters(model: Any) -> Tensor:
    return torch.cat([values.detach().flatten() for values in model.policy.parameters()])


def assert_equal_states(expected: Any, actual: Any, name: str = "state") -> None:
    """Nested dicts, lists, tensors and numbers are equal, bit for bit."""
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys(), name
        for key in expected:
            assert_equal_states(expected[key], actual[key], f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(actual), name
        for index, (first, second) in enumerate(zip(expected, actual, strict=True)):
            assert_equal_states(first, second, f"{name}.{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(expected, actual), name
    else:
        assert expected == actual, name
