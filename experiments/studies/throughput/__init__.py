"""Env steps per second of ``learn()``: where its time goes, how it grows, and what it needs of memory.

Configurations take turns, repeat by repeat, so that drift of the machine hits all alike; ratios are taken within a
repeat. Each measurement is a row of ``throughput.csv``, written as soon as it is made.
"""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from envs import get_task
from experiments.files import write_atomically
from experiments.measures import measured
from experiments.report.study import OURS, REFERENCE
from experiments.runs import git_revision
from experiments.storage import load_runs
from experiments.studies.benchmark import grid, run_benchmark
from experiments.studies.throughput import report
from experiments.studies.throughput.configurations import (
    ALGORITHMS,
    BATCHES,
    N_ENVS,
    WIDTHS,
    Configuration,
    configurations,
)
from experiments.studies.throughput.measure import machine, memory, one_core, speed

TIMED_TASKS = ["CartPole-v1", "Acrobot-v1"]
# The row of a configuration that holds its memory, which needs no repeats.
MEMORY = -1


class Device(StrEnum):
    """Where networks are."""

    CPU = "cpu"
    CUDA = "cuda"


def throughput(
    algorithms: Annotated[
        list[str] | None, typer.Option("--algorithm", help="A contestant; give the option once for each.")
    ] = None,
    n_envs: Annotated[list[int] | None, typer.Option(min=1, help="Beside each one's own; 1, 8, 32, 64, 128.")] = None,
    widths: Annotated[
        list[int] | None, typer.Option("--width", min=1, help="Of two hidden layers; 64 to 1024.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=2, help="Transitions per rollout; 512, 2048, 8192.")
    ] = None,
    task: Annotated[str, typer.Option(help="A task that has batched environments.")] = "CartPole-v1",
    seconds: Annotated[float, typer.Option(min=0.0, help="Of learn() in one measure.")] = 2.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Env steps of a measure, in place of --seconds.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measures of each configuration.")] = 3,
    device: Annotated[Device, typer.Option(help="Where networks are.")] = Device.CPU,
    with_memory: Annotated[bool, typer.Option("--memory/--no-memory", help="A fresh process for each.")] = True,
    runs: Annotated[Path | None, typer.Option(help="Study with stored runs, for the time to the threshold.")] = None,
    timed_seeds: Annotated[
        int, typer.Option(min=0, help="Seeds run here, one at a time, for the time to the threshold.")
    ] = 0,
    output: Annotated[Path, typer.Option(help="Raw rows, table and plots; rows there are not measured again.")] = Path(
        "runs/throughput"
    ),
) -> None:
    """Measure the speed and memory of learn() on one core and one thread; write raw rows, a table and plots."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    if runs is not None and timed_seeds:
        raise ValueError("--runs reads stored runs, --timed-seeds makes them: leave out one")
    with one_core():
        found = configurations(
            get_task(task).id, algorithms or ALGORITHMS, n_envs or N_ENVS, widths or WIDTHS, batches or BATCHES, device
        )
        rows = measure_all(found, output / "throughput.csv", seconds, steps, repeats, with_memory)
        if timed_seeds:
            runs = output / "timed"
            # Workers inherit the core.
            if not run_benchmark(grid([OURS, REFERENCE], TIMED_TASKS, range(timed_seeds)), runs, workers=1):
                raise typer.Exit(1)
    report.build(rows, None if runs is None else to_threshold(runs), output)
    Console().print(f"Raw rows, table and plots: {output}", soft_wrap=True)


def measure_all(
    found: list[Configuration], path: Path, seconds: float, steps: int | None, repeats: int, with_memory: bool
) -> pd.DataFrame:
    """All rows of ``path``, after what it lacks was measured.

    Raises:
        ValueError: It holds measures of another length, which are not comparable.
    """
    keys = [name for name, entry in Configuration.__dataclass_fields__.items() if entry.compare]
    length = f"{seconds:g} s" if steps is None else f"{steps} steps"
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []  # type: ignore[assignment]
    others = {row["length"] for row in rows} - {length}
    if others:
        raise ValueError(f"{path} holds measures of {', '.join(sorted(others))}, not {length}; use another folder.")
    done = {(*(row[key] for key in keys), row["repeat"]) for row in rows}
    turns = [*([MEMORY] if with_memory else []), *range(repeats)]
    jobs = [(turn, c) for turn in turns for c in found if (*(getattr(c, key) for key in keys), turn) not in done]
    # Rows of different runs of this command are not put in ratio to each other.
    run = {"run": time.strftime("%Y-%m-%dT%H:%M:%S"), "git": git_revision(), "length": length}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(jobs))
        for turn, c in jobs:
            progress.update(bar, description=f"{c.algorithm} {c.n_envs} {c.environments}, width {c.width}")
            measures = memory(c) if turn == MEMORY else speed(c, seconds, steps)
            rows.append({**run, "machine": machine(c.device), **vars(c), "repeat": turn, **measures})
            write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
            progress.advance(bar)
    return pd.DataFrame(rows)


def to_threshold(folder: Path) -> pd.DataFrame:
    """A row for each run of STORM+PG and tuned PPO on the timed tasks, gymnasium's environments, as `measured`."""
    rows = measured(load_runs(folder).values())
    return rows[rows["agent"].isin([OURS, REFERENCE]) & rows["task"].isin(TIMED_TASKS) & ~rows["batched"]]
