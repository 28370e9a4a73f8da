"""The kinds of environments that are measured, each made as SB3's ``make_vec_env(task, n_envs, seed=seed)`` does."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from envs.batched import make_vec
from storm_rl.vector_env import VectorEnvAdapter

FRAMES = "Frames"


class Frames(gym.Env[np.ndarray, Any]):
    """Pictures as of Atari, four in a stack, that cost nothing: drawn once, shown in turn; 100 steps an episode."""

    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = gym.spaces.Discrete(6)
    pictures = np.random.default_rng(0).integers(0, 256, (32, 84, 84, 4), dtype=np.uint8)
    length = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with the first picture."""
        super().reset(seed=seed)
        self.length = 0
        return self.pictures[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Show the next picture, and reward one action of six."""
        self.length += 1
        return self.pictures[self.length % 32], float(action == self.length % 6), self.length == 100, False, {}


def make_frames(task: str, n_envs: int, seed: int | None = None) -> VecEnv:
    """`Frames`, which has no task."""
    return make_vec_env(Frames, n_envs, seed=seed)


def make_vector(task: str, n_envs: int, seed: int | None = None) -> VecEnv:
    """Gymnasium's own on arrays where it has them, or else `SyncVectorEnv`."""
    if gym.spec(task).vector_entry_point is not None:
        env = gym.make_vec(task, n_envs, "vector_entry_point")
    else:
        same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
        env = gym.make_vec(task, n_envs, "sync", vector_kwargs=same_step)
    adapter = VectorEnvAdapter(env)
    adapter.seed(seed)
    return VecMonitor(adapter)


def make_envpool(task: str, n_envs: int, seed: int | None = None) -> VecEnv:
    """EnvPool's, with a thread for each core that this process may use.

    Raises:
        ValueError: EnvPool is not installed, or has no such task.
    """
    if not has_envpool():
        raise ValueError('environments "envpool" need an extra: pip install "storm-rl[envpool]"')
    import envpool

    if task not in envpool.list_all_envs():
        raise ValueError(f"EnvPool has no task {task!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env = envpool.make_gymnasium(
        task, num_envs=n_envs, seed=0 if seed is None else seed, num_threads=min(cores, n_envs)
    )
    return VecMonitor(VectorEnvAdapter(env))


def has_envpool() -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec("envpool") is not None


MAKE_ENV: dict[str, Callable[..., VecEnv]] = {
    "gymnasium": make_vec_env,
    "batched": make_vec,
    "vector": make_vector,
    "envpool": make_envpool,
    "frames": make_frames,
}
"""``frames`` are for networks of images."""
