"""Figures: colours that remain apart for colour-blind readers and in print."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.files import write_atomically

# Okabe and Ito's palette without yellow, which is lost on white; then three of Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#882255", "#999933", "#777777")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


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
