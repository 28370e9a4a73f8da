"""Fits repeated from the same state with other minibatches: losses by step, their cost, and variances on the way."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from agents.minimal_variance import (
    MinimalVarianceSampler,
    decompose,
    inclusion_probabilities,
    pass_variance,
    per_sample_norms,
    sampling_variance,
    squared_error_norms,
)
from experiments.rows import Row
from experiments.studies.sampling.fits import Fit
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyAdam
from storm_rl.storm_plus_pg.numpy_mlp import Array, NumpyMLP

BATCH_SIZE = 128
# Steps between two measurements of the losses, and those whose mean is a point of the curve: a pass of the critic.
EVERY, WINDOW = 4, 16
# Replays go on for so many times the steps of the fit: a method may be slower.
LONGER = 1.25
FLOOR = 0.1
AGES = (1, 5, 20, 80)


@dataclass(frozen=True)
class Method:
    """How minibatches are drawn.

    Attributes:
        norms: ``"exact"``, of ``"last layer"`` alone; None for equal probabilities.
        refresh_every: Steps between two passes for all norms; None for one before the first step.
        floor: Of `inclusion_probabilities`.
        by_draws: Whether each minibatch's own norms are put in the place of the old ones.
        passes: Whether uniform minibatches are the library's: shuffled passes over all samples.
        independent: Whether each sample is drawn by itself, whatever was drawn before (Poisson sampling).
        whole: Whether each step takes all samples.
    """

    norms: str | None = None
    refresh_every: int | None = 1
    floor: float = 0.0
    by_draws: bool = False
    passes: bool = False
    independent: bool = False
    whole: bool = False


METHODS = {
    "uniform": Method(passes=True),
    "uniform, once more": Method(passes=True),
    "uniform, independent": Method(independent=True),
    "exact": Method("exact"),
    "exact, every 5": Method("exact", 5, FLOOR),
    "exact, every 20": Method("exact", 20, FLOOR),
    "exact, every 80": Method("exact", 80, FLOOR),
    "last layer": Method("last layer", 1, FLOOR),
    "last layer, every 20": Method("last layer", 20, FLOOR),
    "as drawn": Method("exact", None, FLOOR, by_draws=True),
    "all samples": Method(whole=True),
}
"""The first is the library's and the aim of all others; the second, with other draws, says what chance does."""


class Curves(NamedTuple):
    """Mean squared errors after so many steps, and the cost."""

    steps: Array
    losses: Array
    """On all data of the fit."""
    fresh: Array
    """On the fresh data."""
    seconds: float
    """Processor time of a step, with its share of draws and norms, without measurements."""


Minibatch = tuple[Array, Array | float]
"""Rows, and what the gradients of their squared errors are multiplied by before they are summed."""


def uniform_passes(n: int, rng: np.random.Generator) -> Iterator[Minibatch]:
    """The library's: passes in an order of their own; the last minibatch of one may be smaller."""
    for _ in itertools.count():
        order = rng.permutation(n)
        for start in range(0, n, BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            yield rows, 1.0 / len(rows)


class Replay:
    """A network under way from the state before a fit, whose gradients need not be of uniform minibatches."""

    def __init__(self, fit: Fit) -> None:
        self.inputs, self.targets = fit.inputs, fit.targets.reshape(-1, 1)
        self.theta = fit.network.flat()
        self.network = fit.network.with_parameters(self.theta)
        self._gradient = np.empty_like(self.theta)
        self._gradients = self.network.split(self._gradient)
        self._adam = NumpyAdam(fit.group, fit.states, self.theta)
        self._workspaces: dict[int, list[list[Array]]] = {}

    def step(self, rows: Array, weights: Array | float, norms: bool = False) -> Array | None:
        """A step of Adam on the weighted sum; ``norms``: gives those of the samples' own gradients, before it."""
        size = len(rows)
        if size not in self._workspaces:
            self._workspaces[size] = [self.network.empty_layers(size) for _ in range(3)]
        layers, derivatives, deltas = self._workspaces[size]
        values = self.network.forward(self.inputs.take(rows, axis=0), layers)
        errors = np.subtract(values[-1], self.targets.take(rows, axis=0), out=deltas[-1])
        factors = 2.0 * weights if isinstance(weights, float) else (2.0 * weights).astype(errors.dtype)[:, None]
        errors *= factors
        arrived = self.network.backward(self.network.activation_derivatives(values, derivatives), errors, deltas)
        self.network.gradient(values, arrived, self._gradients)
        self._adam.step(self.theta, self._gradient)
        return per_sample_norms(values, arrived) / weights if norms else None

    def loss(self, inputs: Array, targets: Array) -> float:
        """Mean squared error."""
        errors = self.network.forward(inputs)[-1] - targets.reshape(-1, 1)
        return float(np.vdot(errors, errors)) / len(errors)


def replay(fit: Fit, method: Method, n_steps: int, seed: Sequence[int]) -> Curves:
    """Carry out the fit by another method; ``seed`` is of the draws."""
    under_way, rng = Replay(fit), np.random.default_rng(seed)
    n = len(fit.inputs)
    minibatch, sampler = _minibatches(under_way, method, n, rng)
    steps, losses, fresh, seconds = [0], [], [], 0.0
    losses.append(under_way.loss(fit.inputs, fit.targets))
    fresh.append(under_way.loss(fit.fresh_inputs, fit.fresh_targets))
    for step in range(1, n_steps + 1):
        began = time.process_time()
        rows, weights = minibatch()
        found = under_way.step(rows, weights, norms=method.by_draws)
        if sampler is not None and found is not None:
            sampler.update(rows, found)
        seconds += time.process_time() - began
        if step % EVERY == 0:
            steps.append(step)
            losses.append(under_way.loss(fit.inputs, fit.targets))
            fresh.append(under_way.loss(fit.fresh_inputs, fit.fresh_targets))
    return Curves(np.array(steps), np.array(losses), np.array(fresh), seconds / n_steps)


def _minibatches(
    under_way: Replay, method: Method, n: int, rng: np.random.Generator
) -> tuple[Callable[[], Minibatch], MinimalVarianceSampler | None]:
    if method.whole:
        return lambda: (np.arange(n), 1.0 / n), None
    if method.passes:
        return uniform_passes(n, rng).__next__, None
    last_layer = method.norms == "last layer"

    def norms() -> Array:
        if method.norms is None:
            return np.ones(n)
        return squared_error_norms(under_way.network, under_way.inputs, under_way.targets, last_layer)

    every = method.refresh_every if method.norms else None
    draw: Literal["poisson", "systematic"] = "poisson" if method.independent else "systematic"
    sampler = MinimalVarianceSampler(norms, BATCH_SIZE, every, method.floor, draw, int(rng.integers(2**63)))
    return sampler.draw, sampler


def smoothed(values: Array) -> Array:
    """Mean of each measurement and those of the ``WINDOW`` steps before it; the first ones have fewer."""
    width = WINDOW // EVERY
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def first_step(steps: Array, values: Array, target: float) -> float:
    """Steps until ``values`` first are at ``target``, by linear interpolation; infinite if they never are."""
    reached = values <= target
    if not reached.any():
        return math.inf
    index = int(reached.argmax())
    if index == 0:
        return float(steps[0])
    above, below = values[index - 1], values[index]
    return float(steps[index - 1] + (steps[index] - steps[index - 1]) * (above - target) / (above - below))


def replayed(fit: Fit, repeats: int, seed: int) -> list[Row]:
    """A row for each method: losses at the end of the fit's steps, on the way, and steps until the uniform's last loss.

    Curves are means of ``repeats`` replays of other draws. A method that does not get there has ``reached`` False and
    the number of steps that it was given.
    """
    n_fit = len(fit.minibatches)
    n_steps = EVERY * round(LONGER * n_fit / EVERY)
    rows: list[Row] = []
    target = math.nan
    for index, (name, method) in enumerate(METHODS.items()):
        times = 1 if method.whole else repeats
        runs = [replay(fit, method, n_steps, (seed, fit.update, index, repeat)) for repeat in range(times)]
        steps = runs[0].steps
        losses = smoothed(np.mean([run.losses for run in runs], axis=0))
        fresh = smoothed(np.mean([run.fresh for run in runs], axis=0))
        end = int(np.searchsorted(steps, n_fit))
        if index == 0:
            target = float(losses[end])
        needed = first_step(steps, losses, target)
        row: Row = {"fit": fit.name, "update": fit.update, "method": name, "samples": len(fit.inputs), "steps": n_fit}
        row |= {"reached": math.isfinite(needed), "needed": min(needed, float(n_steps))}
        row |= {"seconds": float(np.mean([run.seconds for run in runs]))}
        for tenth in range(0, round(10 * LONGER) + 1):
            place = min(int(np.searchsorted(steps, tenth * n_fit / 10)), len(steps) - 1)
            row |= {f"loss_{tenth}": float(losses[place]), f"fresh_{tenth}": float(fresh[place])}
        rows.append(row)
    return rows


def variances(fit: Fit, seed: int) -> list[Row]:
    """Along a uniform replay, before it and after half and all of its steps: variances of a minibatch's gradient."""
    n_fit = len(fit.minibatches)
    measured = sorted({0, n_fit // 2, n_fit})
    under_way = Replay(fit)
    draws = uniform_passes(len(fit.inputs), np.random.default_rng((seed, fit.update, len(METHODS))))
    past = [under_way.theta.copy()]
    for _ in range(n_fit):
        under_way.step(*next(draws))
        past.append(under_way.theta.copy())
    return [{"fit": fit.name, "update": fit.update, "at": at, **_variances_at(fit, past, at)} for at in measured]


def _variances_at(fit: Fit, past: list[Array], at: int) -> Row:
    """All in units of the gradient's square, but for ``evenness``."""

    def norms(step: int, last_layer: bool = False) -> Array:
        return squared_error_norms(fit.network.with_parameters(past[step]), fit.inputs, fit.targets, last_layer)

    exact, n = norms(at), len(fit.inputs)
    signal = mean_gradient_square(fit.network.with_parameters(past[at]), fit)
    uniform = inclusion_probabilities(np.ones(n), BATCH_SIZE)
    row: Row = {
        "signal": signal,
        "uniform": sampling_variance(uniform, exact),
        "pass": pass_variance(exact, signal, min(BATCH_SIZE, n)),
        "least": decompose(exact, exact, BATCH_SIZE).sampling,
        "floor": decompose(exact, exact, BATCH_SIZE, FLOOR).norms,
        "last layer": decompose(exact, norms(at, last_layer=True), BATCH_SIZE, FLOOR).norms,
        "evenness": float(exact.mean() ** 2 / np.square(exact).mean()),
    }
    for age in AGES:
        stale = decompose(exact, norms(at - age), BATCH_SIZE, FLOOR).norms if age <= at else math.nan
        row[f"age {age}"] = stale
    return row


def mean_gradient_square(network: NumpyMLP, fit: Fit) -> float:
    """Squared norm of the gradient of the mean squared error of all samples."""
    values = network.forward(fit.inputs)
    cotangent = (2.0 / len(fit.inputs)) * (values[-1] - fit.targets.reshape(-1, 1))
    gradient = np.empty(network.n_parameters, dtype=values[-1].dtype)
    arrived = network.backward(network.activation_derivatives(values), cotangent.astype(values[-1].dtype))
    network.gradient(values, arrived, network.split(gradient))
    return float(np.square(gradient, dtype=np.float64).sum())
