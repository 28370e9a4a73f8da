"""What set the steps and the momentum of STORM+PG, by the TensorBoard logs of a study's runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.files import write_atomically
from experiments.measures import measured
from experiments.report.page import markdown_table
from experiments.report.study import OURS
from experiments.rows import Row
from experiments.runs import log_folders, spec_of
from experiments.storage import load_runs

# Scalars of which there is a figure until the threshold and one after it.
HALVES: dict[str, tuple[str, Callable[[pd.Series], float]]] = {
    "bound": ("train/step_bound", pd.Series.mean),
    "momentum": ("train/momentum", pd.Series.median),
    "kl": ("train/kl", pd.Series.median),
    "slope": ("train/action_value_slope", pd.Series.median),
    "lookahead_slope": ("train/lookahead_slope", pd.Series.median),
    "residual_share": ("train/residual_share", pd.Series.median),
}


def step_bound(
    results: Annotated[Path, typer.Option(help="Folder of a benchmark's runs and their TensorBoard logs.")] = Path(
        "runs/benchmark"
    ),
    output: Annotated[
        Path | None, typer.Option(help="The table, as CSV; in the folder of the runs by default.")
    ] = None,
) -> None:
    """Tell what set each step of STORM+PG's runs: a CSV with a row for each run, and medians over seeds."""
    runs = [run for run in load_runs(results).values() if run["agent"] == OURS]
    if not runs:
        raise ValueError(f"there are no runs of {OURS} in {results}")
    thresholds = measured(runs)["steps_to_threshold"]
    rows = [
        {
            "task": run["task"],
            "seed": run["seed"],
            "steps_to_threshold": int(steps),
            **summary(log_of(results, run), steps),
        }
        for run, steps in zip(runs, thresholds, strict=True)
    ]
    table = pd.DataFrame(rows)
    path = output or results / "step_bound.csv"
    write_atomically(path, table.to_csv(index=False, float_format="%.3g").encode())
    medians = table.drop(columns="seed").groupby("task", sort=False).median().reset_index()
    typer.echo(markdown_table(medians.map(lambda value: value if isinstance(value, str) else _text(value))))
    typer.echo(f"Each run: {path}")


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def log_of(results: Path, run: Row) -> dict[str, pd.Series]:
    """The scalars that the run has logged, by name, each by env step.

    Raises:
        ValueError: The run has no log there, or several.
    """
    spec = spec_of(run)
    folders = log_folders(results, spec)
    if len(folders) != 1:
        raise ValueError(f"{spec.stem}: expected one TensorBoard log in {results}, found {len(folders)}")
    events = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: pd.Series({each.step: each.value for each in values}) for tag, values in scalars.items()}


def summary(log: dict[str, pd.Series], steps_to_threshold: float) -> dict[str, float]:
    """What the log says of the updates until the threshold, and of those after it.

    ``first_statistics_kl`` is the KL by which the first observation statistics moved the policy.
    """
    row = {}
    for name, (tag, statistic) in HALVES.items():
        values = log[tag]
        early = values.index <= steps_to_threshold
        row[f"{name}_before"] = statistic(values[early])
        row[f"{name}_after"] = statistic(values[~early]) if not early.all() else np.nan
    statistics = log["train/statistics_kl"]
    return {
        **row,
        "first_statistics_kl": statistics.iloc[0],
        "largest_later_statistics_kl": statistics.iloc[1:].max(),
        "largest_kl": log["train/kl"].max(),
    }
