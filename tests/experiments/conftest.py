"""Records of runs that never ran, for what is computed from records."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import get_task
from experiments.runs import PROTOCOL_VERSION, RunSpec, raw_path


def made_up(agent: str, task_id: str, seed: int, hit: float | None, batched: bool = False) -> dict[str, Any]:
    """A run that improves linearly and passes the threshold at ``hit`` env steps; never, for None."""
    task = get_task(task_id)
    generator = np.random.default_rng([seed, len(agent), len(task_id)])
    low, high = task.score_range
    steps = np.arange(task.evaluate_every, task.budget + 1, task.evaluate_every)
    goal = task.threshold + 0.2 * (high - task.threshold)
    share = np.clip(steps / (hit or 2 * task.budget), 0, 1)
    returns = np.where(share < 1, low + 0.9 * share * (task.threshold - low), goal)
    lengths = generator.integers(50, 150, task.budget // 100)
    ends = np.minimum(np.cumsum(lengths), task.budget)
    return {
        "protocol": PROTOCOL_VERSION,
        **{"agent": agent, "task": task_id, "seed": seed, "batched": batched},
        **{"budget": task.budget, "steps": task.budget, "learn_seconds": 60.0, "evaluation_seconds": 5.0},
        "episodes": {
            "step": ends.tolist(),
            "return": np.interp(ends, steps, returns).round(6).tolist(),
            "length": lengths.tolist(),
        },
        "evaluations": {
            "step": steps.tolist(),
            "mean_return": returns.tolist(),
            "learn_seconds": (steps * 60 / task.budget).tolist(),
        },
        "final_returns": [float(returns[-1])] * 100,
        "settings": {"gamma": "0.99", "seed": str(seed), "n_envs": "8"},
        "versions": {"torch": "2", "git": "abc"},
    }


def write(folder: Path, record: dict[str, Any]) -> Path:
    spec = RunSpec(record["agent"], record["task"], record["seed"], record["batched"])
    path = raw_path(folder, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(record).encode(), mtime=0))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Writes a made-up run into ``tmp_path / "study"``; returns its path."""
    return lambda *args, **kwargs: write(tmp_path / "study", made_up(*args, **kwargs))
