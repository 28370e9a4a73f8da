"""The runs of the study: what a job is, and how it is done."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.studies.optimisers.problems import PROBLEMS, batches, digits, network
from storm_rl.optim import STORM, MetaSTORM, STORMPlus

NORMS_STEPS = 5_000
SCALE_STEPS = 1_000
EPOCHS = 15
SCALES = tuple(10.0**power for power in range(-4, 5, 2))
SCALE_SEEDS = 3
"""The scales are told apart by orders of magnitude, so more seeds would not change what is seen."""

TUNING_SEED = 1_000

GRIDS: dict[str, tuple[float, ...]] = {
    "SGD": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "SGD 1/sqrt(t)": (1e-2, 1e-1, 1.0, 10.0, 100.0),
    "SGD momentum": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "Adam": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "STORM": (1.0, 10.0, 100.0, 1000.0),
}
"""What is tuned, by one run with a seed of its own: learning rates, and STORM's c."""

DEFAULTS = {"SGD": 1e-3, "Adam": 1e-3, "STORM": 100.0}
"""Values that torch and the library set themselves."""


@dataclass(frozen=True)
class Job:
    """One run, for a part of the study. ``setting`` is the learning rate, or STORM's ``c``; None for nothing to set."""

    part: str
    problem: str
    method: str
    seed: int
    steps: int
    setting: float | None = None
    scale: float = 1.0


def optimizer_for(method: str, params: Iterable[Tensor], setting: float | None) -> torch.optim.Optimizer:
    """The optimiser. The samples are drawn outside of the closures, so no random state is replayed."""
    if method.startswith("STORM+"):
        floor = 0.1 if "floor" in method else 0.0
        return STORMPlus(params, momentum_floor=floor, per_coordinate="per coord" in method, replay=False)
    if method.startswith("META-STORM"):
        return MetaSTORM(params, per_coordinate="per coord" in method, replay=False)
    if setting is None:
        raise ValueError(f"{method} needs a setting, one of {GRIDS.get(method)}")
    if method == "STORM":
        return STORM(params, c=setting, replay=False)
    if method == "Adam":
        return torch.optim.Adam(params, lr=setting)
    return torch.optim.SGD(params, lr=setting, momentum=0.9 if method == "SGD momentum" else 0.0)


def run(job: Job) -> dict[str, Any]:
    """The curves of a job, by name; a run that leaves the finite numbers ends there and says so."""
    return run_digits(job) if job.problem in ("MLP", "CNN") else run_norms(job)


def run_norms(job: Job) -> dict[str, Any]:
    """True unscaled gradient norms at log-spaced steps: mean since the last such step, mean since step 1."""
    problem = PROBLEMS[job.problem]()
    generator = torch.Generator().manual_seed(job.seed)
    x = nn.Parameter(problem.start.clone())
    optimizer = optimizer_for(job.method, [x], job.setting)
    stops = sorted({round(10 ** (power / 10)) for power in range(10, 60) if 10 ** (power / 10) <= job.steps})
    every = max(1, job.steps // 2000)
    curves: dict[str, Any] = {"samples": [], "window": [], "mean": [], "diverged": False}
    total, count, window, window_count = 0.0, 0, 0.0, 0
    for step in range(1, job.steps + 1):
        sample = problem.draw(generator)

        def closure(sample: tuple[Tensor, ...] = sample) -> Tensor:
            value, gradient = problem.value_and_gradient(x.detach(), sample)
            x.grad = job.scale * gradient
            return job.scale * value

        if job.method == "SGD 1/sqrt(t)":
            optimizer.param_groups[0]["lr"] = (job.setting or 0.0) / step**0.5
        try:
            optimizer.step(closure)  # type: ignore[arg-type]
        except ValueError:
            curves["diverged"] = True
        if step % every == 0 or step <= 100:
            # Thinned later, so that each counts for the steps it stands for.
            weight = 1 if step <= 100 else every
            norm = float(problem.true_gradient(x.detach()).norm())
            if not norm < 1e6:
                curves["diverged"] = True
            total, count = total + weight * norm, count + weight
            window, window_count = window + weight * norm, window_count + weight
        if curves["diverged"]:
            break
        if step in stops or step == job.steps:
            curves["samples"].append(step)
            curves["mean"].append(total / count)
            curves["window"].append(window / window_count if window_count else total / count)
            window, window_count = 0.0, 0
    return curves


def run_digits(job: Job) -> dict[str, Any]:
    """Training loss over the whole training set and test accuracy, after each epoch."""
    torch.manual_seed(job.seed)
    model = network(job.problem)
    generator = torch.Generator().manual_seed(job.seed)
    inputs, labels, test_inputs, test_labels = digits()
    optimizer = optimizer_for(job.method, list(model.parameters()), job.setting)
    curves: dict[str, Any] = {"epoch": [], "loss": [], "accuracy": [], "diverged": False}
    for epoch in range(job.steps + 1):
        for rows in batches(len(labels), 64, generator) if epoch else ():

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            try:
                optimizer.step(closure)  # type: ignore[arg-type]
            except ValueError:
                curves["diverged"] = True
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(inputs), labels))
            accuracy = float((model(test_inputs).argmax(1) == test_labels).float().mean())
        curves["diverged"] |= not loss < 1e6
        if curves["diverged"]:
            break
        curves["epoch"].append(epoch)
        curves["loss"].append(loss)
        curves["accuracy"].append(accuracy)
    return curves


def score(record: dict[str, Any], quick: bool) -> float:
    """What tuning minimises, which is what the run is judged by.

    The train loss of the last epochs; the mean gradient norm over all steps for the gradient norms, and over
    the last steps for the loss scales.
    """
    curves = record["curves"]
    if curves["diverged"]:
        return float("inf")
    if "loss" in curves:
        return float(sum(curves["loss"][-3:]))
    return float(curves["mean"][-1] if record["steps"] == lengths(quick)[0] else sum(curves["window"][-2:]))


NORMS: tuple[str, ...] = (
    "STORM+",
    "STORM+ floor 0.1",
    "META-STORM",
    "STORM",
    "SGD",
    "SGD 1/sqrt(t)",
    "SGD momentum",
    "Adam",
)
SCALE_PROBLEMS = ("robust regression", "logistic regression")
UNTUNED = ("STORM+", "STORM+ floor 0.1", "META-STORM")
SCALE_TUNED = ("SGD", "Adam", "STORM")
NETWORKS = ("MLP", "CNN")
DIGITS: tuple[str, ...] = (
    "STORM+",
    "STORM+ floor 0.1",
    "STORM+ per coord.",
    "META-STORM",
    "META-STORM per coord.",
    "STORM",
    "SGD",
    "SGD momentum",
    "Adam",
)


def tuning_jobs(quick: bool) -> list[Job]:
    """Each grid on each problem, at the length it is used for."""
    norms, scales, epochs = lengths(quick)
    jobs = []
    for method, grid in GRIDS.items():
        for value in grid:
            jobs += [Job("tune", problem, method, TUNING_SEED, norms, value) for problem in PROBLEMS]
            if method in SCALE_TUNED:
                jobs += [Job("tune", p, method, TUNING_SEED, scales, value) for p in SCALE_PROBLEMS]
            if method in DIGITS:
                jobs += [Job("tune", kind, method, TUNING_SEED, epochs, value) for kind in NETWORKS]
    return jobs


def lengths(quick: bool) -> tuple[int, int, int]:
    """Steps of the two synthetic parts and epochs on the digits."""
    return (1_000, 300, 2) if quick else (NORMS_STEPS, SCALE_STEPS, EPOCHS)


def main_jobs(seeds: int, quick: bool, best: Callable[[str, str, int], float | None]) -> list[Job]:
    """The measured runs, with ``best(problem, method, steps)`` of the grids."""
    norms, scales, epochs = lengths(quick)
    jobs = []
    for seed in range(seeds):
        for problem in PROBLEMS:
            jobs += [Job("norms", problem, m, seed, norms, best(problem, m, norms)) for m in NORMS]
        for kind in NETWORKS:
            jobs += [Job("digits", kind, m, seed, epochs, best(kind, m, epochs)) for m in DIGITS]
            jobs += [Job("digits-default", kind, "Adam", seed, epochs, DEFAULTS["Adam"])]
        for problem in SCALE_PROBLEMS:
            if seed >= SCALE_SEEDS:
                continue
            one = [Job("scale", problem, m, seed, scales) for m in UNTUNED]
            for method in SCALE_TUNED:
                one.append(Job("scale", problem, method, seed, scales, best(problem, method, scales)))
                one.append(Job("scale-default", problem, method, seed, scales, DEFAULTS[method]))
            jobs += [replace(job, scale=scale) for job in one for scale in SCALES]
    return list(dict.fromkeys(jobs))
