"""How contestants are built that have no environments of their own: one function for all algorithms."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from storm_rl.zoo import ALGORITHMS
from storm_rl.zoo.settings import tuned_settings

# What STORM+PG has, so that others' defaults are compared on the same.
N_ENVS = ALGORITHMS["storm_plus_pg"].n_envs


def build_model(
    algorithm: type[BaseAlgorithm],
    task_id: str,
    seed: int,
    tensorboard_log: str | None,
    make_env: Callable[..., VecEnv] = make_vec_env,
    **arguments: Any,
) -> BaseAlgorithm:
    """A model with the settings that a search found for the task, or else its constructor's defaults.

    Args:
        algorithm: Any of SB3's kind, as ``PPO``. Settings were searched for SVRPG and its siblings only.
        task_id: Gymnasium id; it reaches the environments and the settings.
        seed: Of model and environments.
        tensorboard_log: Folder of the logs, or None.
        make_env: Gymnasium's way or ``envs.batched.make_vec``.
        **arguments: Constructor arguments in place of the settings, and ``n_envs`` in place of the number of
            environments of the algorithm's row in `ALGORITHMS`, or of 8 if it is not this package's.
    """
    n_envs = next((row.n_envs for row in ALGORITHMS.values() if row.algorithm is algorithm), N_ENVS)
    tuned = tuned_settings(algorithm.__name__).get(task_id, {})
    settings = {"n_envs": n_envs, "device": "cpu", **tuned, **arguments}
    # BaseAlgorithm's own constructor differs from that of the algorithms.
    build: Any = algorithm
    env = make_env(task_id, n_envs=settings.pop("n_envs"), seed=seed)
    model: BaseAlgorithm = build(
        "CnnPolicy" if is_image_space(env.observation_space, check_channels=False) else "MlpPolicy",
        env,
        seed=seed,
        tensorboard_log=tensorboard_log,
        **settings,
    )
    return model
