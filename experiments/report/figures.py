"""The report's figures: colours, line styles and markers each tell agents apart, so that print does too."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.measures import evaluations_within
from experiments.plots import COLOURS, LINES, MARKERS, new_figure
from experiments.report.study import REFERENCE, Study, label
from experiments.report.tables import COMPARED, NAMES, compared, improved
from experiments.statistics import Estimate, Floats, estimates, iqm, profile

# Enough for the width of a line; the tables' intervals have more.
BAND_RESAMPLES = 2_000
# Several bands on top of each other stay lighter than the lines.
BAND_ALPHA = 0.13
PROFILE_POINTS = np.linspace(0.0, 1.05, 106)


def style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the agent at that place of the study's list."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def learning_curves(study: Study, agents: Sequence[str], shown: Sequence[str]) -> Figure:
    """Evaluation return against env steps: interquartile mean over seeds and its 95 % interval, a panel a task.

    Of all agents, whose places in the list give each its style, those ``shown``.
    """
    figure, panels = _panels(study, 3.1)
    for axes, task in zip(panels, study.tasks, strict=False):
        for index, name in enumerate(agents):
            records = study.records(name, task)
            if records and name in shown:
                _draw_curve(axes, records, style(index))
        axes.axhline(task.threshold, color="0.35", linestyle=(0, (1, 1)), linewidth=1)
        axes.set(title=task.id, xlabel="env steps", ylabel="deterministic return")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    _legend(panels[len(study.tasks)], agents, shown)
    return figure


def _draw_curve(axes: Axes, records: list[dict[str, Any]], line: dict[str, Any]) -> None:
    evaluations = [evaluations_within(run) for run in records]
    steps = np.asarray(evaluations[0]["step"], dtype=float)
    curves = np.stack([np.interp(steps, each["step"], each["mean_return"]) for each in evaluations], axis=-1)
    middle, low, high = estimates(iqm, [curves], resamples=BAND_RESAMPLES)
    axes.plot(steps, middle, **line, linewidth=1.8, markersize=5, markevery=max(1, len(steps) // 8))
    axes.fill_between(steps, low, high, color=line["color"], alpha=BAND_ALPHA, linewidth=0)


def steps_to_threshold(study: Study, agents: Sequence[str]) -> Figure:
    """Env steps to the threshold: each seed a marker (hollow: never, at the budget), the median a bar; log scale."""
    figure, panels = _panels(study, 0.6 + 0.38 * max(4, len(agents)))
    for axes, task in zip(panels, study.tasks, strict=False):
        for index, name in enumerate(agents):
            rows = study.of_task(name, task)
            if not len(rows):
                continue
            line = style(index)
            # Seeds with the same number of steps side by side, not on top of each other.
            height = index + 0.28 * np.linspace(-1, 1, len(rows)) * (len(rows) > 1)
            for reached in (True, False):
                chosen = (rows["reached"] == reached).to_numpy()
                face = line["color"] if reached else "none"
                axes.scatter(
                    rows["steps_to_threshold"][chosen],
                    height[chosen],
                    marker=line["marker"],
                    s=20,
                    facecolors=face,
                    edgecolors=line["color"],
                    linewidths=0.9,
                    alpha=0.8,
                )
            median = rows["steps_to_threshold"].median()
            axes.plot([median, median], [index - 0.4, index + 0.4], color="black", linewidth=2)
        axes.set(title=task.id, xscale="log", xlabel="env steps, log scale", ylim=(len(agents) - 0.5, -0.5))
        fewest = study.rows.loc[study.rows["task"] == task.id, "steps_to_threshold"].min()
        axes.set_xlim(fewest / 1.5, task.budget * 1.3)
        axes.axvline(task.budget, color="0.35", linestyle=(0, (1, 1)), linewidth=1)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(panels[len(study.tasks)], agents, lines=False)
    return figure


def aggregate_scores(study: Study, agents: Sequence[str]) -> Figure | None:
    """Interquartile means of normalised scores with their intervals."""
    scores = ("final_score", "evaluation_score")
    names = study.complete(agents)
    titles = [f"IQM, normalised\n{NAMES[score]}" for score in scores]
    return _intervals(names, agents, titles, lambda column, name: compared(study, scores[column], name), None)


def improvement(study: Study, agents: Sequence[str]) -> Figure | None:
    """Probability of improvement over PPO, with its interval."""
    if REFERENCE not in study.complete([REFERENCE]):
        return None
    names = [name for name in study.complete(agents) if name != REFERENCE]
    measures = list(COMPARED)
    titles = [f"P(better than PPO)\n{NAMES[measure]}" for measure in measures]
    return _intervals(names, agents, titles, lambda column, name: improved(study, measures[column], name), 0.5)


def profiles(study: Study, agents: Sequence[str]) -> Figure | None:
    """Performance profiles: share of runs, over all tasks, above a normalised score."""
    names = study.complete(agents)
    if not names:
        return None
    figure, panels = new_figure(1, 2, (9.6, 3.9), sharey=True)
    for axes, score in zip(panels, ("final_score", "evaluation_score"), strict=True):
        for name in names:
            line = style(list(agents).index(name))
            value, low, high = estimates(_profile, study.samples(name, score), resamples=BAND_RESAMPLES)
            axes.plot(PROFILE_POINTS, value, **line, linewidth=1.8, markersize=5, markevery=13, label=label(name))
            axes.fill_between(PROFILE_POINTS, low, high, color=line["color"], alpha=BAND_ALPHA, linewidth=0)
        axes.set(xlabel=f"normalised {NAMES[score]}, $\\tau$", xlim=(0, 1.05), ylim=(-0.02, 1.02))
    panels[0].set_ylabel("share of runs with a score above $\\tau$")
    panels[0].legend(loc="lower left", fontsize=8, handlelength=4)
    return figure


def _profile(samples: Sequence[Floats], axis: int) -> Any:
    return profile(samples, PROFILE_POINTS, axis)


def _intervals(
    names: Sequence[str],
    agents: Sequence[str],
    titles: Sequence[str],
    value: Callable[[int, str], Estimate],
    reference: float | None,
) -> Figure | None:
    if not names:
        return None
    figure, panels = new_figure(1, len(titles), (9.6, 1.3 + 0.36 * len(names)), sharey=True)
    for column, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for row, name in enumerate(names):
            line = style(list(agents).index(name))
            point = value(column, name)
            axes.plot(
                [point.low, point.high], [row, row], color=line["color"], linewidth=6, alpha=0.35, solid_capstyle="butt"
            )
            axes.plot(point.value, row, marker=line["marker"], color=line["color"], markersize=7)
        if reference is not None:
            axes.axvline(reference, color="0.35", linestyle=(0, (1, 1)), linewidth=1)
            axes.set_xlim(-0.03, 1.03)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    return figure


def _panels(study: Study, height: float) -> tuple[Figure, list[Axes]]:
    """A panel for each task and one more for the legend, two or three a row; what is left over is hidden."""
    count = len(study.tasks) + 1
    columns = 2 if count < 5 else 3
    rows = -(-count // columns)
    figure, panels = new_figure(rows, columns, (3.6 * columns + 0.6, height * rows))
    for axes in panels[len(study.tasks) :]:
        axes.axis("off")
    return figure, panels


def _legend(axes: Axes, agents: Sequence[str], shown: Sequence[str] | None = None, lines: bool = True) -> None:
    handles = []
    for index, name in enumerate(agents):
        if shown is not None and name not in shown:
            continue
        line = style(index) if lines else {**style(index), "linestyle": "none"}
        handles.append(Line2D([], [], **line, linewidth=1.8, markersize=6, label=label(name)))
    if lines:
        handles.append(Line2D([], [], color="0.35", linestyle=(0, (1, 1)), linewidth=1, label="threshold"))
    else:
        handles.append(Line2D([], [], color="black", marker="|", markersize=12, markeredgewidth=2, linestyle="none"))
        handles[-1].set_label("median")
        hollow: dict[str, Any] = {"color": "0.35", "markerfacecolor": "none", "linestyle": "none", "marker": "o"}
        handles.append(Line2D([], [], **hollow, label="hollow: never, counts as the budget"))
    axes.legend(handles=handles, loc="center left", frameon=False, fontsize=9, handlelength=4)
