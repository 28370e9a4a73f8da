"""The report's figures: colours, line styles and markers each tell agents apart, so that print does too.

Each is drawn in two widths: for a page, panels side by side; for a phone (``narrow``), one below the other.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from math import isinf
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from envs import Task
from experiments.measures import evaluations_within, median_to_threshold
from experiments.plots import COLOURS, INK, LINES, MARKERS, new_figure
from experiments.report.study import OURS, Study, label, short, unmarked
from experiments.report.tables import NAMES, NONE, improved, missing, pooled
from experiments.statistics import Estimate, Floats, estimates, iqm, profile

# Enough for the width of a line; the tables' intervals have more.
BAND_RESAMPLES = 2_000
# Several bands on top of each other stay lighter than the lines.
BAND_ALPHA = 0.16
PROFILE_POINTS = np.linspace(0.0, 1.05, 106)
# Inches: the height of a row, the width of a seed's marker, and that of the names.
ROW, MARKER, NAMES_WIDTH = 0.46, 0.068, 1.8
# Where seeds of about the same number of steps go, in markers from the row's middle.
LANES = (0, 1, -1, 2, -2)
DOTTED: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1)), "linewidth": 1}


def style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the agent at that place of the study's list."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def learning_curves(study: Study, agents: Sequence[str], shown: Sequence[str], narrow: bool = False) -> Figure:
    """Evaluation return against env steps: interquartile mean over seeds and its 95 % interval, a panel a task.

    Of all agents, whose places in the list give each its style, those ``shown``. The axis of returns begins at the
    task's score of 0, so that a few returns far below leave something to be seen.
    """
    panels_needed = len(study.tasks) + 1
    columns = 1 if narrow else 2 if panels_needed < 5 else 3
    rows = -(-panels_needed // columns)
    figure, panels = new_figure(rows, columns, (4.0, 2.7 * rows) if narrow else (3.7 * columns, 3.0 * rows))
    for axes in panels[len(study.tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels, study.tasks, strict=False):
        for index, name in enumerate(agents):
            if name in shown and len(study.of_task(name, task)):
                _draw_curve(axes, _curve(study, name, task), style(index), unmarked(name) == OURS)
        axes.axhline(task.threshold, **DOTTED)
        low, high = task.score_range
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, max(high, axes.dataLim.y1) + margin)
        axes.set(title=task.id, xlabel="env steps", ylabel="deterministic return")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k" if value else "0")
    _legend(panels[len(study.tasks)], agents, shown)
    return figure


@cache
def _curve(study: Study, name: str, task: Task) -> tuple[Floats, Floats, Floats, Floats]:
    """Env steps, interquartile mean over seeds and the ends of its interval."""
    evaluations = [evaluations_within(run) for run in study.records(name, task)]
    steps = np.asarray(evaluations[0]["step"], dtype=float)
    returns = np.stack([np.interp(steps, each["step"], each["mean_return"]) for each in evaluations], axis=-1)
    return (steps, *estimates(iqm, [returns], resamples=BAND_RESAMPLES))


def _draw_curve(axes: Axes, curve: tuple[Floats, ...], line: dict[str, Any], ours: bool) -> None:
    steps, middle, low, high = curve
    width, order = (2.6, 3) if ours else (1.5, 2)
    axes.plot(steps, middle, **line, linewidth=width, zorder=order, markersize=5, markevery=max(1, len(steps) // 8))
    axes.fill_between(steps, low, high, color=line["color"], alpha=BAND_ALPHA, linewidth=0)


def _legend(axes: Axes, agents: Sequence[str], shown: Sequence[str]) -> None:
    handles = [
        Line2D([], [], **style(index), linewidth=2.6 if unmarked(name) == OURS else 1.5, label=label(name))
        for index, name in enumerate(agents)
        if name in shown
    ]
    handles.append(Line2D([], [], **DOTTED, label="threshold"))
    axes.legend(handles=handles, loc="center left", frameon=False, fontsize=9, handlelength=4)


def steps_to_threshold(study: Study, agents: Sequence[str], narrow: bool = False) -> Figure:
    """Env steps to the threshold on a log scale: each seed a marker, the median a bar with its 95 % interval.

    Seeds that never reached it are hollow, right of the budget, where the axis has no steps.
    """
    names = _on_panels(study, agents, [[task] for task in study.tasks], narrow)
    titles = [task.id for task in study.tasks]
    figure, panels, width = _named_rows(names, titles, "env steps, log scale", narrow)
    for axes, task, shown in zip(panels, study.tasks, names, strict=False):
        fewest = study.rows.loc[study.rows["task"] == task.id, "steps_to_threshold"].min()
        left, right = fewest / 1.6, task.budget * (task.budget / fewest) ** 0.22
        axes.set(xscale="log", xlim=(left, right))
        axes.axvspan(task.budget, right, color=INK, alpha=0.1, linewidth=0)
        axes.axvline(task.budget, **DOTTED)
        axes.text((task.budget * right) ** 0.5, -0.52, "never", ha="center", va="bottom", fontsize=8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.xaxis.set_minor_formatter(NullFormatter())
        # A marker's width in the logarithm of the steps.
        marker = np.log(right / left) * MARKER / width
        for row, name in enumerate(shown):
            _draw_seeds(axes, study, name, task, (row, style(list(agents).index(name))), marker)
    return figure


def _draw_seeds(
    axes: Axes, study: Study, name: str, task: Task, place: tuple[int, dict[str, Any]], marker: float
) -> None:
    rows, (row, line) = study.of_task(name, task), place
    if not len(rows):
        _note(axes, row, missing(name, task))
        return
    colour, reached = line["color"], rows["reached"].to_numpy()
    steps = np.log(rows["steps_to_threshold"].to_numpy(dtype=float))
    right = np.log(axes.get_xlim()[1])
    # Right of the budget: as many columns as the seeds need, around the middle.
    columns = -(-int((~reached).sum()) // len(LANES))
    steps[~reached] = (np.log(task.budget) + right) / 2 - (columns - 1) / 2 * marker
    median = median_to_threshold(rows)
    if not isinf(median):
        low, high = _interval_of_median(study, name, task)
        axes.plot([low, high], [row, row], color=colour, linewidth=15, alpha=0.22, solid_capstyle="butt", zorder=1)
        axes.plot([median, median], [row - 0.36, row + 0.36], color=INK, linewidth=2, zorder=2)
    for chosen, face in ((reached, colour), (~reached, "none")):
        x, lanes = _side_by_side(steps[chosen] / marker)
        axes.scatter(
            np.exp(x * marker),
            row + lanes * MARKER / ROW,
            **{"marker": line["marker"], "s": 19, "facecolors": face, "edgecolors": colour, "linewidths": 0.9},
            zorder=3,
        )


@cache
def _interval_of_median(study: Study, name: str, task: Task) -> tuple[float, float]:
    _, low, high = estimates(_median, study.samples(name, "steps_to_threshold", [task]))
    return low, high


def _median(samples: Sequence[Floats], axis: int) -> Any:
    return np.median(samples[0], axis=axis)


def _side_by_side(positions: Floats) -> tuple[Floats, Floats]:
    """Places at which markers do not hide each other: positions in markers' widths, and the lanes of `LANES`.

    Where all lanes are taken, a marker moves to the right.
    """
    placed: list[tuple[float, int]] = []
    for position in np.sort(positions):
        x = float(position)
        while not (free := [lane for lane in LANES if all(lane != at or abs(x - other) >= 1 for other, at in placed)]):
            x += 1
        placed.append((x, free[0]))
    return np.array([x for x, _ in placed]), np.array([lane for _, lane in placed], dtype=float)


def aggregate_scores(study: Study, agents: Sequence[str], narrow: bool = False) -> Figure | None:
    """Interquartile means of normalised scores, over all tasks, with their intervals."""
    names = study.complete(agents)
    if not names:
        return None
    scores = ("final_score", "evaluation_score")
    titles = [NAMES[score] for score in scores]
    quantity = "interquartile mean of normalised scores, all tasks"
    figure, panels, _ = _named_rows([names] * len(scores), titles, quantity, narrow)
    for axes, score in zip(panels, scores, strict=True):
        _draw_intervals(axes, names, agents, lambda name, score=score: pooled(study, score, name))  # type: ignore[misc]
    return figure


def fewer_steps(study: Study, agents: Sequence[str], narrow: bool = False) -> Figure | None:
    """Probability that a seed needs fewer env steps than one of the reference: a panel a task, the last for all."""
    reference = study.reference
    names = [name for name in agents if name != reference]
    if reference is None or not names:
        return None
    pools: dict[str, tuple[Task, ...]] = {task.id: (task,) for task in study.tasks}
    if len(study.tasks) > 1:
        pools["mean over tasks"] = tuple(study.tasks)
    text = f"probability that a seed needs fewer env steps than one of {short(reference)}"
    shown = _on_panels(study, names, list(pools.values()), narrow)
    figure, panels, _ = _named_rows(shown, list(pools), text, narrow)
    for axes, tasks, some in zip(panels, pools.values(), shown, strict=False):

        def value(name: str, tasks: tuple[Task, ...] = tasks) -> Estimate | None:
            ran = all(len(study.of_task(name, task)) for task in tasks)
            return improved(study, "steps_to_threshold", name, reference, tasks) if ran else None

        why = partial(missing, task=tasks[0]) if len(tasks) == 1 else None
        _draw_intervals(axes, some, agents, value, why)
        axes.axvline(0.5, **DOTTED)
        axes.set_xlim(-0.05, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    return figure


def differences(
    values: Mapping[str, Mapping[str, Estimate]], none: Mapping[str, float], narrow: bool = False
) -> Figure:
    """Intervals of variants, a panel for each quantity of ``values`` with a line where there is no difference."""
    names = list(dict.fromkeys(name for each in values.values() for name in each))
    rows, columns = (len(values), 1) if narrow else (1, len(values))
    size = (4.0 if narrow else 10.5, (0.9 + 0.3 * len(names)) * rows)
    figure, panels = new_figure(rows, columns, size, sharey=True)
    for axes, (quantity, found) in zip(panels, values.items(), strict=True):
        for row, name in enumerate(names):
            if name not in found:
                _note(axes, row, NONE)
                continue
            point = found[name]
            colour = INK if point.low <= none[quantity] <= point.high else COLOURS[1]
            axes.plot([point.low, point.high], [row, row], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axes.plot(point.value, row, "o", color=colour, markersize=6)
        axes.axvline(none[quantity], **DOTTED)
        axes.set_title(quantity, fontsize=10)
        # Long names break into lines, or a phone would have no room for the panel.
        axes.set_yticks(range(len(names)), [fill(name, 24 if narrow else 40) for name in names])
        axes.tick_params(labelsize=7.5 if narrow else 9)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", color=INK, alpha=0.2)
        axes.set_axisbelow(True)
    return figure


def profiles(study: Study, agents: Sequence[str], narrow: bool = False) -> Figure | None:
    """Performance profiles: share of runs, over all tasks, above a normalised score."""
    names = study.complete(agents)
    if not names:
        return None
    figure, panels = new_figure(*((2, 1, (4.0, 6.4)) if narrow else (1, 2, (10.0, 3.6))), sharey=True)
    for axes, score in zip(panels, ("final_score", "evaluation_score"), strict=True):
        for name in names:
            line, width = style(list(agents).index(name)), 2.6 if unmarked(name) == OURS else 1.5
            value, low, high = _profile_of(study, name, score)
            axes.plot(PROFILE_POINTS, value, **line, linewidth=width, markersize=5, markevery=13, label=label(name))
            axes.fill_between(PROFILE_POINTS, low, high, color=line["color"], alpha=BAND_ALPHA, linewidth=0)
        axes.set(title=NAMES[score], xlabel="normalised score", xlim=(0, 1.05), ylim=(-0.02, 1.02))
        axes.set_ylabel("share of runs above it")
    panels[0].legend(loc="lower left", fontsize=8, handlelength=4, framealpha=0)
    return figure


@cache
def _profile_of(study: Study, name: str, score: str) -> tuple[Floats, Floats, Floats]:
    return estimates(_profile, study.samples(name, score), resamples=BAND_RESAMPLES)


def _profile(samples: Sequence[Floats], axis: int) -> Any:
    return profile(samples, PROFILE_POINTS, axis)


def heat_map(study: Study, agents: Sequence[str], narrow: bool = False) -> Figure:
    """Tasks x agents: the interquartile mean of the normalised area under the evaluation curve, the best framed."""

    def score_of(name: str, task: Task) -> float:
        ran = len(study.of_task(name, task))
        return pooled(study, "evaluation_score", name, (task,)).value if ran else float("nan")

    scores = np.array([[score_of(name, task) for name in agents] for task in study.tasks])
    cell = (2.5 / len(agents), 0.3) if narrow else (min(1.0, 8.4 / len(agents)), 0.34)
    margin = (1.5, 1.7) if narrow else (2.0, 1.7)
    size = (margin[0] + cell[0] * len(agents), margin[1] + cell[1] * len(study.tasks))
    figure, (axes,) = new_figure(1, 1, size)
    # Scores below 0 are as dark as 0. Rectangles rather than an image: they stay sharp in an SVG.
    axes.pcolormesh(np.ma.masked_invalid(scores.clip(0.0, 1.0)), cmap="cividis", vmin=0.0, vmax=1.0)
    for (row, column), score in np.ndenumerate(scores):
        if np.isnan(score):
            axes.text(column + 0.5, row + 0.5, NONE, ha="center", va="center", fontsize=8)
            continue
        best = score == np.nanmax(scores[row])
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{round(score, 2) + 0.0:.2f}".replace("0.", "."),  # No -.00.
            ha="center",
            va="center",
            color="black" if score > 0.5 else "white",
            fontsize=6.5 if narrow else 8.5,
            fontweight="bold" if best else "normal",
        )
        if best:
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.2, zorder=3))
    axes.set_xticks(np.arange(len(agents)) + 0.5, [label(name) for name in agents], rotation=40, ha="right")
    axes.set_yticks(np.arange(len(study.tasks)) + 0.5, [task.id for task in study.tasks])
    axes.tick_params(length=0, labelsize=7 if narrow else 9)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return figure


def _draw_intervals(
    axes: Axes,
    names: Sequence[str],
    agents: Sequence[str],
    value: Callable[[str], Estimate | None],
    why: Callable[[str], str] | None = None,
) -> None:
    """A row for each name; where it has no value, a word that says ``why``, if there is one."""
    for row, name in enumerate(names):
        line, point = style(list(agents).index(name)), value(name)
        if point is None:
            _note(axes, row, why(name) if why is not None else "")
            continue
        axes.plot(
            [point.low, point.high], [row, row], color=line["color"], linewidth=7, alpha=0.3, solid_capstyle="butt"
        )
        axes.plot(point.value, row, marker=line["marker"], color=line["color"], markersize=7)
    axes.grid(axis="x", color=INK, alpha=0.2)
    axes.set_axisbelow(True)


def _note(axes: Axes, row: int, text: str) -> None:
    """A word in place of what an agent does not have."""
    axes.annotate(text, (0.04, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)


def _named_rows(
    names: Sequence[Sequence[str]], titles: Sequence[str], quantity: str, narrow: bool
) -> tuple[Figure, list[Axes], float]:
    """A panel for each of ``titles`` with a row for each of its ``names``, which stand at the left.

    Returns the figure, its panels, and about how wide a panel is, in inches.
    """
    count, most = len(titles), max(map(len, names))
    columns = 1 if narrow else min(count, 6)
    rows = -(-count // columns)
    width = 4.0 if narrow else min(11.2, NAMES_WIDTH + 3.4 * columns)
    heights = [0.9 + ROW * (len(each) if narrow else most) for each in names][:: 1 if narrow else columns]
    size = (width, sum(heights))
    figure, panels = new_figure(rows, columns, size, sharey="row", gridspec_kw={"height_ratios": heights})
    figure.supxlabel(quantity, fontsize=9)
    for axes in panels[count:]:
        axes.axis("off")
    for axes, title, shown in zip(panels, titles, names, strict=False):
        axes.set_title(title, fontsize=8.5 if columns > 4 else 10, pad=14)
        axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
        axes.set_yticks(range(len(shown)), [label(name) for name in shown])
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelsize=9)
        # Panels that share the names of the first have no labels of their own.
        for text, name in zip(axes.get_yticklabels(), shown, strict=False):
            text.set_fontweight("bold" if unmarked(name) == OURS else "normal")
    return figure, panels, (width - NAMES_WIDTH) / columns - 0.15


def _on_panels(study: Study, names: Sequence[str], pools: Sequence[Sequence[Task]], narrow: bool) -> list[list[str]]:
    """The rows of each panel: all names where panels stand side by side, those that ran on its tasks for a phone."""

    def ran(name: str, tasks: Sequence[Task]) -> bool:
        return all(len(study.of_task(name, task)) for task in tasks)

    return [[name for name in names if not narrow or ran(name, tasks)] for tasks in pools]
