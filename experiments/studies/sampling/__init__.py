r"""Minibatches of least variance for the agent's critics: in how many steps do they reach the loss of uniform ones?

Fits are taken from runs of the default agent: data, targets, network and optimiser as they are before the first step.
Each is then repeated from there with minibatches drawn in other ways, of the same expected size, and all samples at
each step as the limit of what less variance can bring. Measured are the loss on all data of the fit, that on fresh
transitions of the same policy with Monte-Carlo returns as targets, steps, processor time, and the variance of the
minibatch's gradient in the two terms of `agents.minimal_variance.decompose`.

``python -m experiments sampling --help``
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from envs import TASKS, get_task
from experiments.files import write_atomically
from experiments.progress import Clock
from experiments.rows import Row, Rows
from experiments.studies.sampling import report
from experiments.studies.sampling.fits import recorded_fits
from experiments.studies.sampling.replay import METHODS, replayed, variances

# Env steps of a run: the medians of the default agent to the tasks' thresholds (experiments/results/benchmark).
ENV_STEPS = {
    "CartPole-v1": 5_000,
    "Acrobot-v1": 4_000,
    "MountainCar-v0": 6_000,
    "MountainCarContinuous-v0": 3_000,
    "Pendulum-v1": 9_000,
}
RUN = ("task", "seed", "updates", "repeats")


def sampling(
    output: Annotated[Path, typer.Option(help="Folder of rows, tables and figure; finished runs stay.")] = Path(
        "runs/sampling"
    ),
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; the benchmark's five.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each task, from seed 0 on.")] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Updates of a run whose fits are repeated.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Draws of each method, whose mean is a curve.")] = 2,
) -> None:
    """Repeat the critics' fits with minibatches of least variance: steps, time, losses and variances."""
    torch.set_num_threads(1)
    names = [get_task(name).id for name in tasks or TASKS]
    for name in names:
        if name not in ENV_STEPS:
            raise ValueError(f"the study has no length of a run on {name}; it knows {', '.join(ENV_STEPS)}")
    fits = Rows(output / "fits.csv", (*RUN, "fit", "update", "method"))
    measured = Rows(output / "variances.csv", (*RUN, "fit", "update", "at"))
    # The last row that a run stores says that it is there.
    todo = [
        (name, seed) for seed in range(seeds) for name in names if not _finished(fits, name, seed, updates, repeats)
    ]
    with Clock(Console(), len(todo), len(todo) * (updates + 1), "fits") as clock:
        for name, seed in todo:
            key: Row = dict(zip(RUN, (name, seed, updates, repeats), strict=True))
            with clock.run(f"{name}, seed {seed}", updates + 1) as done:
                rows, others = [], []
                for index, fit in enumerate(recorded_fits(name, seed, ENV_STEPS[name], updates)):
                    rows += [{**key, **report.rounded(row)} for row in replayed(fit, repeats, seed)]
                    others += [{**key, **report.rounded(row)} for row in variances(fit, seed)]
                    done(index + 1)
                measured.add(others)
                fits.add(rows)
    table, spread = (
        each[(each["updates"] == updates) & (each["repeats"] == repeats) & each["task"].isin(names)]
        for each in (fits.table(), measured.table())
    )
    write_atomically(output / "sampling.md", report.summary(table, spread).encode())
    report.draw(table, spread, output / "sampling.png")
    typer.echo(f"Tables: {output / 'sampling.md'}\nFigure: {output / 'sampling.png'}")


def _finished(fits: Rows, task: str, seed: int, updates: int, repeats: int) -> bool:
    last = -(-ENV_STEPS[task] // 512)
    return fits.get(task, seed, updates, repeats, "critic", last, list(METHODS)[-1]) is not None
