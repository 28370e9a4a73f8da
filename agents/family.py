"""SVRPG and its siblings with the settings that `python -m experiments tune-family` found, for each task."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from storm_rl.common.trajectory_algorithm import TrajectoryAlgorithm

# Batches of 5, 10, 30 and 100 episodes fill five environments without remainder: the fewest idle steps.
N_ENVS = 5
FAMILY = ("SVRPG", "GPOMDP", "SRVRPG", "STORMPG", "PAGEPG", "DEFPG")
SETTINGS_FILE = Path(__file__).with_name("family.json")


def algorithm_class(name: str) -> type[TrajectoryAlgorithm]:
    """The class of that name, as ``"SVRPG"``.

    Raises:
        ValueError: No such algorithm.
    """
    if name not in FAMILY:
        raise ValueError(f"unknown algorithm {name!r}; known: {', '.join(FAMILY)}")
    found: type[TrajectoryAlgorithm] = getattr(importlib.import_module(f"storm_rl.{name.lower()}"), name)
    return found


def tuned_settings(algorithm: str, task_id: str) -> dict[str, Any]:
    """The settings found for that task; empty, so that the defaults rule, where none were searched for."""
    settings: dict[str, dict[str, dict[str, Any]]] = json.loads(SETTINGS_FILE.read_text())
    return settings.get(algorithm, {}).get(task_id, {})


def build_family(
    algorithm: str,
    task_id: str,
    seed: int,
    tensorboard_log: str | None,
    make_env: Callable[..., VecEnv] = make_vec_env,
    **arguments: Any,
) -> BaseAlgorithm:
    """``algorithm`` (as ``"SVRPG"``) on 5 environments with its tuned settings; ``arguments`` replace them.

    ``make_env`` is gymnasium's way or, for searches, ``envs.batched.make_vec``.
    """
    settings = {**tuned_settings(algorithm, task_id), **arguments}
    return algorithm_class(algorithm)(
        "MlpPolicy",
        make_env(task_id, n_envs=settings.pop("n_envs", N_ENVS), seed=seed),
        seed=seed,
        device=settings.pop("device", "cpu"),
        tensorboard_log=tensorboard_log,
        **settings,
    )
