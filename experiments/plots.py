"""Figures: colours that remain apart for colour-blind readers and in print, on white and on a dark page."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.files import write_atomically

# A contrast of 3.4 to 1 at the least both with white and with a dark page's #14161a; neighbours far apart in hue.
COLOURS = ("#1f77c8", "#d55e00", "#009e73", "#c0609a", "#a0702a", "#8a63d2", "#1a93b8", "#d0435b", "#8a8a1a", "#808080")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Text, axes and what belongs to no agent. An SVG has the reader's ink in its place.
INK = "#5a5e63"
INKS_OF_SVG = "svg { color: #5a5e63 } @media (prefers-color-scheme: dark) { svg { color: #b0b4ba } }"

plt.rcParams.update(
    {
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        "axes.titlecolor": INK,
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
        # An SVG's text remains text, and its names do not change from run to run.
        "svg.fonttype": "none",
        "svg.hashsalt": "storm-rl",
    }
)


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


def svg(figure: Figure) -> bytes:
    """``figure`` as a transparent SVG whose ink is dark on a light screen and light on a dark one; closes it.

    Nothing in it changes from run to run.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Creator": None, "Date": None})
    plt.close(figure)
    # A hundredth of a point is finer than any screen, and half of the file. What is to be read, between tags, stays.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), buffer.getvalue())
    text = text.replace(INK, "currentColor")
    # Names are hashes of numbers that may differ in their last digits.
    names = dict.fromkeys(re.findall(r'id="([a-zA-Z]+[0-9a-f]{10})"', text))
    for number, name in enumerate(names):
        text = re.sub(rf"\b{name}\b", f"i{number}", text)
    return text.replace('<style type="text/css">', f'<style type="text/css">{INKS_OF_SVG}\n', 1).encode()


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG, whole or not at all, and close it."""
    write_atomically(path, png(figure))
