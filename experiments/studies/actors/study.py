"""The command: what is missing is measured, and all of it becomes a table and a figure."""

import os
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console

from experiments.engines import THREAD_VARIABLES
from experiments.files import write_atomically
from experiments.plots import COLOURS, LINES, MARKERS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.statistics import estimate, ratio_of_medians

# "engines" is of a comparison with Dask, whose code is gone.
TABLES = ("speed", "engines", "learning", "learner", "simulated", "faults")
MODES = ("synchronous", "asynchronous")


class Part(StrEnum):
    """What is measured."""

    SPEED = "speed"
    LEARNING = "learning"
    LIMITS = "limits"
    FAULTS = "faults"


def actors(
    output: Annotated[Path, typer.Option(help="Folder of rows, table and figure; finished rows stay.")] = Path(
        "runs/actors"
    ),
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What is measured; all by default.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each measurement of speed, in turn.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of Pendulum in each mode, from 0 on.")] = 10,
    fault_runs: Annotated[int, typer.Option(min=1, help="Runs in which four actors and the learner are killed.")] = 5,
) -> None:
    """Measure actors beyond one process: speed, staleness, the learner's limit, and faults. Needs Ray."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ValueError("this study needs Ray: pip install 'storm-rl[ray]'") from error
    # One thread each: of the learner, and of whatever it starts.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    torch.set_num_threads(1)
    chosen = set(parts or Part)
    jobs: list[tuple[str, Callable[[], None]]] = []
    if Part.SPEED in chosen:
        jobs.append(("speed", lambda: _speed(output, repeats)))
    if Part.LEARNING in chosen:
        jobs += [
            (f"Pendulum, {mode}, seed {seed}", lambda mode=mode, seed=seed: _learning(output, mode, seed))  # type: ignore[misc]
            for seed in range(seeds)
            for mode in MODES
        ]
    if Part.LIMITS in chosen:
        jobs.append(("limits", lambda: _limits(output)))
    if Part.FAULTS in chosen:
        jobs += [(f"faults, seed {seed}", lambda seed=seed: _faults(output, seed)) for seed in range(fault_runs)]  # type: ignore[misc]
    with Clock(Console(), len(jobs), len(jobs), "parts") as clock:
        for name, job in jobs:
            with clock.run(name):
                job()
    write_atomically(output / "actors.md", report(output).encode())
    typer.echo(f"Table: {output / 'actors.md'}")


def _speed(output: Path, repeats: int) -> None:
    from experiments.studies.actors.speed import CONFIGURATIONS, speeds

    rows = Rows(output / "speed.csv", ("configuration", "repeat"))
    # In turn, so that a slow minute of the machine is everybody's.
    wanted = [(name, repeat) for repeat in range(repeats) for name in CONFIGURATIONS]
    speeds([key for key in wanted if rows.get(*key) is None], lambda row: rows.add([row]))


def _learning(output: Path, mode: str, seed: int) -> None:
    from experiments.studies.actors.speed import learned

    rows = Rows(output / "learning.csv", ("mode", "seed"))
    if rows.get(mode, seed) is None:
        rows.add([learned(mode, seed)])


def _limits(output: Path) -> None:
    from experiments.studies.actors import limits

    learner = Rows(output / "learner.csv", ("actors", "repeat"))
    rollouts = Rows(output / "rollouts.csv", ("environment", "repeat"))
    for environment in limits.ENVIRONMENTS:
        if rollouts.get(environment, 0) is None:
            rollouts.add(limits.actor_times(environment, 30))
    for n_actors in limits.MEASURED_ACTORS:
        if learner.get(n_actors, 0) is None:
            learner.add(limits.learner_times(n_actors))
    times = learner.table().groupby("actors")[["taking", "learning"]].median()
    fitted = limits.Learner.fitted(*(list(column) for column in (times.index, times["taking"], times["learning"])))
    simulated: list[Row] = []
    for task, group in rollouts.table().groupby("environment", sort=False):
        for spread in (1.0,) if task == "CartPole" else (1.0, limits.SPREAD):
            name = str(task) if spread == 1.0 else f"{task}, some actors up to {spread:g} times as slow"
            for count in limits.SIMULATED_ACTORS:
                row = limits.simulate(count, fitted, list(group["seconds"]), spread)
                simulated.append({"environment": name, **row})
    Rows(output / "simulated.csv", ("environment", "actors")).add(simulated)
    draw(pd.DataFrame(simulated), output / "actors.png")


def _faults(output: Path, seed: int) -> None:
    from experiments.studies.actors.faults import killed

    rows = Rows(output / "faults.csv", ("seed",))
    if rows.get(seed) is None:
        # What an interrupted study has left is no run of this one.
        with tempfile.TemporaryDirectory() as folder:
            rows.add([killed(Path(folder), seed)])


def report(output: Path) -> str:
    """All that is there, as Markdown."""
    text = ["# Actors beyond one process"]
    found = {name: _table(output / f"{name}.csv") for name in TABLES}
    if (speed := found["speed"]) is not None:
        rates = speed.groupby("configuration", sort=False)["rate"].agg(["median", "min", "max"])
        rates["of DummyVecEnv"] = rates["median"] / rates["median"].iloc[0]
        rates["of SubprocVecEnv"] = rates["median"] / rates["median"].iloc[1]
        shown = rates.map("{:.0f}".format).assign(
            **{name: rates[name].map("{:.2f}".format) for name in ("of DummyVecEnv", "of SubprocVecEnv")}
        )
        text += ["## Env steps per second", "CartPole with steps of 5 ms, 8 environments, learning included."]
        text += [markdown_table(shown.reset_index())]
    if (engines := found["engines"]) is not None:
        calls = engines.groupby(["engine", "bytes"], sort=False)["milliseconds"].agg(["median", "min", "max"])
        text += ["## Messages", "Milliseconds of a call of an actor, to and fro."]
        text += [markdown_table(calls.round(2).astype(str).reset_index())]
    if (learning := found["learning"]) is not None:
        text += ["## Env steps to Pendulum's threshold", _learned(learning)]
    if (learner := found["learner"]) is not None:
        times = learner.groupby(["actors", "transitions"])[["taking", "learning"]].median().reset_index()
        times["transitions per second"] = times["transitions"] / (times["taking"] + times["learning"])
        text += [
            "## What the learner takes",
            "Median processor seconds of a round that is there already, 128 transitions an actor.",
        ]
        text += [markdown_table(times.round(4).astype(str))]
    if (simulated := found["simulated"]) is not None:
        text += ["## Simulated", "Rates in env steps per second, ages in updates, the learner's share of busy time."]
        text += [markdown_table(simulated.round(2).astype(str)), "![Simulated actors](actors.png)"]
    if (faults := found["faults"]) is not None:
        text += ["## Faults", markdown_table(faults.round(0).astype(int).astype(str))]
    return "\n\n".join(text) + "\n"


def _table(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.exists() else None


def _learned(rows: pd.DataFrame) -> str:
    steps = {mode: rows[rows["mode"] == mode].sort_values("seed")["steps"].to_numpy(float) for mode in MODES}
    lines = [
        f"- {mode}: {', '.join(f'{value:.0f}' for value in values)}; median {np.median(values):.0f}"
        for mode, values in steps.items()
    ]
    ages = rows[rows["mode"] == "asynchronous"]["age"]
    lines.append(
        f"- mean age of asynchronous rollouts: {ages.mean():.2f} updates; reached: {rows['reached'].mean():.0%}"
    )
    if all(len(values) > 1 for values in steps.values()):
        ratio = estimate(ratio_of_medians, [steps["asynchronous"]], [steps["synchronous"]])
        lines.append(
            f"- asynchronous / synchronous, medians: {ratio.value:.2f} "
            f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f})"
        )
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Rate, age and the learner's busy time against the number of actors."""
    names: dict[str, tuple[str, Any]] = {
        "rate": ("env steps per second", "log"),
        "oldest": ("age, 99th percentile, updates", "linear"),
        "busy": ("share of time the learner is busy", "linear"),
    }
    figure, panels = new_figure(1, len(names), (12.0, 3.6))
    for axes, (name, (label, scale)) in zip(panels, names.items(), strict=True):
        for number, (environment, group) in enumerate(rows.groupby("environment", sort=False)):
            style: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "marker": MARKERS[number]}
            axes.plot(group["actors"], group[name], label=str(environment), markersize=4, **style)
        axes.set_xscale("log")
        axes.set_yscale(scale)
        axes.set_xlabel("actors of 2 environments")
        axes.set_ylabel(label)
        if scale == "linear":
            axes.set_ylim(bottom=0.0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    save(figure, path)
