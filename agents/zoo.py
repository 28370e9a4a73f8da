"""SB3's algorithms with RL Zoo's settings for each task, read from the installed rl_zoo3 and built by its own code."""

import argparse
import contextlib
import io
import tempfile
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm


def build_from_zoo(
    algorithm: str, task_id: str, seed: int, tensorboard_log: str | None, **arguments: Any
) -> BaseAlgorithm:
    """``algorithm`` (as ``"ppo"``) with RL Zoo's settings, environments and wrappers for the task.

    ``arguments`` replace settings, for ablations.
    """
    # Not at the top: with optuna and its plots it takes half as long as everything else, and no other agent needs it.
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import ALGOS

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
        settings, _ = manager.read_hyperparameters()
        # Schedules, policy keyword arguments, wrappers and VecNormalize as the zoo's `train` sets them up.
        settings, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(settings)
        env = manager.create_envs(manager.n_envs, no_log=True)
    settings = {"device": "cpu", **settings}
    model: BaseAlgorithm = ALGOS[algorithm](env=env, seed=seed, tensorboard_log=tensorboard_log, **settings)
    return model
