"""Agents x tasks x seeds by the benchmark's protocol: run what is missing, then tables and plots from the files."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from agents import get_contestant
from envs import get_task
from experiments.grid import run_grid
from experiments.measures import measure
from experiments.plots import learning_curves
from experiments.runs import RunSpec, load_run, write_atomically


def run_benchmark(
    agents: list[str], tasks: list[str], seeds: list[int], output: Path, workers: int, budget: int | None = None
) -> bool:
    """Run the grid and show its results; True if no run failed.

    Raises:
        ValueError: Unknown agent or task, or a file that is not a whole run of this protocol.
    """
    console = Console()
    specs = [
        RunSpec(get_contestant(agent).name, get_task(task).id, seed)
        for task in tasks
        for seed in seeds
        for agent in agents
    ]
    failed = run_grid(specs, output, workers, console, budget)
    finished = [spec for spec in specs if spec not in failed]
    if finished:
        _show(finished, output, console)
    console.print(f"\nRaw runs: {output / 'raw'}\nTensorBoard: tensorboard --logdir {output / 'tensorboard'}")
    return not failed


def _show(specs: list[RunSpec], output: Path, console: Console) -> None:
    runs = [load_run(output / "raw" / f"{spec.stem}.json.gz") for spec in specs]
    rows = pd.DataFrame([measure(run) for run in runs])
    write_atomically(output / "runs.csv", rows.to_csv(index=False).encode())
    for task_id in dict.fromkeys(spec.task for spec in specs):
        by_agent: dict[str, list[dict[str, object]]] = {}
        for run in runs:
            if run["task"] == task_id:
                by_agent.setdefault(run["agent"], []).append(run)
        console.print(results_table(task_id, rows[rows["task"] == task_id]))
        plot = output / f"learning_curves_{task_id}.png"
        learning_curves(get_task(task_id), by_agent, plot)
        console.print(f"Learning curves: {plot}")


def results_table(task_id: str, rows: pd.DataFrame) -> Table:
    """One task's results, a row for each agent: medians over seeds, and every seed's steps to the threshold."""
    threshold, budget = get_task(task_id).threshold, int(rows["budget"].max())
    table = Table(
        title=f"{task_id}: env steps to a deterministic return of {threshold:g}, budget {budget:,} env steps",
        caption="Medians over seeds. Final return: deterministic policy, 100 episodes.",
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
            get_contestant(str(agent)).label,
            f"{group['steps_to_threshold'].median():,.0f}",
            each,
            f"{group['final_return'].median():.1f}",
            f"{group['steps_per_second'].median():,.0f}",
        )
    return table
