"""Settings for SVRPG and its siblings on each task, over one grid and with one budget for all of them.

The grid (`grid`) is the product of three learning rates, three pairs of batch sizes and two baselines: 18 settings.
A search has two rounds: every setting with one seed and half of the budget, then the best three with two more seeds
and all of it. Seeds are apart from the benchmark's. The score of a run is the mean of its normalised evaluations
over the budget; a run ends at the threshold (two evaluations in a row) and its last evaluation is carried on. The
best mean score of the second round wins, and goes to ``storm_rl/zoo/tuned_settings.json``.

All runs, training and evaluation, are on the batched environments of ``envs.batched``. The rows are in ``<task>.csv``,
one file a task: a search that was interrupted continues. ``python -m experiments tune-family --help``.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from stable_baselines3.common.env_util import make_vec_env

from agents import FAMILY, get_contestant
from envs import TASKS, Task, get_task
from envs.batched import BATCHED, batched_class, make_vec
from experiments.files import check_folder, write_atomically
from experiments.measures import steps_to_threshold
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.runs import EVALUATION_EPISODES, OnProgress, ProtocolCallback
from storm_rl.zoo.settings import SETTINGS_FILE

KEY = ("algorithm", "settings", "seed", "budget")
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
BATCH_SIZES = ((10, 5), (30, 10), (100, 10))
# GPOMDP has one batch size: from the others' smallest small batch to their middle large one.
PLAIN_BATCH_SIZES = (5, 10, 30)
BASELINES = ("leave_one_out", "state_value")
BUDGET = 100_000
EVALUATE_EVERY = 2_500
FIRST_SEED = 100
FINALISTS = 3
SIZES = ("batch_size", "mini_batch_size")
EXPLANATION = (
    "The best settings of each algorithm and task, and their runs of the second round (seeds 101, 102): score 0 to 1, "
    "env steps to the threshold (-: not within the budget), mean return of the last evaluation."
)


def grid(algorithm: str) -> list[dict[str, Any]]:
    """The 18 settings of ``algorithm``."""
    sizes: list[dict[str, int]]
    if algorithm == "GPOMDP":
        sizes = [{"batch_size": size} for size in PLAIN_BATCH_SIZES]
    else:
        sizes = [{"batch_size": large, "mini_batch_size": small} for large, small in BATCH_SIZES]
    return [
        {"learning_rate": rate, **size, "baseline": baseline}
        for rate, size, baseline in itertools.product(LEARNING_RATES, sizes, BASELINES)
    ]


class UntilThreshold(ProtocolCallback):
    """The benchmark's evaluations, up to two in a row at the threshold; counts the episodes learned from.

    Args:
        task: The task.
        batched: Evaluate on the batched environments, which agree with gymnasium's step for step.
        on_progress: Called with the env steps so far.
    """

    def __init__(self, task: Task, batched: bool, on_progress: OnProgress | None = None) -> None:
        super().__init__(task, on_progress)
        self.batched = batched
        self.episodes_learned_from: list[int] = []

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.batched:
            self._env = make_vec(self.task.id, EVALUATION_EPISODES)

    def _evaluate(self) -> None:
        super()._evaluate()
        self.episodes_learned_from.append(int(getattr(self.model, "n_episodes", 0)))

    def _on_step(self) -> bool:
        super()._on_step()
        return not self.hit()

    def hit(self) -> float | None:
        """Env step of the first of the two evaluations; None so far."""
        return steps_to_threshold(self.evaluations["step"], self.evaluations["mean_return"], self.task.threshold)


def trial(
    algorithm: str,
    task: Task,
    settings: dict[str, Any],
    seed: int,
    budget: int,
    evaluate_every: int = EVALUATE_EVERY,
    batched: bool = True,
    on_progress: OnProgress | None = None,
) -> Row:
    """One run, as a row of the results.

    A setting that fails (weights that overflow, say) is a row with the score of the task's worst return.
    """
    task = dataclasses.replace(task, evaluate_every=evaluate_every)
    callback = UntilThreshold(task, batched, on_progress)
    begin = time.perf_counter()
    error = ""
    model = get_contestant(algorithm.lower()).build(
        task.id, seed, None, make_vec if batched else make_vec_env, **settings
    )
    try:
        model.learn(budget, callback=callback)
    except ValueError as failure:
        error = str(failure)[:80]
    returns, hit = callback.evaluations["mean_return"], callback.hit()
    n_expected = budget // evaluate_every
    curve = (
        [task.normalised(value) for value in [*returns, *[returns[-1]] * n_expected][:n_expected]] if returns else []
    )
    index = callback.evaluations["step"].index(hit) if hit is not None else None
    return {
        "algorithm": algorithm,
        "settings": json.dumps(settings, sort_keys=True),
        "seed": seed,
        "budget": budget,
        "score": 0.0 if error or not curve else float(np.mean(curve)),
        "steps_to_threshold": hit,
        "episodes_to_threshold": None if index is None else callback.episodes_learned_from[index],
        "last_return": returns[-1] if returns else np.nan,
        "seconds": round(time.perf_counter() - begin, 1),
        "error": error,
    }


def search(algorithm: str, task: Task, rows: Rows, budget: int, clock: Clock | None = None) -> dict[str, Any]:
    """Both rounds; the winning settings."""

    def score(settings: dict[str, Any], seed: int, env_steps: int) -> float:
        row = rows.get(algorithm, json.dumps(settings, sort_keys=True), seed, env_steps)
        if row is not None:
            if clock is not None:
                clock.skip(env_steps)
            return float(row["score"])
        if clock is None:
            row = trial(algorithm, task, settings, seed, env_steps)
        else:
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            with clock.run(f"{algorithm} on {task.id}, {shown}, seed {seed}", env_steps) as report:
                row = trial(algorithm, task, settings, seed, env_steps, on_progress=report)
        rows.add([row])
        return float(row["score"])

    candidates = grid(algorithm)
    first = [score(settings, FIRST_SEED, budget // 2) for settings in candidates]
    finalists: list[dict[str, Any]] = [candidates[i] for i in np.argsort(first, kind="stable")[::-1][:FINALISTS]]
    second = [np.mean([score(settings, FIRST_SEED + k, budget) for k in (1, 2)]) for settings in finalists]
    return finalists[int(np.argmax(second))]


def family(algorithms: Sequence[str] | None) -> Sequence[str]:
    """``algorithms``, or all of the family.

    Raises:
        ValueError: One that is not of the family.
    """
    if unknown := [name for name in algorithms or () if name not in FAMILY]:
        raise ValueError(f"unknown algorithm {unknown[0]!r}; known: {', '.join(FAMILY)}")
    return algorithms or FAMILY


def tune_family(
    algorithms: Annotated[list[str] | None, typer.Option("--algorithm", help="As SVRPG; all six by default.")] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="All that are batched by default.")] = None,
    budget: Annotated[int, typer.Option(min=2, help="Env steps of a run of the second round.")] = BUDGET,
    output: Annotated[Path, typer.Option(help="Folder of the rows; runs that are there are not repeated.")] = Path(
        "runs/tune_family"
    ),
    settings: Annotated[
        Path | None,
        typer.Option(help="JSON file that the winners are put into; OUTPUT/tuned_settings.json by default."),
    ] = None,
) -> None:
    """Search the grid for each algorithm and task; agents read the winners in storm_rl/zoo/tuned_settings.json."""
    torch.set_num_threads(1)
    path = settings or output / SETTINGS_FILE.name
    check_folder(path.parent)
    chosen = [get_task(task_id) for task_id in tasks or BATCHED]
    for task in chosen:
        batched_class(task.id)
    names = family(algorithms)
    # The first round with half of the budget, the second with all of it.
    searches = len(chosen) * len(names)
    count, total = 18 + 2 * FINALISTS, 18 * (budget // 2) + 2 * FINALISTS * budget
    with Clock(Console(), searches * count, searches * total) as clock:
        for task, algorithm in itertools.product(chosen, names):
            winner = search(algorithm, task, Rows(output / f"{task.id}.csv", KEY), budget, clock)
            winners: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
            winners.setdefault(algorithm, {})[task.id] = winner
            write_atomically(path, (json.dumps(winners, indent=2, sort_keys=True) + "\n").encode())
            clock.console.print(f"{algorithm} on {task.id}: {winner}", markup=False, soft_wrap=True)
    write_atomically(output / "table.md", table(output).encode())


def table(folder: Path) -> str:
    """For each task and algorithm the settings that won and their runs of the second round, as Markdown."""
    lines = []
    for task_id in TASKS:
        rows = Rows(folder / f"{task_id}.csv", KEY).table()
        if rows.empty:
            continue
        for algorithm, runs in rows[rows["seed"] > FIRST_SEED].groupby("algorithm", sort=False):
            scores = runs.groupby("settings")["score"].mean()
            won = runs[runs["settings"] == scores.idxmax()]
            settings = json.loads(str(scores.idxmax()))
            steps = ("-" if np.isnan(value) else f"{value:,.0f}" for value in won["steps_to_threshold"])
            lines.append(
                {
                    "task": task_id,
                    "algorithm": algorithm,
                    "learning rate": settings["learning_rate"],
                    "batch": "/".join(str(settings[name]) for name in SIZES if name in settings),
                    "baseline": settings["baseline"],
                    "score": f"{scores.max():.2f}",
                    "env steps to threshold": ", ".join(steps),
                    "last return": ", ".join(f"{value:.0f}" for value in won["last_return"]),
                }
            )
    return f"{EXPLANATION}\n\n{markdown_table(pd.DataFrame(lines))}\n"
