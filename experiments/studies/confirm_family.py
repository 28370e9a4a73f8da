"""The tuned family on seeds that the search did not see: trajectories and env steps to the threshold.

Every algorithm with its settings for the task of ``storm_rl/zoo/tuned_settings.json``, seeds 0 to 4, at most a million
env steps on gymnasium's own environments, evaluated every 1,000; a run ends at the threshold (two evaluations in a
row). Rows are in ``confirm_<task>.csv``; what is there is not run again.

``python -m experiments confirm-family --help``.
"""

import itertools
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console

from envs import get_task
from experiments.files import write_atomically
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Rows
from experiments.studies.tune_family import family, trial
from storm_rl.zoo.settings import tuned_settings

BUDGET = 1_000_000
EVALUATE_EVERY = 1_000


def confirm_family(
    task: Annotated[str, typer.Option(help="A task of the benchmark.")] = "CartPole-v1",
    algorithms: Annotated[list[str] | None, typer.Option("--algorithm", help="As SVRPG; all six by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 5,
    budget: Annotated[int, typer.Option(min=1, help="Env steps of a run.")] = BUDGET,
    output: Annotated[Path, typer.Option(help="Folder of the rows; runs that are there are not repeated.")] = Path(
        "runs/confirm_family"
    ),
) -> None:
    """Run the tuned algorithms on fresh seeds and show what they needed."""
    torch.set_num_threads(1)
    chosen = get_task(task)
    rows = Rows(output / f"confirm_{task}.csv", ("algorithm", "seed"))
    asked = itertools.product(family(algorithms), range(seeds))
    missing = [(algorithm, seed) for algorithm, seed in asked if rows.get(algorithm, seed) is None]
    with Clock(Console(), len(missing), len(missing) * budget) as clock:
        for algorithm, seed in missing:
            settings = tuned_settings(algorithm).get(task, {})
            with clock.run(f"{algorithm}, seed {seed}", budget) as report:
                rows.add([trial(algorithm, chosen, settings, seed, budget, EVALUATE_EVERY, False, report)])
    found = summary(rows.table())
    write_atomically(rows.path.with_suffix(".md"), (markdown_table(found.reset_index()) + "\n").encode())
    typer.echo(found.to_string())


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """For each algorithm: runs that reached the threshold, median trajectories and env steps of those."""
    grouped = rows.groupby("algorithm", sort=False)
    return pd.DataFrame(
        {
            "reached": grouped["steps_to_threshold"].count(),
            "runs": grouped.size(),
            "trajectories (median)": grouped["episodes_to_threshold"].agg(_median),
            "trajectories (each)": grouped["episodes_to_threshold"].agg(_listed),
            "env steps (median)": grouped["steps_to_threshold"].agg(_median),
        }
    )


def _listed(each: "pd.Series[float]") -> str:
    return ", ".join(f"{value:.0f}" for value in sorted(each.dropna()))


def _median(each: "pd.Series[float]") -> str:
    return f"{each.median():,.0f}"
