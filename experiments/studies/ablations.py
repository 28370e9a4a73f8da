"""What each part of STORM+PG is worth: its ablations on every task, over the steps in which the default learns.

The ablations are those of ``agents/ablations.py``. Runs are on the batched environments, which agree with gymnasium's
step for step, and shorter than the benchmark's (`BUDGETS`): a variant that has not reached the threshold by then counts
as the whole budget. One folder a task, since its runs share a budget.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from agents.ablations import ABLATIONS
from experiments.files import write_atomically
from experiments.measures import measured
from experiments.report.study import OURS, label
from experiments.storage import load_runs
from experiments.studies.benchmark import grid, run_benchmark

RESULTS = Path(__file__).parents[1] / "results" / "ablations"
# Env steps: about twice what the default needs to the threshold.
BUDGETS = {
    "Pendulum-v1": 30_000,
    "CartPole-v1": 15_000,
    "MountainCar-v0": 40_000,
    "Acrobot-v1": 24_000,
    "MountainCarContinuous-v0": 12_000,
}
EXPLANATION = (
    "Env steps to the threshold of each seed in thousands (`-`: not within the steps run), and in brackets the mean of "
    "all evaluations (normalised return, 0 to 1). Batched environments."
)


def ablations(
    output: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are not repeated.")] = RESULTS,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
) -> None:
    """Run STORM+PG's ablations on every task and write ``ablations.md``, a row for each."""
    succeeded = True
    for task, budget in BUDGETS.items():
        specs = grid([OURS, *ABLATIONS], [task], range(seeds), batched=True)
        succeeded &= run_benchmark(specs, output / task, workers, budget)
    write_atomically(output / "ablations.md", summary(output).encode())
    typer.echo(f"Table: {output / 'ablations.md'}")
    raise typer.Exit(0 if succeeded else 1)


def summary(folder: Path) -> str:
    """The table of the runs in ``folder``, as Markdown."""
    columns = {}
    for task, budget in BUDGETS.items():
        rows = measured(load_runs(folder / task).values())
        cells = {agent: _cell(group.sort_values("seed")) for agent, group in rows.groupby("agent")}
        columns[f"{task} ({budget // 1000}k)"] = cells
    table = pd.DataFrame(columns).reindex([OURS, *ABLATIONS]).fillna("")
    names = ["default", *(label(agent) for agent in ABLATIONS)]
    lines = ["| variant | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in zip(names, table.to_numpy(), strict=True)]
    return f"# Ablations of STORM+PG\n\n{EXPLANATION}\n\n" + "\n".join(lines) + "\n"


def _cell(rows: pd.DataFrame) -> str:
    steps = [
        f"{value / 1000:.0f}" if reached else "-"
        for value, reached in zip(rows["steps_to_threshold"], rows["reached"], strict=True)
    ]
    return f"{' '.join(steps)} ({rows['evaluation_score'].mean():.2f})"
