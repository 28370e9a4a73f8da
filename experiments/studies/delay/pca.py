r"""Streaming PCA with stale gradients: three kinds of memory, and how much delay each bears.

The experiment of Liu, Li, Shi, Zhou, Zhao ("Towards understanding acceleration tradeoff between momentum and asynchrony
in nonconvex stochastic optimization", NeurIPS 2018, arXiv 1806.01660): samples :math:`X_k` of covariance
:math:`\Sigma = \operatorname{diag}(4, 3, 2, 1)`, and the ascent direction of Oja's rule at the point of :math:`\tau`
steps ago,

.. math:: g_k = (I - v_{k-\tau} v_{k-\tau}^T) X_k X_k^T v_{k-\tau}.
"""

from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from experiments.rows import Row
from experiments.studies.delay.stability import allowed_delay
from storm_rl.optim.recursion import update_direction

Floats = NDArray[np.float64]

EIGENVALUES = np.array([4.0, 3.0, 2.0, 1.0])
# The ascent direction shortens a vector that is too long by 2 lambda_1 of what it is too long: the largest eigenvalue
# of the Hessian at the solution, the others being lambda_1 - lambda_i.
CURVATURE = 2.0 * float(EIGENVALUES[0])
N_STEPS, N_RUNS = 20_000, 20
# Delays, in units of the one that the linear theory allows.
SHARES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6)
# A delay is borne while the error is at most so many times that without delay.
BORNE = 2.0


class Memory(StrEnum):
    """What is remembered of past gradients; ``a`` is the weight of the newest."""

    HEAVY_BALL = "heavy ball"
    """``v_{k+1} = v_k + (1 - a) (v_k - v_{k-1}) + eta g_k``, the paper's."""
    MEAN = "running mean"
    """``d_k = a g_k + (1 - a) d_{k-1}`` and ``v_{k+1} = v_k + eta d_k``."""
    TWO_POINT = "two-point"
    """``d_k = g_k + (1 - a) (d_{k-1} - g'_k)``, ``g'_k`` at the point of a step before on the same sample: STORM's."""


# Of the paper; and larger ones where the effective step does not grow with the memory.
STEP_SIZES = {Memory.HEAVY_BALL: 5e-4, Memory.MEAN: 5e-3, Memory.TWO_POINT: 5e-3}
WEIGHTS = {
    Memory.HEAVY_BALL: (0.3, 0.2, 0.15, 0.1, 0.05),
    Memory.MEAN: (1.0, 0.5, 0.2, 0.1, 0.05, 0.02),
    Memory.TWO_POINT: (1.0, 0.5, 0.2, 0.1, 0.05, 0.02),
}


def predicted_delay(memory: Memory, weight: float, step_size: float) -> float:
    r"""The delay that the linear theory allows, in steps.

    A running mean is a heavy ball of step size :math:`a \eta`. The two-point recursion without noise has
    :math:`d_k = g_k` at every step, whatever ``a``: what it allows is what is allowed without memory.
    """
    gain = step_size * CURVATURE
    if memory == Memory.TWO_POINT:
        return allowed_delay(gain)
    return allowed_delay(gain if memory == Memory.HEAVY_BALL else weight * gain, 1.0 - weight)


def gradient(points: Floats, samples: Floats) -> Floats:
    """``(I - v v^T) X X^T v`` for points ``(..., n)`` and samples that broadcast with them."""
    along = (points * samples).sum(axis=-1, keepdims=True)
    ascent: Floats = samples * along - points * along**2
    return ascent


def simulate(
    memory: Memory,
    weights: Floats,
    delays: NDArray[np.int64],
    step_size: float,
    n_steps: int = N_STEPS,
    n_runs: int = N_RUNS,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Run all pairs of a weight and a delay on the same samples, from the same random starts on the sphere.

    Args:
        memory: What is remembered.
        weights: ``a`` of each of ``m`` pairs, ``(m,)``.
        delays: In steps, ``(m,)``; points before the first are the first.
        step_size: ``eta``.
        n_steps: Steps of each run.
        n_runs: Runs of each pair.
        seed: Of starts and samples; an entry of a sample is uniform, of variance ``EIGENVALUES``.

    Returns:
        The squared distance to the nearer of the two solutions, at most 1, as its mean over the second half of a run,
        ``(m, n_runs)``; and the last points, ``(m, n_runs, 4)``.
    """
    rng, size = np.random.default_rng(seed), len(EIGENVALUES)
    start = rng.standard_normal((n_runs, size))
    start /= np.linalg.norm(start, axis=-1, keepdims=True)
    points = np.broadcast_to(start, (len(weights), n_runs, size)).copy()
    length, pairs = int(delays.max()) + 2, np.arange(len(weights))
    history = np.broadcast_to(points, (length, *points.shape)).copy()
    fresh, direction, previous = weights[:, None, None], np.zeros_like(points), points.copy()
    total = np.zeros(points.shape[:2])
    for step in range(n_steps):
        samples = rng.uniform(-1.0, 1.0, (n_runs, size)) * np.sqrt(3.0 * EIGENVALUES)
        history[step % length] = points
        newest = gradient(history[(step - delays) % length, pairs], samples)
        if memory == Memory.HEAVY_BALL:
            points, previous = points + (1.0 - fresh) * (points - previous) + step_size * newest, points
        else:
            if step == 0:
                direction = newest
            elif memory == Memory.MEAN:
                direction = fresh * newest + (1.0 - fresh) * direction
            else:
                before = gradient(history[(step - 1 - delays) % length, pairs], samples)
                _update(direction, newest, before, fresh)
            points = points + step_size * direction
        # What has become unstable would soon overflow.
        points = points.clip(-2.0, 2.0)
        if step >= n_steps // 2:
            solution = np.eye(size)[0] * np.where(points[..., :1] < 0.0, -1.0, 1.0)
            total += np.minimum(1.0, ((points - solution) ** 2).sum(axis=-1))
    return total / (n_steps - n_steps // 2), points


def _update(direction: Floats, newest: Floats, before: Floats, fresh: Floats) -> None:
    """The package's recursion, in place."""
    tensors: list[Any] = [[torch.from_numpy(array)] for array in (direction, newest, before, fresh)]
    update_direction(*tensors)


def errors(memory: Memory, seed: int) -> list[Row]:
    """A row for each weight and delay: the median error over the runs of one seed."""
    step_size = STEP_SIZES[memory]
    cells = [
        (weight, delay)
        for weight in WEIGHTS[memory]
        for delay in dict.fromkeys(round(share * predicted_delay(memory, weight, step_size)) for share in SHARES)
    ]
    weights, delays = (np.array(column) for column in zip(*cells, strict=True))
    found, _ = simulate(memory, weights, delays, step_size, seed=seed)
    return [
        {"memory": memory.value, "weight": weight, "delay": delay, "seed": seed, "error": float(np.median(runs))}
        for (weight, delay), runs in zip(cells, found, strict=True)
    ]


def borne_delay(delays: Floats, error: Floats) -> float:
    """The delay up to which the error is at most ``BORNE`` times that without; between two, by interpolation.

    NaN where it is borne up to the last.
    """
    ratio = np.log(error / error[0])
    above = np.flatnonzero(ratio > np.log(BORNE))
    if not len(above):
        return float("nan")
    last = int(above[0])
    return float(np.interp(np.log(BORNE), ratio[last - 1 : last + 1], delays[last - 1 : last + 1]))


def borne(rows: pd.DataFrame) -> pd.DataFrame:
    """For each memory and weight the delay that is borne, median and range over seeds, beside the theory's."""
    found = []
    for (memory, weight), group in rows.groupby(["memory", "weight"], sort=False):
        values = [
            borne_delay(part["delay"].to_numpy(float), part["error"].to_numpy(float))
            for _, part in group.sort_values("delay").groupby("seed")
        ]
        kind = Memory(str(memory))
        found.append(
            {
                **{"memory": memory, "a": weight, "borne": np.median(values)},
                **{"least": np.min(values), "most": np.max(values)},
                "theory": predicted_delay(kind, float(str(weight)), STEP_SIZES[kind]),
                "error without delay": group[group["delay"] == 0]["error"].median(),
            }
        )
    return pd.DataFrame(found)
