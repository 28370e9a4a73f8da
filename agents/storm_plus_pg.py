"""STORM+PG with nothing set but the seed and the benchmark's number of environments."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from storm_rl import STORMPlusPG

N_ENVS = 8


def build_storm_plus_pg(
    task_id: str,
    seed: int,
    tensorboard_log: str | None,
    make_env: Callable[..., VecEnv] = make_vec_env,
    **arguments: Any,
) -> BaseAlgorithm:
    """STORM+PG by its constructor's defaults on 8 environments; the task reaches only the environments.

    ``arguments`` replace defaults, for ablations. ``make_env`` is gymnasium's way or ``envs.batched.make_vec``.
    """
    return STORMPlusPG(
        "MlpPolicy",
        make_env(task_id, n_envs=arguments.pop("n_envs", N_ENVS), seed=seed),
        seed=seed,
        device=arguments.pop("device", "cpu"),
        tensorboard_log=tensorboard_log,
        **arguments,
    )
