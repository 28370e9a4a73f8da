"""Tables and figure of the study of sampling; intervals are of Student's t over seeds, whose updates are averaged."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments.plots import COLOURS, INK, MARKERS, new_figure, save
from experiments.report.page import markdown_table
from experiments.rows import Row
from experiments.statistics import CONFIDENCE, Estimate
from experiments.studies.sampling.replay import AGES, BATCH_SIZE, EVERY, FLOOR, LONGER, METHODS, WINDOW

UNIFORM, CONTROL = list(METHODS)[:2]
OTHERS = list(METHODS)[2:]
ALL = "all tasks"
FITS = ("critic", "action values")
GOAL = 0.7
NORMS = {
    "exact": "least",
    "exact, floor": "floor",
    "last layer": "last layer",
    **{f"{age} {'step' if age == 1 else 'steps'} old": f"age {age}" for age in AGES},
}
"""Which norms probabilities come from, and the column of what they add to the least variance; of the first, itself."""


def rounded(row: Row) -> Row:
    """Five digits of each number: more are below what a repeat changes."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def over_seeds(values: pd.Series, geometric: bool = True) -> Estimate:
    """Mean over updates, tasks and seeds, with its interval over seeds; ``values`` are indexed by task, seed, update.

    Updates are averaged first, then tasks, so that each seed is one number and each task weighs the same.
    """
    numbers: Any = values.dropna().astype(float)
    numbers = np.log(numbers) if geometric else numbers
    by_seed = numbers.groupby(["task", "seed"]).mean().groupby("seed").mean()
    mean, n = float(by_seed.mean()), len(by_seed)
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * by_seed.std(ddof=1) / math.sqrt(n))
    ends = (mean, mean - half, mean + half)
    return Estimate(*(map(math.exp, ends) if geometric else ends))


def ratios(
    table: pd.DataFrame, fit: str, method: str, column: str, reference: str, of_reference: str | None = None
) -> pd.Series:
    """``column`` of a method over that of ``reference``, or another one, for each fit, by task, seed and update."""
    keyed = table[table["fit"] == fit].set_index(["task", "seed", "update", "method"])
    ours, theirs = (
        keyed[name].unstack("method", sort=False)[of]
        for name, of in ((column, method), (of_reference or column, reference))
    )
    found: pd.Series = ours / theirs
    return found


def times(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the processor time until the loss is reached, ``time``."""
    return table.assign(time=table["needed"] * table["seconds"])


def by_task(values: pd.Series, geometric: bool = True) -> dict[str, Estimate]:
    """`over_seeds` of each task, and of all."""
    tasks = list(dict.fromkeys(values.index.get_level_values("task")))
    found = {task: over_seeds(values[values.index.get_level_values("task") == task], geometric) for task in tasks}
    return {**found, ALL: over_seeds(values, geometric)} if len(tasks) > 1 else found


def text(estimate: Estimate, digits: int = 2) -> str:
    """Value and interval."""
    value, low, high = (f"{number:.{digits}f}" for number in estimate)
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def summary(table: pd.DataFrame, spread: pd.DataFrame) -> str:
    """All tables, as Markdown."""
    seeds, updates, repeats = table["seed"].nunique(), int(table["updates"].iloc[0]), int(table["repeats"].iloc[0])
    parts = [
        "# Minibatches of least variance",
        f"Fits of {updates} updates of each run (action values: of the last), {seeds} seeds; curves are means of "
        f"{repeats} draws. Minibatches of {BATCH_SIZE}, losses every {EVERY} steps, mean of the last {WINDOW} steps. "
        "In brackets 95 % intervals over seeds. `exact`: norms of whole gradients at each step, `every K`: as they "
        "were up to K steps ago, `last layer`: of its gradient alone, `as drawn`: exact before the first step, then "
        f"of drawn samples only; all but `exact` with norms of at least {FLOOR} of their mean. `uniform, "
        "independent`: equal probabilities without passes. `all samples`: no sampling, the limit of what less variance "
        "can bring.",
    ]
    table = times(table)
    for fit in FITS:
        part = table[table["fit"] == fit]
        steps, n_fits = int(part["steps"].max()), len(part) // len(METHODS)
        missed, uniforms = (int((~part["reached"] & part["method"].isin(each)).sum()) for each in (OTHERS, [CONTROL]))
        parts += [
            f"## {fit.capitalize()}: {n_fits} fits of {steps} steps",
            "Steps until the loss on the fit's data that the library's uniform minibatches have at the end, in "
            f"multiples of what uniform minibatches with other draws need. Asked were {GOAL}. Not reached in {LONGER} "
            f"times the steps, and counted as that: {missed} of {n_fits * len(OTHERS)}, and {uniforms} of {n_fits} of "
            "the uniform with other draws.",
            _methods(table, fit, "needed", CONTROL),
            "Processor time until then, norms and draws included, in the same units.",
            _methods(table, fit, "time", CONTROL),
            f"Loss after {GOAL} of the steps, in multiples of the uniform's after all of them.",
            _lower(table, fit, "loss_7", "loss_10"),
            "Loss on fresh data after all steps, in multiples of the uniform's.",
            _methods(table, fit, "fresh_10", UNIFORM),
            f"Loss on fresh data after {GOAL} of the steps, in multiples of the uniform's after all of them.",
            _lower(table, fit, "fresh_7", "fresh_10"),
        ]
    for fit in FITS:
        parts += [
            f"## Variances, {fit}",
            "Of the gradient of one minibatch, in multiples of the variance with equal probabilities, all under "
            "Poisson sampling; mean of the middle and the end of each fit. `least`: what exact norms leave; `+`: what "
            "other norms add to it, with the floor; in the middle those 80 steps old are from before the first step. "
            "`even` is E[‖g‖]² / E[‖g‖²], the least for minibatches of a vanishing share of the samples. `signal`: "
            "squared norm of the mean gradient.",
            _variances(spread[(spread["fit"] == fit) & (spread["at"] > 0)]),
            "The same before the first step.",
            _variances(spread[(spread["fit"] == fit) & (spread["at"] == 0)]),
        ]
    return "\n\n".join(parts) + "\n"


def _methods(table: pd.DataFrame, fit: str, column: str, reference: str) -> str:
    rows = []
    for method in [CONTROL, *OTHERS] if reference == UNIFORM else OTHERS:
        found = by_task(ratios(table, fit, method, column, reference))
        digits = 3 if column.startswith("fresh") else 2
        rows.append({"minibatches": method, **{task: text(each, digits) for task, each in found.items()}})
    return markdown_table(pd.DataFrame(rows))


def _lower(table: pd.DataFrame, fit: str, column: str, last: str) -> str:
    before = f"{column.split('_')[0]}_0"
    rows = []
    shown = [("before the fit", UNIFORM, before), *((method, method, column) for method in (UNIFORM, *OTHERS))]
    for name, method, of in shown:
        found = by_task(ratios(table, fit, method, of, UNIFORM, last))
        rows.append({"minibatches": name, **{task: text(each, 3) for task, each in found.items()}})
    return markdown_table(pd.DataFrame(rows))


def shares(spread: pd.DataFrame, column: str) -> pd.Series:
    """A column of variances in multiples of the uniform's, by task, seed and update; of ``evenness``, itself."""
    keyed = spread.set_index(["task", "seed", "update", "at"])
    values = keyed[column] if column == "evenness" else keyed[column] / keyed["uniform"]
    return values.groupby(["task", "seed", "update"], sort=False).mean()


def _variances(spread: pd.DataFrame) -> str:
    rows = []
    columns = {"least": "least", "even": "evenness", "one batch of a pass": "pass", "signal": "signal"}
    added = {f"+ {name}": column for name, column in list(NORMS.items())[1:]}
    for name, column in {**columns, **added}.items():
        values = shares(spread, column)
        if values.notna().any():
            # What norms add may be next to nothing, of which a geometric mean says little.
            whole = not name.startswith("+")
            row = {task: text(each, 2 if whole else 3) for task, each in by_task(values, geometric=whole).items()}
            rows.append({"": name, **row})
    return markdown_table(pd.DataFrame(rows))


def draw(table: pd.DataFrame, spread: pd.DataFrame, path: Path) -> None:
    """Steps by method, a panel for each fit; and the variance by the norms that it is drawn by."""
    figure, panels = new_figure(1, len(FITS) + 1, (4.6 * (len(FITS) + 1), 4.6))
    for axes, fit in zip(panels, FITS, strict=False):
        found = {method: by_task(ratios(table, fit, method, "needed", CONTROL)) for method in OTHERS}
        _points(axes, found)
        axes.axvline(GOAL, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(f"{fit}: steps to the uniform's loss", fontsize=10)
        axes.set_xlabel("steps, in multiples of the uniform's")
    part = spread[(spread["fit"] == "critic") & (spread["at"] > 0)]
    found = {}
    for name, column in NORMS.items():
        share = shares(part, column)
        whole = share if column == "least" else share + shares(part, "least")
        if whole.notna().any():
            found[name] = by_task(whole)
    _points(panels[-1], found)
    panels[-1].set_title("critic: variance by the norms drawn by", fontsize=10)
    panels[-1].set_xlabel("variance, in multiples of the uniform's")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    save(figure, path)


def _points(axes: Any, found: dict[str, dict[str, Estimate]]) -> None:
    """A line of points for each key: a colour for each task, in the same order from top to bottom."""
    tasks = list(next(iter(found.values())))
    for index, task in enumerate(tasks):
        offset = 0.6 * (index / max(len(tasks) - 1, 1) - 0.5)
        values = np.array([each[task] for each in found.values()])
        heights = np.arange(len(found)) + offset
        colour = INK if task == ALL else COLOURS[index]
        axes.hlines(heights, values[:, 1], values[:, 2], color=colour, linewidth=1.0)
        axes.plot(values[:, 0], heights, MARKERS[index], color=colour, markersize=4, label=task)
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
