"""STORM+PG with nothing set but the seed and the benchmark's number of environments."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from storm_rl import STORMPlusPG

N_ENVS = 8


def build_storm_plus_pg(task_id: str, seed: int, tensorboard_log: str | None, **arguments: Any) -> BaseAlgorithm:
    """STORM+PG by its constructor's defaults on 8 environments; the task reaches only the environments.

    ``arguments`` replace defaults, for ablations.
    """
    return STORMPlusPG(
        "MlpPolicy",
        make_vec_env(task_id, n_envs=arguments.pop("n_envs", N_ENVS), seed=seed),
        seed=seed,
        device="cpu",
        tensorboard_log=tensorboard_log,
        **arguments,
    )
