"""Learning curves, in colours that remain apart for colour-blind readers and in print."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents import get_contestant
from envs import Task
from experiments.files import write_atomically
from experiments.measures import evaluations_within

# Okabe and Ito's palette without yellow, which is lost on white; then three of Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#882255", "#999933", "#777777")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def learning_curves(task: Task, runs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Evaluation return against env steps: each seed thin, the median over seeds thick, the threshold dotted.

    Args:
        task: The task.
        runs: The runs' records, by contestant.
        path: Where the PNG goes.
    """
    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    draw_learning_curves(axes, task, runs)
    axes.legend(loc="lower right")
    save(figure, path)


def draw_learning_curves(axes: Axes, task: Task, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Draw the curves of one task into ``axes``, without a legend."""
    for index, (agent, records) in enumerate(runs.items()):
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        evaluations = [evaluations_within(record) for record in records]
        steps = np.asarray(evaluations[0]["step"])
        curves = np.asarray([np.interp(steps, each["step"], each["mean_return"]) for each in evaluations])
        axes.plot(steps, curves.T, color=colour, alpha=0.3, linewidth=0.8)
        label = get_contestant(agent).label
        axes.plot(steps, np.median(curves, axis=0), linestyle=line, color=colour, linewidth=2, label=f"{label}, median")
    axes.axhline(task.threshold, color="0.4", linestyle=":", linewidth=1)
    axes.annotate("threshold", (0.01, task.threshold), xycoords=("axes fraction", "data"), va="bottom", color="0.4")
    axes.set_title(task.id)
    axes.set_xlabel("env steps")
    axes.set_ylabel("deterministic return, mean of 20 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` x ``columns`` panels without upper and right edges, and its panels in reading order."""
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels.flat)


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG without anything that changes from run to run; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG, whole or not at all, and close it."""
    write_atomically(path, png(figure))
