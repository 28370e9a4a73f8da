"""One run of the benchmark: train a contestant on a task with a seed, evaluate it, write one file."""

import gzip
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents import get_contestant
from envs import Task, get_task

PROTOCOL_VERSION = 1
EVALUATION_EPISODES = 20
FINAL_EPISODES = 100
# Far from the training seeds, which are the run's seed and its successors.
EVALUATION_SEED = 1_000_000
FINAL_SEED = 2_000_000

ProgressReport = Callable[[int], None]


@dataclass(frozen=True)
class RunSpec:
    """What identifies a run."""

    agent: str
    task: str
    seed: int

    @property
    def stem(self) -> str:
        """The run's file name without its ending."""
        return f"{self.agent}__{self.task}__seed{self.seed}"


class ProtocolCallback(BaseCallback):
    """Records every training episode and evaluates the deterministic policy at fixed intervals.

    Evaluation has environments and seeds of its own and changes neither the training environments nor their
    statistics nor any random state (a deterministic action draws nothing).
    """

    def __init__(self, task: Task, report: ProgressReport | None) -> None:
        super().__init__()
        self.task = task
        self.report = report
        self.episodes: dict[str, list[float]] = {"step": [], "return": [], "length": []}
        self.evaluations: dict[str, list[float]] = {"step": [], "mean_return": [], "learn_seconds": []}
        self.seconds_evaluating = 0.0
        self._next_evaluation = task.evaluate_every

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._env = evaluation_env(self.task, EVALUATION_EPISODES, self.model)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes["step"].append(self.num_timesteps)
                self.episodes["return"].append(float(info["episode"]["r"]))
                self.episodes["length"].append(int(info["episode"]["l"]))
        if self.num_timesteps >= self._next_evaluation:
            self._evaluate()
            self._next_evaluation = (self.num_timesteps // self.task.evaluate_every + 1) * self.task.evaluate_every
        return True

    def _evaluate(self) -> None:
        begin = time.perf_counter()
        self._env.seed(EVALUATION_SEED + EVALUATION_EPISODES * len(self.evaluations["step"]))
        returns, _ = evaluate_policy(
            self.model, self._env, n_eval_episodes=EVALUATION_EPISODES, return_episode_rewards=True
        )
        self.evaluations["step"].append(self.num_timesteps)
        self.evaluations["mean_return"].append(float(np.mean(returns)))
        self.evaluations["learn_seconds"].append(begin - self._started - self.seconds_evaluating)
        self.seconds_evaluating += time.perf_counter() - begin
        self.logger.record("eval/mean_return", self.evaluations["mean_return"][-1])
        if self.report is not None:
            self.report(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._env.close()


def evaluation_env(task: Task, n_envs: int, model: BaseAlgorithm) -> VecEnv:
    """Environments apart from the training ones; observations are normalised by the training statistics, if any."""
    env: VecEnv = make_vec_env(task.id, n_envs=n_envs)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        env = VecNormalize(env, training=False, norm_reward=False, clip_obs=normalizer.clip_obs)
        env.obs_rms = normalizer.obs_rms  # The same object: always the newest statistics, never updated here.
        env.epsilon = normalizer.epsilon
    return env


def execute(spec: RunSpec, folder: Path, report: ProgressReport | None = None, budget: int | None = None) -> Path:
    """Carry out a run and write ``<folder>/raw/<stem>.json.gz``; a finished run is not repeated.

    An exception is recorded in ``<stem>.failed.json`` and raised again.

    Args:
        spec: What to run.
        folder: The study's folder.
        report: Called with the env steps done so far, at every evaluation.
        budget: Env steps, in place of the task's own (for trials; stored with the run).
    """
    path = folder / "raw" / f"{spec.stem}.json.gz"
    if path.exists():
        return path
    failed = path.with_name(f"{spec.stem}.failed.json")
    try:
        record = _train(spec, folder, report, budget)
    except Exception:
        write_atomically(failed, json.dumps({"spec": vars(spec), "traceback": traceback.format_exc()}).encode())
        raise
    write_atomically(path, gzip.compress(json.dumps(record).encode(), mtime=0))
    failed.unlink(missing_ok=True)
    return path


def _train(spec: RunSpec, folder: Path, report: ProgressReport | None, budget: int | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    task = get_task(spec.task)
    total = budget or task.budget
    model = get_contestant(spec.agent).build(spec.task, spec.seed, str(folder / "tensorboard" / spec.task))
    settings = resolved_settings(model)
    callback = ProtocolCallback(task, report)
    begin = time.perf_counter()
    model.learn(total, callback=callback, tb_log_name=f"{spec.agent}_seed{spec.seed}")
    learn_seconds = time.perf_counter() - begin - callback.seconds_evaluating
    env = evaluation_env(task, EVALUATION_EPISODES, model)
    env.seed(FINAL_SEED)
    final, _ = evaluate_policy(model, env, n_eval_episodes=FINAL_EPISODES, return_episode_rewards=True)
    env.close()
    return {
        "protocol": PROTOCOL_VERSION,
        **vars(spec),
        "budget": total,
        "steps": model.num_timesteps,
        "episodes": callback.episodes,
        "evaluations": callback.evaluations,
        "final_returns": final,
        "learn_seconds": learn_seconds,
        "evaluation_seconds": callback.seconds_evaluating,
        "settings": settings,
        "versions": versions(),
    }


def resolved_settings(model: BaseAlgorithm) -> dict[str, str]:
    """The constructor's arguments as the model holds them, and its number of environments."""
    names = [name for name in inspect.signature(type(model)).parameters if name in vars(model)]
    settings = {name: repr(getattr(model, name)) for name in names if name not in ("env", "tensorboard_log")}
    return {**settings, "n_envs": repr(model.n_envs), "policy": model.policy_class.__name__}


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the git revision (``+`` where the tree was not clean)."""
    packages = ("storm-rl", "gymnasium", "numpy", "torch", "stable-baselines3", "sb3-contrib", "rl_zoo3")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {**found, "python": platform.python_version(), "git": git_revision()}


def git_revision() -> str:
    """Short hash of HEAD; ``unknown`` outside a git checkout."""
    try:
        revision = subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        clean = not subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("" if clean else "+")


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either whole or as it was, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_run(path: Path) -> dict[str, Any]:
    """A run's record.

    Raises:
        ValueError: The file is not a whole run, or was written by another protocol version.
    """
    try:
        record: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a whole run file ({error}); delete it and run the study again.") from error
    if record.get("protocol") != PROTOCOL_VERSION:
        raise ValueError(
            f"{path} was written by protocol version {record.get('protocol')}, this is version {PROTOCOL_VERSION}; "
            "use another folder."
        )
    return record
