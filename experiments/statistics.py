"""Aggregates over tasks and seeds, with the field's definitions (Agarwal et al., NeurIPS 2021, arXiv 2108.13264).

Scores are given as one array of seeds for each task. Confidence intervals are of the percentile bootstrap, stratified:
each resample draws seeds within each task, so that tasks keep their weight.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Resamples at a time: bounds the memory of the comparisons of all pairs of seeds.
BATCH = 1_000


class Estimate(NamedTuple):
    """A value and the ends of its confidence interval; NaN where a task has too few seeds for one."""

    value: float
    low: float
    high: float


def mean(samples: Sequence[Floats], axis: int = -1) -> Any:
    """Of one group."""
    return np.mean(samples[0], axis=axis)


def iqm(samples: Sequence[Floats], axis: int = -1) -> Any:
    """Interquartile mean over all seeds of all tasks: the mean without the lowest and the highest quarter."""
    return trim_mean(np.concatenate(samples, axis=axis), proportiontocut=0.25, axis=axis)


def probability_of_improvement(ours: Sequence[Floats], theirs: Sequence[Floats], axis: int = -1) -> Any:
    """Chance that a seed of ours beats one of theirs on the same task, mean over tasks; a tie counts one half.

    On each task this is the Mann-Whitney U statistic divided by the number of pairs.
    """
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
        chances.append((x > y).mean(axis=(-2, -1)) + 0.5 * (x == y).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def ratio_of_medians(theirs: Sequence[Floats], ours: Sequence[Floats], axis: int = -1) -> Any:
    """Geometric mean over tasks of (their median) / (our median): above 1, ours needs less."""
    logs = [
        np.log(np.median(x, axis=axis)) - np.log(np.median(y, axis=axis)) for x, y in zip(theirs, ours, strict=True)
    ]
    return np.exp(np.mean(logs, axis=0))


def profile(samples: Sequence[Floats], thresholds: Floats, axis: int = -1) -> Any:
    """Performance profile: for each threshold, the share of runs, of all tasks together, that score more."""
    scores = np.concatenate(samples, axis=axis)
    return np.stack([(scores > threshold).mean(axis=axis) for threshold in thresholds])


def estimate(
    statistic: Callable[..., Any], *groups: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """``statistic(*groups, axis)`` with its stratified bootstrap interval.

    Args:
        statistic: A function of this module; takes each of ``groups`` and ``axis``.
        groups: Scores: one array of seeds for each task.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling: the same scores always give the same interval.
    """
    value, low, high = estimates(statistic, *groups, resamples=resamples, seed=seed)
    return Estimate(float(value), float(low), float(high))


def estimates(
    statistic: Callable[..., Any], *groups: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Any, Any, Any]:
    """`estimate` for a statistic that is an array, as a profile or a curve: values and both ends."""
    arrays = [np.asarray(array, dtype=float) for group in groups for array in group]
    value = statistic(*groups, axis=-1)
    if any(array.shape[-1] < 2 for array in arrays):
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    sizes = np.cumsum([len(group) for group in groups])[:-1]

    def vectorised(*samples: Floats, axis: int) -> Any:
        starts = [0, *sizes, len(samples)]
        return statistic(*(samples[i:j] for i, j in pairwise(starts)), axis=axis)

    with np.errstate(invalid="ignore", divide="ignore"):
        interval = bootstrap(
            arrays,
            vectorised,
            n_resamples=resamples,
            batch=BATCH,
            vectorized=True,
            axis=-1,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return value, interval.low, interval.high
