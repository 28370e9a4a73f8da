"""SB3's own algorithms by their constructors' defaults, on as many environments as STORM+PG has."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agents.storm_plus_pg import N_ENVS


def build_with_defaults(
    algorithm: type[BaseAlgorithm],
    task_id: str,
    seed: int,
    tensorboard_log: str | None,
    make_env: Callable[..., VecEnv] = make_vec_env,
    **arguments: Any,
) -> BaseAlgorithm:
    """``algorithm`` (as ``PPO``) with nothing set but the seed; ``arguments`` replace defaults, for ablations."""
    # BaseAlgorithm's own constructor differs from that of the algorithms.
    build: Any = algorithm
    model: BaseAlgorithm = build(
        "MlpPolicy",
        make_env(task_id, n_envs=arguments.pop("n_envs", N_ENVS), seed=seed),
        seed=seed,
        device=arguments.pop("device", "cpu"),
        tensorboard_log=tensorboard_log,
        **arguments,
    )
    return model
