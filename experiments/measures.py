"""What is measured on a run: steps to the threshold, final return, areas under curves, stability, speed."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from envs import get_task
from experiments.runs import spec_of

# A run has collapsed if the mean of its last evaluations is below a threshold that it had reached.
LAST_EVALUATIONS = 10


def steps_to_threshold(steps: Sequence[float], returns: Sequence[float], threshold: float) -> float | None:
    """Env step of the first of two evaluations in a row that are both at or above ``threshold``; None if never."""
    for step, first, second in zip(steps, returns, returns[1:], strict=False):
        if first >= threshold and second >= threshold:
            return step
    return None


def area_under_curve(steps: Sequence[float], returns: Sequence[float]) -> float:
    """Mean of the piecewise linear curve through the evaluations, in units of return; NaN without evaluations."""
    if len(steps) < 2:
        return float(returns[0]) if returns else float("nan")
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def training_area(episodes: dict[str, Sequence[float]], budget: int) -> float:
    """Mean return of the training episodes over the budget, each weighing by the env steps it lasted; NaN for none.

    That is the area under the training curve that steps from episode to episode.
    """
    lengths = np.asarray(episodes["length"], dtype=float)
    counted = np.asarray(episodes["step"]) <= budget
    if not lengths[counted].sum():
        return float("nan")
    return float(np.average(np.asarray(episodes["return"])[counted], weights=lengths[counted]))


def evaluations_within(run: dict[str, Any]) -> dict[str, list[float]]:
    """The run's evaluations within its budget.

    A batch of whole episodes, or a long rollout, that began before the end of the budget is completed, and what is
    evaluated meanwhile does not count.
    """
    due = max(1, run["budget"] // get_task(run["task"]).evaluate_every)
    return {name: values[:due] for name, values in run["evaluations"].items()}


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """One row of a results table from one run's record.

    A run that never reached the threshold counts as its whole budget, and its whole time, and has ``reached`` False.
    """
    task, spec = get_task(run["task"]), spec_of(run)
    evaluations = evaluations_within(run)
    steps, returns = evaluations["step"], evaluations["mean_return"]
    hit = steps_to_threshold(steps, returns, task.threshold)
    area, final = area_under_curve(steps, returns), float(np.mean(run["final_returns"]))
    training = training_area(run["episodes"], run["budget"])
    last = float(np.mean(returns[-LAST_EVALUATIONS:])) if returns else float("nan")
    later = [] if hit is None else returns[steps.index(hit) + 1 :]
    return {
        "agent": run["agent"],
        "task": run["task"],
        "seed": run["seed"],
        "batched": spec.batched,
        "budget": run["budget"],
        "reached": hit is not None,
        "steps_to_threshold": run["budget"] if hit is None else hit,
        "seconds_to_threshold": (
            run["learn_seconds"] if hit is None else evaluations["learn_seconds"][steps.index(hit)]
        ),
        "final_return": final,
        "final_score": task.normalised(final),
        "evaluation_area": area,
        "evaluation_score": task.normalised(area),
        "training_area": training,
        "training_score": task.normalised(training),
        "last_evaluations": last,
        "collapsed": hit is not None and last < task.threshold,
        "later_evaluations": len(later),
        "later_below_threshold": sum(each < task.threshold for each in later),
        "steps_per_second": run["steps"] / run["learn_seconds"],
        "learn_seconds": run["learn_seconds"],
    }


def median_to_threshold(rows: pd.DataFrame, measure: str = "steps_to_threshold") -> float:
    """Median over runs, of which those that never got there are later than any other; infinite if half never did.

    So it never hangs on a budget.
    """
    return float(rows[measure].where(rows["reached"], float("inf")).median())


def measured(runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row for each run, as `measure` gives it."""
    return pd.DataFrame([measure(run) for run in runs])
