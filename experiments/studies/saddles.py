r"""Leaving saddle points: gradients until the loss is low, with `SaddleEscape` around an optimiser and without.

Two of the problems are :math:`f(x) = \frac12 x^\top \mathrm{diag}(-\epsilon, 1, \dots, 1) x + x_1^4 / 16` with
:math:`\epsilon = 0.01`, in n dimensions, after the experiments of Zhang and Li (NeurIPS 2021): the saddle is at 0 and
the least value is :math:`-\epsilon^2`. One begins next to the saddle, in a ball of radius 0.1, the other comes from
afar along the directions that lead into it. The third is a policy gradient: n actions, each chosen without a look at
the others, are paid if all are the same (`envs.mdps.agreement`). A policy of even chances, which is how training
begins, is at a saddle. All gradients are exact.

``python -m experiments saddles --help``
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from envs.mdps import agreement
from experiments.files import write_atomically
from experiments.plots import COLOURS, MARKERS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Rows
from storm_rl.negative_curvature import SaddleEscape
from storm_rl.optim import STORM, MetaSTORM, STORMPlus

EPSILON = 0.01


class Problem(NamedTuple):
    """A loss, where it begins, and the loss at which the saddle has been left."""

    loss: Callable[[Tensor], Tensor]
    start: Tensor
    goal: float


def _quartic(n: int, start: Tensor) -> Problem:
    curvatures = torch.ones(n, dtype=torch.float64)
    curvatures[0] = -EPSILON
    return Problem(lambda x: 0.5 * (curvatures * x * x).sum() + x[0] ** 4 / 16, start, -0.5 * EPSILON**2)


def near(n: int, generator: torch.Generator) -> Problem:
    """Begins at a point drawn from the ball of radius 0.1 around the saddle."""
    drawn = torch.randn(n, dtype=torch.float64, generator=generator)
    radius = 0.1 * torch.rand((), dtype=torch.float64, generator=generator) ** (1.0 / n)
    return _quartic(n, radius * drawn / drawn.norm())


def from_afar(n: int, generator: torch.Generator) -> Problem:
    """Begins at a distance of 1, and 1e-6 beside the directions that lead into the saddle."""
    start = torch.randn(n, dtype=torch.float64, generator=generator)
    start[0] = 0.0
    start /= start.norm()
    start[0] = 1e-6
    return _quartic(n, start)


def agreeing(n: int, generator: torch.Generator) -> Problem:
    """Chances that are nearly even; the goal is an expected reward of 0.9 of 1."""
    mdp, seen = agreement(n)
    start = 1e-3 * torch.randn(2 * n, dtype=torch.float64, generator=generator)
    every = mdp.trajectories()
    returns = every.rewards.sum(dim=1)
    return Problem(lambda x: -(mdp.probabilities(x.reshape(n, 2)[seen], every) * returns).sum(), start, -0.9)


PROBLEMS: dict[str, tuple[Callable[[int, torch.Generator], Problem], tuple[int, ...], str]] = {
    "near the saddle": (near, (10, 100, 1_000, 10_000), "dimensions"),
    "from afar": (from_afar, (10, 100, 1_000, 10_000), "dimensions"),
    "policy gradient": (agreeing, (2, 4, 6, 8), "actions that have to agree"),
}
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    # One over the largest curvature of the first two problems.
    "gradient descent": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    # Nothing is drawn within a step that would have to be replayed.
    "STORM+": partial(STORMPlus, replay=False),
    "STORM": partial(STORM, replay=False),
    "META-STORM": partial(MetaSTORM, replay=False),
}
ESCAPE: dict[str, Any] = {"max_gradient_norm": 0.01, "min_curvature": 0.005, "step_length": 0.1}


def leave(problem: Problem, optimizer: str, escaping: bool, most: int) -> tuple[int, bool, int]:
    """Gradients until the goal (at most about ``most``), whether it was reached, and steps along negative curvature."""
    x = nn.Parameter(problem.start.clone())
    inner = OPTIMIZERS[optimizer]([x])
    escape = SaddleEscape(inner, **ESCAPE)
    gradients = 0

    def closure() -> Tensor:
        nonlocal gradients
        gradients += 1
        loss = problem.loss(x)
        (x.grad,) = torch.autograd.grad(loss, x)
        return loss

    step: Callable[[Any], Any] = escape.step if escaping else inner.step
    while gradients < most:
        step(closure)
        with torch.no_grad():
            if float(problem.loss(x)) <= problem.goal:
                return gradients, True, escape.escapes
    return gradients, False, escape.escapes


def saddles(
    output: Annotated[Path, typer.Option(help="Folder of rows, table and figure; finished rows stay.")] = Path(
        "runs/saddles"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Starts of each problem, from seed 0 on.")] = 5,
    most: Annotated[int, typer.Option(min=1, help="Gradients after which a run is given up.")] = 2_000,
) -> None:
    """Negative curvature around the optimisers, with and without: gradients until a saddle is left."""
    rows = Rows(output / "saddles.csv", ("problem", "size", "optimizer", "escape", "seed", "most"))
    runs = [
        (problem, size, optimizer, escape, seed, most)
        for problem, (_, sizes, _) in PROBLEMS.items()
        for size, optimizer, escape, seed in product(sizes, OPTIMIZERS, (False, True), range(seeds))
    ]
    missing = [run for run in runs if rows.get(*run) is None]
    with Clock(Console(), len(missing), len(missing), "runs", a_line_each=False) as clock:
        for run in missing:
            name, size, optimizer, escape, seed, _ = run
            with clock.run(f"{name}, {size}, {optimizer}"):
                problem = PROBLEMS[name][0](size, torch.Generator().manual_seed(seed))
                gradients, reached, escapes = leave(problem, optimizer, escape, most)
            found = {"gradients": gradients, "reached": reached, "escapes": escapes}
            rows.add([{**dict(zip(rows.key, run, strict=True)), **found}])
    table = rows.table()
    table = table[table["most"] == most]
    write_atomically(output / "saddles.md", summary(table).encode())
    draw(table, output / "saddles.png")
    typer.echo(f"Table: {output / 'saddles.md'}\nFigure: {output / 'saddles.png'}")


def summary(rows: pd.DataFrame) -> str:
    """Medians over starts, without and with, as Markdown."""
    most, seeds = int(rows["most"].iloc[0]), rows["seed"].nunique()

    def cell(group: pd.DataFrame) -> str:
        left, n = int(group["reached"].sum()), len(group)
        median = group["gradients"].where(group["reached"], float("inf")).median()
        return ("-" if median == float("inf") else f"{median:.0f}") + ("" if left == n else f" ({left} of {n})")

    keys = ["problem", "size", "optimizer", "escape"]
    cells = pd.Series({key: cell(group) for key, group in rows.groupby(keys, sort=False)})
    cells.index.names = keys
    pairs = cells.unstack("escape", sort=False)
    text = (pairs[False] + " / " + pairs[True]).unstack("optimizer", sort=False).reset_index()
    text["size"] = text["size"].astype(str)
    settings = ", ".join(f"{name}={value}" for name, value in ESCAPE.items())
    explanation = (
        f"Gradients until the loss is low, without / with `SaddleEscape({settings})`, those of its searches counted; "
        f"median of {seeds} starts. In brackets how many got there within {most:,} gradients, where not all did; `-`: "
        "half of them or fewer, so that there is no median. Size: dimensions, or actions that have to agree."
    )
    return f"# Leaving saddle points\n\n{explanation}\n\n{markdown_table(text)}\n"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each problem: gradients against size; full with the escape, dashed without; the median of starts."""
    names = list(rows["problem"].unique())
    most = int(rows["most"].iloc[0])
    figure, panels = new_figure(1, len(names), (4.0 * len(names), 3.8))
    for axes, name in zip(panels, names, strict=True):
        chosen = rows[rows["problem"] == name]
        for index, optimizer in enumerate(OPTIMIZERS):
            for escape in (False, True):
                group = chosen[(chosen["optimizer"] == optimizer) & (chosen["escape"] == escape)].groupby("size")
                median = group["gradients"].median().clip(upper=most)
                axes.plot(
                    median.index,
                    median,
                    "-" if escape else "--",
                    color=COLOURS[index],
                    marker=MARKERS[index],
                    markersize=4,
                    markerfacecolor=COLOURS[index] if escape else "none",
                    label=f"{optimizer}, escaping" if escape else optimizer,
                )
        axes.axhline(most, color="#808080", linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        if max(PROBLEMS[name][1]) > 100:
            axes.set_xscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(PROBLEMS[name][2])
    panels[0].set_ylabel("gradients")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path)
