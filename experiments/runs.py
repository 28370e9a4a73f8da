"""One run of the benchmark: train an agent on a task with a seed, evaluate it, write its record and its model."""

import gzip
import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents import get_contestant
from envs import OUTSIDE_TASKS, Task, get_task
from envs.batched import make_vec
from experiments.files import write_atomically
from storm_rl.common.resumable_algorithm import constructor_parameters

PROTOCOL_VERSION = 1
EVALUATION_EPISODES = 20
FINAL_EPISODES = 100
# Far from the training seeds, which are the run's seed and its successors.
EVALUATION_SEED = 1_000_000
FINAL_SEED = 2_000_000
# Beside the packages where they were sent to another machine: the revision of the machine that sent them.
REVISION_FILE = "REVISION"
# What every record of this protocol version holds.
RECORD_FIELDS = (
    *("agent", "task", "seed", "budget", "steps", "episodes", "evaluations", "final_returns"),
    *("learn_seconds", "evaluation_seconds", "settings", "versions"),
)

OnProgress = Callable[[int], None]
MakeEnv = Callable[..., VecEnv]


@dataclass(frozen=True)
class RunSpec:
    """What identifies a run.

    Attributes:
        agent: Its name among `agents.CONTESTANTS`, with its arguments if it is a variant.
        task: Gymnasium id.
        seed: Seed of the algorithm and, with its successors, of the training environments.
        batched: Whether training and evaluation are on ``envs.batched`` in place of gymnasium's environments.
    """

    agent: str
    task: str
    seed: int
    batched: bool = False

    @property
    def stem(self) -> str:
        """The run's file name without its ending."""
        return f"{self.agent}__{self.task}__seed{self.seed}" + "__batched" * self.batched


class BrokenRunError(ValueError):
    """A file that is not a whole run: half-written, or damaged since."""


def spec_of(record: dict[str, Any]) -> RunSpec:
    """What identifies the run of ``record``; the first records were all on gymnasium's environments and do not say."""
    return RunSpec(record["agent"], record["task"], record["seed"], record.get("batched", False))


def raw_path(folder: Path, spec: RunSpec) -> Path:
    """Where the study in ``folder`` keeps the run's record."""
    return folder / "raw" / f"{spec.stem}.json.gz"


def failed_path(folder: Path, spec: RunSpec) -> Path:
    """Where it keeps the traceback of a run that failed."""
    return folder / "raw" / f"{spec.stem}.failed.json"


def model_path(folder: Path, spec: RunSpec) -> Path:
    """Where it keeps the trained model."""
    return folder / "models" / f"{spec.stem}.zip"


def log_name(spec: RunSpec) -> str:
    """TensorBoard's name of the run; SB3 adds ``_1``, or the number after that of the last folder of the name."""
    return f"{spec.agent}_seed{spec.seed}" + "_batched" * spec.batched


def log_folders(folder: Path, spec: RunSpec) -> list[Path]:
    """The TensorBoard folders that attempts at the run have left."""
    parent = folder / "tensorboard" / spec.task
    parts = [(path, *path.name.rpartition("_")) for path in (parent.iterdir() if parent.is_dir() else ())]
    return [path for path, name, _, number in parts if name == log_name(spec) and number.isdigit()]


def clear_log(folder: Path, spec: RunSpec) -> None:
    """Delete what `log_folders` finds."""
    for path in log_folders(folder, spec):
        shutil.rmtree(path)


class ProtocolCallback(BaseCallback):
    """Records every training episode and evaluates the deterministic policy at fixed intervals.

    Evaluation has environments and seeds of its own and changes neither the training environments nor their
    statistics nor any random state (a deterministic action draws nothing).
    """

    def __init__(self, task: Task, on_progress: OnProgress | None, make_env: MakeEnv = make_vec_env) -> None:
        super().__init__()
        self.task = task
        self.make_env = make_env
        self.on_progress = on_progress
        self.episodes: dict[str, list[float]] = {"step": [], "return": [], "length": []}
        self.evaluations: dict[str, list[float]] = {"step": [], "mean_return": [], "learn_seconds": []}
        self.seconds_evaluating = 0.0
        self._next_evaluation = task.evaluate_every

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._env = evaluation_env(self.task, EVALUATION_EPISODES, self.model, self.make_env)

    def _on_step(self) -> bool:
        # ARS does not show them.
        for info in self.locals.get("infos", ()):
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
        if self.on_progress is not None:
            self.on_progress(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._env.close()


def evaluation_env(task: Task, n_envs: int, model: BaseAlgorithm, make_env: MakeEnv = make_vec_env) -> VecEnv:
    """Environments apart from the training ones; observations are normalised by the training statistics, if any."""
    env = make_env(task.id, n_envs=n_envs)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        env = VecNormalize(env, training=False, norm_reward=False, clip_obs=normalizer.clip_obs)
        env.obs_rms = normalizer.obs_rms  # The same object: always the newest statistics, never updated here.
        env.epsilon = normalizer.epsilon
    return env


def execute(spec: RunSpec, folder: Path, on_progress: OnProgress | None = None, budget: int | None = None) -> Path:
    """Carry out a run and write ``<folder>/raw/<stem>.json.gz``; a finished run is not repeated.

    An exception is recorded in ``<stem>.failed.json`` and raised again.

    Args:
        spec: What to run.
        folder: The study's folder.
        on_progress: Called with the env steps done so far, at every evaluation.
        budget: Env steps, in place of the task's own (for trials; stored with the run).
    """
    path = raw_path(folder, spec)
    if path.exists():
        return path
    try:
        record, model = _train(spec, folder, on_progress, budget)
    except Exception:
        record_failure(folder, spec, traceback.format_exc())
        raise
    if model is not None:
        write_atomically(model_path(folder, spec), model)
    # Last: the record is what says that the run is finished.
    write_atomically(path, gzip.compress(json.dumps(record).encode(), mtime=0))
    failed_path(folder, spec).unlink(missing_ok=True)
    return path


def check_builds(specs: Sequence[RunSpec]) -> None:
    """Build each task's environment and each variant once, so that wrong arguments are found before anything runs.

    Raises:
        ValueError: One that cannot be built.
    """
    for task in dict.fromkeys(spec.task for spec in specs):
        try:
            gymnasium.make(task).close()
        except (gymnasium.error.Error, ImportError) as error:
            hint = ' The extra "outside" has what such tasks need.' if task in OUTSIDE_TASKS else ""
            raise ValueError(f"task {task!r} cannot be made: {error}{hint}") from error
    for agent, task in dict.fromkeys((spec.agent, spec.task) for spec in specs if "[" in spec.agent):
        try:
            model = get_contestant(agent).build(task, 0, None)
        except Exception as error:
            # Whatever the constructor stumbles over: that it is this agent's is all that is known.
            raise ValueError(f"agent {agent!r} cannot be built for {task}: {error}") from error
        if model.env is not None:
            model.env.close()


def record_failure(folder: Path, spec: RunSpec, reason: str) -> None:
    """Keep ``reason``, a traceback as a rule, beside the finished runs."""
    content = json.dumps({"spec": vars(spec), "traceback": reason})
    write_atomically(failed_path(folder, spec), content.encode())


def _train(
    spec: RunSpec, folder: Path, on_progress: OnProgress | None, budget: int | None
) -> tuple[dict[str, Any], bytes | None]:
    torch.set_num_threads(1)
    task = get_task(spec.task)
    total = budget or task.budget
    make_env: MakeEnv = make_vec if spec.batched else make_vec_env
    # Only where it differs from every agent's own.
    environments = {"make_env": make_env} if spec.batched else {}
    model = get_contestant(spec.agent).build(
        spec.task, spec.seed, str(folder / "tensorboard" / spec.task), **environments
    )
    settings = resolved_settings(model)
    callback = ProtocolCallback(task, on_progress, make_env)
    clear_log(folder, spec)
    begin = time.perf_counter()
    model.learn(total, callback=callback, tb_log_name=log_name(spec))
    learn_seconds = time.perf_counter() - begin - callback.seconds_evaluating
    env = evaluation_env(task, EVALUATION_EPISODES, model, make_env)
    env.seed(FINAL_SEED)
    final, _ = evaluate_policy(model, env, n_eval_episodes=FINAL_EPISODES, return_episode_rewards=True)
    env.close()
    record = {
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
    return record, _saved(model)


def _saved(model: BaseAlgorithm) -> bytes | None:
    """The model as SB3 saves it; None if it is of no use without the statistics of a wrapper around its environment."""
    if model.get_vec_normalize_env() is not None:
        return None
    content = io.BytesIO()
    model.save(content)
    return content.getvalue()


def resolved_settings(model: BaseAlgorithm) -> dict[str, str]:
    """The constructor's arguments as the model holds them, and its number of environments."""
    names = [name for name in constructor_parameters(type(model)) if name in vars(model)]
    settings = {name: repr(getattr(model, name)) for name in names if name not in ("env", "tensorboard_log")}
    return {**settings, "n_envs": repr(model.n_envs), "policy": model.policy_class.__name__}


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the git revision (``+`` where the tree was not clean)."""
    packages = ("storm-rl", "gymnasium", "numpy", "torch", "stable-baselines3", "sb3-contrib", "rl_zoo3")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {**found, "python": platform.python_version(), "git": git_revision()}


def git_revision() -> str:
    """Short hash of HEAD; ``unknown`` outside a git checkout."""
    here = Path(__file__).parent  # Not the working directory, which may be anywhere.
    shipped = here.parent / REVISION_FILE
    if shipped.exists():
        return shipped.read_text()
    try:
        revision = subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True, stderr=subprocess.DEVNULL, cwd=here
        )
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        clean = not subprocess.check_output(status, text=True, cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("" if clean else "+")


def load_run(path: Path) -> dict[str, Any]:
    """A run's record.

    Raises:
        BrokenRunError: The file is not a whole run.
        ValueError: It was written by another protocol version.
    """
    try:
        record: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BrokenRunError(
            f"{path} is not a whole run file ({error}); `benchmark --rerun-broken` deletes it and runs it again."
        ) from error
    return checked(record, path)


def checked(record: dict[str, Any], source: Path) -> dict[str, Any]:
    """``record`` as it is.

    Raises:
        ValueError: It was written by another protocol version.
        BrokenRunError: It lacks a part.
    """
    if record.get("protocol") != PROTOCOL_VERSION:
        raise ValueError(
            f"{source} was written by protocol version {record.get('protocol')}, this is version {PROTOCOL_VERSION}; "
            "use another folder."
        )
    missing = [name for name in RECORD_FIELDS if name not in record]
    if missing:
        raise BrokenRunError(
            f"{source} is not a whole run file (no {', '.join(missing)}); `benchmark --rerun-broken` deletes it and "
            "runs it again."
        )
    return record
