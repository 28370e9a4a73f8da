"""What is measured on a run: steps to the threshold, final return, areas under curves, speed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs import get_task


def steps_to_threshold(steps: Sequence[float], returns: Sequence[float], threshold: float) -> float | None:
    """Env step of the first of two evaluations in a row that are both at or above ``threshold``; None if never."""
    for step, first, second in zip(steps, returns, returns[1:], strict=False):
        if first >= threshold and second >= threshold:
            return step
    return None


def area_under_curve(steps: Sequence[float], returns: Sequence[float]) -> float:
    """Mean of the piecewise linear curve through the evaluations, in units of return."""
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """One row of a results table from one run's record.

    A run that never reached the threshold counts as its whole budget and has ``reached`` False.
    """
    task = get_task(run["task"])
    steps, returns = run["evaluations"]["step"], run["evaluations"]["mean_return"]
    hit = steps_to_threshold(steps, returns, task.threshold)
    area = area_under_curve(steps, returns)
    return {
        "agent": run["agent"],
        "task": run["task"],
        "seed": run["seed"],
        "budget": run["budget"],
        "reached": hit is not None,
        "steps_to_threshold": run["budget"] if hit is None else hit,
        "final_return": float(np.mean(run["final_returns"])),
        "evaluation_area": area,
        "evaluation_score": task.normalised(area),
        "steps_per_second": run["steps"] / run["learn_seconds"],
        "learn_seconds": run["learn_seconds"],
    }
