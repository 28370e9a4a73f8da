"""Agents x tasks x seeds by the benchmark's protocol: run what is missing, then tables and plots from the files."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents import get_contestant
from envs import get_task
from envs.batched import batched_class
from experiments.engines import Engine
from experiments.execution import run_all
from experiments.files import write_atomically
from experiments.hparams import write_hparams
from experiments.measures import measured
from experiments.plots import save
from experiments.report.figures import learning_curves
from experiments.report.study import Study
from experiments.runs import EVALUATION_SEED, RunSpec, failed_path
from experiments.storage import Record, finished

# Bytes; file systems allow 255, of which write_atomically and endings take some.
LONGEST_STEM = 200


def run_specs(
    agents: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], batched: bool = False
) -> list[RunSpec]:
    """Every agent on every task with every seed, once, in an order in which the agents advance together.

    Tasks whose actions an agent cannot take are left out for it.

    Raises:
        ValueError: Unknown agent or task; an agent that can act in none of the tasks; seeds that are negative or an
            evaluation's; a name that is no file's; batched environments for an agent that has its own, or a task that
            has none.
    """
    if any(not 0 <= seed < EVALUATION_SEED for seed in seeds):
        raise ValueError(f"seeds must be from 0 to {EVALUATION_SEED - 1:,}, got {min(seeds)} to {max(seeds)}")
    own = [agent for agent in agents if get_contestant(agent).own_environments]
    if batched and own:
        raise ValueError(f"--batched: the environments of {', '.join(own)} are part of its settings; leave it out.")
    if batched:
        for task in tasks:
            batched_class(get_task(task).id)
    played = {(agent, get_task(task).id): get_contestant(agent).plays(task) for agent in agents for task in tasks}
    idle = [agent for agent in agents if not any(played[agent, task] for task in tasks)]
    if idle:
        raise ValueError(f"{', '.join(idle)} cannot take the actions of {', '.join(tasks)}: leave out either")
    specs = [
        RunSpec(get_contestant(agent).name, task, seed, batched)
        for task in tasks
        for seed in seeds
        for agent in agents
        if played[agent, task]
    ]
    for spec in specs:
        if "/" in spec.stem or len(spec.stem.encode()) > LONGEST_STEM:
            raise ValueError(
                f"agent {spec.agent!r}: runs are files of the agent's name, which must be without / and no longer"
            )
    return list(dict.fromkeys(specs))


def run_benchmark(
    specs: list[RunSpec],
    output: Path,
    workers: int,
    budget: int | None = None,
    engine: AbstractContextManager[Engine] | None = None,
    rerun_broken: bool = False,
) -> bool:
    """Run what is missing of ``specs`` and show their results; True if no run failed. Arguments as `run_all`'s."""
    console = Console()
    failed = run_all(specs, output, workers, console, budget, engine, rerun_broken)
    runs = finished(output, specs, budget, rerun_broken=False)
    if runs:
        _show(runs, output, console)
    show_failed(failed, len(specs), output, console)
    for name, value in (
        ("Raw runs", output / "raw"),
        ("TensorBoard", f"tensorboard --logdir {output / 'tensorboard'}"),
    ):
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    return not failed


def show_failed(failed: Sequence[RunSpec], asked: int, output: Path, console: Console) -> None:
    """Name the files with the tracebacks."""
    if failed:
        console.print(f"[red]{len(failed)} of {asked} runs failed[/]; the same command tries them again:")
    for spec in failed:
        console.print(f"  {failed_path(output, spec)}", markup=False, soft_wrap=True)


def _show(runs: dict[RunSpec, Record], output: Path, console: Console) -> None:
    rows = measured(runs.values())
    write_atomically(output / "runs.csv", rows.to_csv(index=False).encode())
    write_hparams(runs, output / "tensorboard" / "hparams")
    for task_id in dict.fromkeys(spec.task for spec in runs):
        study = Study.of({spec: run for spec, run in runs.items() if spec.task == task_id})
        agents = [*study.agents, *study.variants]
        console.print(results_table(task_id, rows[rows["task"] == task_id]))
        plot = output / f"learning_curves_{task_id}.png"
        save(learning_curves(study, agents, agents), plot)
        console.print(f"Learning curves: {plot}", markup=False, soft_wrap=True)


def results_table(task_id: str, rows: pd.DataFrame) -> Table:
    """One task's results, a row for each agent: medians over seeds, and every seed's steps to the threshold."""
    threshold, budget = get_task(task_id).threshold, int(rows["budget"].max())
    environments = "batched environments" if rows["batched"].any() else "gymnasium"
    table = Table(
        title=f"{task_id}: env steps to a deterministic return of {threshold:g}, budget {budget:,} env steps",
        caption=f"Medians over seeds. Final return: deterministic policy, 100 episodes. On {environments}.",
    )
    table.add_column("agent")
    for name in ("steps", "each seed", "final return", "env steps / s"):
        table.add_column(name, justify="right")
    for agent, group in rows.groupby("agent", sort=False):
        group = group.sort_values("seed")
        each = ", ".join(
            f"{steps / 1000:.0f}k" if reached else "never"
            for steps, reached in zip(group["steps_to_threshold"], group["reached"], strict=True)
        )
        table.add_row(
            escape(get_contestant(str(agent)).label),
            f"{group['steps_to_threshold'].median():,.0f}",
            each,
            f"{group['final_return'].median():.1f}",
            f"{group['steps_per_second'].median():,.0f}",
        )
    return table
