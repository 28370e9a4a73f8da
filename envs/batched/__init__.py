"""Tasks of the benchmark re-implemented on numpy arrays, as Stable-Baselines3 `VecEnv`s.

`envs.batched.gymnasium_vector` has them as gymnasium `VectorEnv`s.

>>> from envs.batched import make_vec
>>> make_vec("CartPole-v1", n_envs=64, seed=1).reset().shape
(64, 4)
"""

import difflib

from envs.batched.acrobot import BatchedAcrobot
from envs.batched.base import BatchedEnv
from envs.batched.cart_pole import BatchedCartPole
from envs.batched.mountain_car import BatchedMountainCar, BatchedMountainCarContinuous
from envs.batched.pendulum import BatchedPendulum

__all__ = ["BATCHED", "BatchedEnv", "batched_class", "make_vec"]

BATCHED: dict[str, type[BatchedEnv]] = {
    env.env_id: env
    for env in (BatchedCartPole, BatchedAcrobot, BatchedMountainCar, BatchedMountainCarContinuous, BatchedPendulum)
}


def make_vec(env_id: str, n_envs: int = 1, seed: int | None = None, render_mode: str | None = None) -> BatchedEnv:
    """``n_envs`` copies of the task, in the place of SB3's ``make_vec_env(env_id, n_envs, seed=seed)``.

    Args:
        env_id: Gymnasium id.
        n_envs: Number of environments.
        seed: Environment i's seed is ``seed + i``; None draws it from numpy's global generator, as SB3 does.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: No such task, with the known ones and the nearest; no environments; no such render mode.
    """
    env = batched_class(env_id)(n_envs, render_mode)
    env.seed(seed)
    if seed is not None:
        env.action_space.seed(seed)
    return env


def batched_class(env_id: str) -> type[BatchedEnv]:
    """The task's class; ValueError with the known tasks and the nearest if there is none."""
    if env_id not in BATCHED:
        nearest = difflib.get_close_matches(env_id, BATCHED, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        known = ", ".join(BATCHED)
        raise ValueError(
            f"no batched environment {env_id!r}; known: {known}.{hint} Other tasks run on gymnasium's environments."
        )
    return BATCHED[env_id]
