"""Env steps per second of ``learn()``: where its time goes, how it grows, and what it needs of memory.

Configurations take turns, repeat by repeat, so that drift of the machine hits all alike; ratios are taken within a
repeat. Each measurement is a row of ``throughput.csv``, written as soon as it is made.
"""

import itertools
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console

from agents import get_contestant
from envs import get_task
from envs.batched import batched_class
from experiments.measures import measured
from experiments.progress import Clock
from experiments.report.study import OURS, REFERENCE
from experiments.rows import Rows
from experiments.runs import git_revision
from experiments.storage import load_runs
from experiments.studies.throughput import report
from experiments.studies.throughput.configurations import (
    ALGORITHMS,
    BATCHES,
    KEY,
    N_ENVS,
    THREADS,
    WIDTHS,
    Configuration,
    configurations,
    on_images,
)
from experiments.studies.throughput.environments import has_envpool
from experiments.studies.throughput.measure import machine, memory, speed, use_threads
from experiments.studies.tune_family import UntilThreshold

TIMED = "timed.csv"
TIMED_KEY = ("task", "seed", "agent")
TEXT = ("git", "threads")
TIMED_TASKS = ["CartPole-v1", "Acrobot-v1"]
# The row of a configuration that holds its memory, which needs no repeats.
MEMORY = -1


class Device(StrEnum):
    """Where networks are."""

    CPU = "cpu"
    CUDA = "cuda"


class Kind(StrEnum):
    """Where environments come from."""

    GYMNASIUM = "gymnasium"
    BATCHED = "batched"
    VECTOR = "vector"
    ENVPOOL = "envpool"


class Threads(StrEnum):
    """How many threads."""

    ONE = "1"
    DEFAULT = "default"


def throughput(
    algorithms: Annotated[
        list[str] | None, typer.Option("--algorithm", help="An agent; give the option once for each.")
    ] = None,
    n_envs: Annotated[list[int] | None, typer.Option(min=1, help="Beside each one's own; 1 to 1024.")] = None,
    widths: Annotated[
        list[int] | None, typer.Option("--width", min=1, help="Of two hidden layers; 64 to 1024.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=2, help="Transitions per rollout; 512, 2048, 8192.")
    ] = None,
    kinds: Annotated[
        list[Kind] | None,
        typer.Option("--environments", help="Single, batched, gymnasium's vector's, EnvPool's; all there are."),
    ] = None,
    images: Annotated[
        bool,
        typer.Option("--images/--no-images", help="Also networks with convolutions, on pictures that cost nothing."),
    ] = True,
    task: Annotated[str, typer.Option(help="A task that has batched environments.")] = "CartPole-v1",
    seconds: Annotated[float, typer.Option(min=0.0, help="Of learn() in one measure.")] = 2.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Env steps of a measure, in place of --seconds.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measures of each configuration.")] = 3,
    device: Annotated[Device, typer.Option(help="Where networks are.")] = Device.CPU,
    threads: Annotated[
        list[Threads] | None, typer.Option(help="One torch thread on one core, or nothing set; both by default.")
    ] = None,
    with_memory: Annotated[bool, typer.Option("--memory/--no-memory", help="A fresh process for each.")] = True,
    runs: Annotated[Path | None, typer.Option(help="Study with stored runs, for the time to the threshold.")] = None,
    timed_seeds: Annotated[
        int, typer.Option(min=0, help="Seeds run here, one at a time, for the time to the threshold.")
    ] = 0,
    output: Annotated[Path, typer.Option(help="Raw rows, table and plots; rows there are not measured again.")] = Path(
        "runs/throughput"
    ),
) -> None:
    """Measure the speed and memory of learn(), on one core and as started; write raw rows, a table and plots."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    if runs is not None and timed_seeds:
        raise ValueError("--runs reads stored runs, --timed-seeds makes them: leave out one")
    batched_class(get_task(task).id)
    stored = None if runs is None else to_threshold(runs)  # Found missing before the measures rather than after.
    sizes = (n_envs or N_ENVS, widths or WIDTHS, batches or BATCHES)
    chosen = kinds or [kind for kind in Kind if kind != Kind.ENVPOOL or has_envpool()]
    if not kinds and Kind.ENVPOOL not in chosen:
        Console().print(
            'EnvPool is not installed, and its rows are left out: pip install "storm-rl[envpool]".', markup=False
        )
    found = configurations(get_task(task).id, algorithms or ALGORITHMS, *sizes, device, threads or THREADS, chosen)
    if images:
        found += on_images(device, threads or THREADS)
    rows = measure_all(found, output / "throughput.csv", seconds, steps, repeats, with_memory)
    timed = stored
    if timed_seeds or (runs is None and (output / TIMED).exists()):
        timed = time_all(output / TIMED, timed_seeds)
    report.build(rows, timed, output)
    Console().print(f"Raw rows, table and plots: {output}", soft_wrap=True)


def measure_all(
    found: list[Configuration], path: Path, seconds: float, steps: int | None, repeats: int, with_memory: bool
) -> pd.DataFrame:
    """All rows of ``path``, after what it lacks was measured.

    Raises:
        ValueError: It holds measures of another length, which are not comparable.
    """
    length = f"{seconds:g} s" if steps is None else f"{steps} steps"
    # The first rows were all measured with one thread, and do not say so.
    rows = Rows(path, (*KEY, "repeat"), {"threads": Threads.ONE.value}, TEXT)
    others = {row["length"] for row in rows.table().to_dict("records")} - {length}
    if others:
        raise ValueError(f"{path} holds measures of {', '.join(sorted(others))}, not {length}; use another folder.")
    turns = [*([MEMORY] if with_memory else []), *range(repeats)]
    jobs = [(turn, c) for turn in turns for c in found if rows.get(*c.key(), turn) is None]
    jobs = [(turn, c) for turn, c in jobs if turn != MEMORY or c.threads == Threads.ONE]
    # Rows of different calls of this command are not put in ratio to each other.
    call = {"run": time.strftime("%Y-%m-%dT%H:%M:%S"), "git": git_revision(), "length": length}
    with Clock(Console(), len(jobs), len(jobs), "measures") as clock:
        for turn, c in jobs:
            name = f"{c.algorithm} {c.n_envs} {c.environments}, {c.n_steps} steps, width {c.width}, threads {c.threads}"
            what = "memory" if turn == MEMORY else f"repeat {turn}"
            with clock.run(f"{name}, {what}"), use_threads(c.threads):
                measures = memory(c) if turn == MEMORY else speed(c, seconds, steps)
                rows.add([{**call, "machine": machine(c), **vars(c), "repeat": turn, **measures}])
    return rows.table()


def time_all(path: Path, seeds: int) -> pd.DataFrame:
    """All rows of ``path``, after what it lacks was measured: the time of STORM+PG and RL Zoo's PPO to the threshold.

    By the benchmark's protocol, on one core, but a run ends with the second evaluation at the threshold. Agents take
    turns.
    """
    rows = Rows(path, TIMED_KEY, text=TEXT)
    jobs = [job for job in itertools.product(TIMED_TASKS, range(seeds), (OURS, REFERENCE)) if rows.get(*job) is None]
    with Clock(Console(), len(jobs), sum(get_task(task_id).budget for task_id, _, _ in jobs)) as clock:
        for task_id, seed, agent in jobs:
            task = get_task(task_id)
            with clock.run(f"{agent} to the threshold of {task_id}, seed {seed}", task.budget) as progress:
                callback = UntilThreshold(task, False, progress)
                with use_threads(Threads.ONE):
                    get_contestant(agent).build(task_id, seed, None).learn(task.budget, callback=callback)
            hit, evaluations = callback.hit(), callback.evaluations
            row = {"task": task_id, "seed": seed, "agent": agent, "git": git_revision(), "reached": hit is not None}
            row["steps_to_threshold"] = task.budget if hit is None else hit
            seconds = evaluations["learn_seconds"]
            row["seconds_to_threshold"] = seconds[-1 if hit is None else evaluations["step"].index(hit)]
            rows.add([row])
    return rows.table()


def to_threshold(folder: Path) -> pd.DataFrame:
    """A row for each run of STORM+PG and RL Zoo's PPO on the timed tasks, gymnasium's environments, as `measured`."""
    rows = measured(load_runs(folder).values())
    return rows[rows["agent"].isin([OURS, REFERENCE]) & rows["task"].isin(TIMED_TASKS) & ~rows["batched"]]
