"""A learner and its actors, killed at random moments until all is learned."""

import functools
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from stable_baselines3.common.callbacks import BaseCallback

from experiments.files import write_atomically
from experiments.rows import Row
from experiments.studies.actors.environment import slow_pendulum
from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv

N_ACTORS = 2
# Of a run.
ACTOR_KILLS, LEARNER_KILLS = 4, 1
ARGUMENTS: dict[str, Any] = {"n_steps": 16, "critic_steps": 8, "device": "cpu"}
ROUND = 16 * N_ACTORS
TOTAL = 150 * ROUND
CHECKPOINT_ROUNDS = 5
# What must come within this, or the study fails.
PATIENCE = 600.0


class Progress(BaseCallback):
    """Writes a checkpoint every so many rounds, and after each round how far it is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.n_rounds = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        write_atomically(self.folder / "progress", str(self.num_timesteps).encode())

    def _on_rollout_start(self) -> None:
        if self.n_rounds % CHECKPOINT_ROUNDS == 0:
            self.model.save(self.folder / "learner.zip")
        self.n_rounds += 1


def learn(folder: Path) -> None:
    """Begin, or go on from the checkpoint, to the total; in a process that may be killed."""
    env, checkpoint = RayVecEnv([slow_pendulum] * N_ACTORS, N_ACTORS, max_restarts=1_000), folder / "learner.zip"
    if checkpoint.exists():
        model = DistributedSTORMPlusPG.load(checkpoint, env=env, device="cpu")
    else:
        model = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", seed=0, **ARGUMENTS)
    model.learn(TOTAL - model.num_timesteps, Progress(folder), reset_num_timesteps=False)
    end = {"steps": model.num_timesteps, "dropped": model.dropped, "restarts": env.restarts}
    write_atomically(folder / "end.json", json.dumps(end).encode())
    # Until it is told to go, so that its processes can be listed first.
    sys.stdin.read()


def killed(folder: Path, seed: int) -> Row:
    """Kill actors and learners with SIGKILL, at env steps drawn before; say what was left of each and what came out."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, began = np.random.default_rng(seed), time.monotonic()
    kinds = generator.permutation(["actor"] * ACTOR_KILLS + ["learner"] * LEARNER_KILLS)
    marks = np.sort(generator.integers(ROUND, TOTAL - 20 * ROUND, len(kinds)))
    learner, orphans, halves = _start(folder), 0, 0
    try:
        for kind, mark in zip(kinds, marks, strict=True):
            _wait(functools.partial(_is_due, folder, learner, mark))
            if kind == "actor":
                _actors(learner)[generator.integers(N_ACTORS)].kill()
                continue
            family = psutil.Process(learner.pid).children(recursive=True)
            learner.kill()
            learner.wait()
            orphans += len(psutil.wait_procs(family, timeout=PATIENCE)[1])
            halves += not _is_whole(folder / "learner.zip")
            learner = _start(folder)
        _wait(functools.partial(_has_ended, folder, learner))
        family = psutil.Process(learner.pid).children(recursive=True)
        learner.communicate(timeout=PATIENCE)
        orphans += len(psutil.wait_procs(family, timeout=PATIENCE)[1])
    finally:
        learner.kill()
    end = json.loads((folder / "end.json").read_text())
    return {
        "seed": seed,
        "actor_kills": ACTOR_KILLS,
        "learner_kills": LEARNER_KILLS,
        "steps": end["steps"],
        "expected": TOTAL,
        "dropped": end["dropped"],
        "orphans": orphans,
        "broken_checkpoints": halves,
        "seconds": time.monotonic() - began,
    }


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    script = (
        f"from pathlib import Path; from experiments.studies.actors.faults import learn; learn(Path({str(folder)!r}))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "learner.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )


def _actors(learner: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    if learner.poll() is not None:
        raise RuntimeError(f"the learner has ended by itself, with {learner.returncode}; see learner.log")
    found = []
    for process in psutil.Process(learner.pid).children(recursive=True):
        try:
            if "RolloutActor" in "".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_due(folder: Path, learner: "subprocess.Popen[bytes]", mark: int) -> bool:
    """Whether the learner is that far, and has all its actors again."""
    return _progress(folder) >= mark and len(_actors(learner)) == N_ACTORS


def _has_ended(folder: Path, learner: "subprocess.Popen[bytes]") -> bool:
    _actors(learner)
    return (folder / "end.json").exists()


def _progress(folder: Path) -> int:
    path = folder / "progress"
    return int(path.read_text()) if path.exists() else 0


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return True
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing has come for {PATIENCE:g} seconds; see learner.log")
        time.sleep(0.02)
