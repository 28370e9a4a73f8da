"""SB3's algorithms with RL Zoo's settings for each task, read from the installed rl_zoo3 and built by its own code."""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import gymnasium
import yaml
from gymnasium.envs.registration import parse_env_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space


def build_from_zoo(
    algorithm: str, task_id: str, seed: int, tensorboard_log: str | None, **arguments: Any
) -> BaseAlgorithm:
    """``algorithm`` (as ``"ppo"``) with RL Zoo's settings, environments and wrappers for the task.

    Where it has none for this version of the task, those for the newest other one; where it has none at all, SB3's
    defaults. ``arguments`` replace settings, for ablations.
    """
    # Not at the top: with optuna and its plots it takes half as long as everything else, and no other agent needs it.
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import ALGOS

    row = zoo_row(algorithm, task_id)
    if row is None and is_image_space(gymnasium.make(task_id).observation_space, check_channels=False):
        arguments = {"policy": "CnnPolicy", **arguments}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = ExperimentManager(
            argparse.Namespace(),
            algorithm,
            task_id,
            folder,
            seed=seed,
            eval_freq=-1,
            verbose=0,
            hyperparams=arguments or None,
        )
        name = manager.env_name
        manager.env_name = EnvironmentName(row or task_id)
        settings, _ = manager.read_hyperparameters()
        manager.env_name = name
        # Schedules, policy keyword arguments, wrappers and VecNormalize as the zoo's `train` sets them up.
        settings, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(settings)
        env = manager.create_envs(manager.n_envs, no_log=True)
    settings = {"device": "cpu", **settings}
    model: BaseAlgorithm = ALGOS[algorithm](env=env, seed=seed, tensorboard_log=tensorboard_log, **settings)
    return model


def zoo_row(algorithm: str, task_id: str) -> str | None:
    """The task whose settings in RL Zoo's file of ``algorithm`` are meant for ``task_id``; None if there is none."""
    rows = yaml.safe_load((files("rl_zoo3") / "hyperparams" / f"{algorithm}.yml").read_text())
    return task_id if task_id in rows else _newest_version(task_id, rows)


def _newest_version(task_id: str, known: Iterable[str]) -> str | None:
    _, name, _ = parse_env_id(task_id)
    versions = {}
    for row in known:
        # Some rows are no tasks, as "default" and "atari".
        with contextlib.suppress(gymnasium.error.Error):
            _, other, version = parse_env_id(row)
            if other == name and version is not None:
                versions[version] = row
    return versions[max(versions)] if versions else None
