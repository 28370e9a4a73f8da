r"""Where does variance reduction pay? The error of each gradient estimate, by step size and along a training run.

From several stages of a training run (GPOMDP with a critic), short paths of equal steps are walked: each step goes
along a fresh small-batch gradient and is scaled to the same KL divergence. All estimators see the same parameters
and the same small batches of B episodes; those with a memory get one large batch of N at the path's begin. After
some steps their estimates are compared with the gradient on a reference batch of many hundred episodes: relative
error :math:`\lVert d - \nabla J \rVert / \lVert \nabla J \rVert` and cosine. ``gpomdp_equal`` has as many episodes
for each step as the ones with a memory have on average: it is the estimate to beat.

On the reference batch, the importance weights of the step before are measured at every horizon: their largest value
and their effective sample size.

All estimates are of the same gradient, that of the discounted return; GAE keeps the factor ``gamma^h`` for that.
STORM+ has the paper's momentum, from gradients in units of the returns' standard deviation, bounded below by 0.3 as
in `storm_rl.storm_plus_pg`.

All runs are on the batched environments of ``envs.batched``. A seed's rows are stored together when it is finished,
since all its paths draw from one random state: an interrupted study goes on with the seeds that are missing.

``python -m experiments gradient-error --help``
"""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from envs import get_task
from envs.batched import batched_class, make_vec
from experiments.plots import COLOURS, LINES, save
from experiments.progress import Clock
from experiments.rows import Row, Rows
from storm_rl.common.importance_weights import effective_sample_size, per_decision_weights
from storm_rl.episodic import GPOMDP
from storm_rl.episodic.episodes import TrajectoryBatch, pad
from storm_rl.episodic.episodic_algorithm import EpisodicAlgorithm
from storm_rl.episodic.recursions import (
    AnchoredRecursion,
    EpochRecursion,
    MomentumRecursion,
    SnapshotRecursion,
    Vector,
    vector_norm,
)
from storm_rl.episodic.returns import (
    Baseline,
    discount_factors,
    gpomdp_advantages,
    monte_carlo_returns,
    reinforce_advantages,
)
from storm_rl.episodic.two_point import LogProbAtPoints
from storm_rl.optim.recursion import storm_plus_momentum
from storm_rl.storm_plus_pg.metric import mean_kl
from storm_rl.storm_plus_pg.rollouts import generalised_advantages

LARGE, SMALL = 100, 10
N_STEPS = 10
MEASURED_AT = (2, N_STEPS)
# Episodes for each step of those with a memory, on average over the path: (N + n_steps B) / (n_steps + 1).
EQUAL = round((LARGE + N_STEPS * SMALL) / (N_STEPS + 1))
# Once every episode of CartPole lasts to the limit, all returns are equal and there is no gradient to compare with.
STAGES = (1_000, 3_000, 6_000)
KLS = (1e-5, 1e-4, 1e-3, 1e-2)
# The probe's environments; a batch of fewer episodes leaves the others idle.
PROBE_ENVS = 100
PATH = ("task", "stage", "kl", "seed")
GAE_LAMBDA = 0.95
MOMENTUM_FLOOR = 0.3


def use(model: EpisodicAlgorithm, env: VecEnv) -> None:
    """Exchange the environment; unlike SB3's ``set_env``, for another number of them."""
    model.env, model.n_envs = env, env.num_envs
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)


def collect(model: EpisodicAlgorithm, n_episodes: int) -> TrajectoryBatch:
    """A batch of the current policy, with no callback and no effect on the policy."""
    callback = CallbackList([])
    callback.init_callback(model)
    model.collect_trajectories(callback, n_episodes)
    return model.batch


def estimate(
    model: EpisodicAlgorithm, batch: TrajectoryBatch, points: list[Vector], only_gpomdp: bool = False
) -> dict[str, Any]:
    """The estimates that one batch of the policy at ``points[0]`` allows, there and (weighted) at the others."""
    at = LogProbAtPoints(model.action_distribution, points, batch.observations, batch.actions)
    log_prob, mask = pad(at.values.double(), batch.mask), batch.mask
    weights = [per_decision_weights(each, log_prob[0], mask) for each in log_prob[1:]]

    def gradient(index: int, advantages: Tensor) -> Vector:
        coefficients = torch.zeros_like(at.values)
        coefficients[index] = (advantages[mask] / len(mask)).to(coefficients.dtype)
        return at.gradients(coefficients)[index]

    loo: Baseline = "leave_one_out"
    gpomdp = gradient(0, gpomdp_advantages(batch.rewards, mask, model.gamma, loo))
    if only_gpomdp:
        return {"gpomdp": gpomdp}
    with torch.no_grad():
        values = pad(model.policy.predict_values(batch.observations).flatten().double(), mask)
    gae = padded_advantages(batch.rewards, mask, values, model.gamma)
    gae = gae * discount_factors(mask.shape[1], model.gamma, gae)
    return {
        "reinforce": gradient(0, reinforce_advantages(batch.rewards, mask, model.gamma, loo)),
        "gpomdp": gpomdp,
        "gae": gradient(0, gae),
        "weighted": [
            gradient(i + 1, gpomdp_advantages(batch.rewards, mask, model.gamma, loo, weight))
            for i, weight in enumerate(weights)
        ],
    }


def padded_advantages(rewards: Tensor, mask: Tensor, values: Tensor, gamma: float) -> Tensor:
    """GAE of padded episodes, ``(n_episodes, n_steps)``, whose ends are all terminal."""
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    ends = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    advantages = generalised_advantages(rewards.T, values.T, following.T, ends.T, gamma, GAE_LAMBDA)
    return torch.where(mask, advantages.T, 0.0)


@torch.no_grad()
def weights_of(model: EpisodicAlgorithm, batch: TrajectoryBatch, points: list[Vector]) -> list[Tensor]:
    """Per-decision weights from the policy at ``points[0]`` to the others."""
    inputs = (batch.observations, batch.actions)
    log_prob = [pad(model.action_distribution.with_parameters(point, *inputs).double(), batch.mask) for point in points]
    return [per_decision_weights(each, log_prob[0], batch.mask) for each in log_prob[1:]]


def make_step(model: EpisodicAlgorithm, batch: TrajectoryBatch, gradient: Vector, kl: float) -> None:
    """Move the policy along ``gradient`` until the mean KL over the batch's states is ``kl`` (found by bisection)."""
    parameters = model.action_distribution.named(list(gradient))
    before = {name: values.detach().clone() for name, values in parameters.items()}
    with torch.no_grad():
        # The policy has one distribution, which the next call overwrites.
        old = copy.copy(model.policy.get_distribution(batch.observations))

    @torch.no_grad()
    def moved(length: float) -> float:
        for name, values in parameters.items():
            values.copy_(before[name] + length * gradient[name])
        return float(mean_kl(old, model.policy.get_distribution(batch.observations)))

    length = 1.0 / max(vector_norm(gradient), 1e-12)
    low, high = 0.0, np.inf
    for _ in range(40):
        found = moved(length)
        if abs(found / kl - 1.0) < 0.02:
            return
        low, high = (length, high) if found < kl else (low, length)
        length = 2 * length if high == np.inf else 0.5 * (low + high)


def compare(found: Vector, reference: Vector) -> dict[str, float]:
    """Relative error, cosine, and the norm that the error is relative to, in units of return."""
    one, other = (torch.cat([v.flatten().double() for v in vector.values()]) for vector in (found, reference))
    return {
        "relative_error": float((one - other).norm() / other.norm()),
        "cosine": float(one @ other / (one.norm() * other.norm())),
        "reference_norm": float(other.norm()),
    }


def walk(
    model: EpisodicAlgorithm, kl: float, reference_episodes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One path: rows of errors and rows of weights."""
    recursions: dict[str, AnchoredRecursion] = {
        "svrpg": SnapshotRecursion(LARGE, SMALL, N_STEPS + 1),
        "srvrpg": EpochRecursion(N_STEPS + 1),
        "storm": MomentumRecursion(0.3),
        "storm_plus": MomentumRecursion(1.0),
    }
    errors: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    start = {name: values.clone() for name, values in model.action_distribution.point().items()}
    batch = collect(model, LARGE)
    found = estimate(model, batch, [start])
    scale = float(monte_carlo_returns(batch.rewards, batch.mask, model.gamma)[batch.mask].std())
    for recursion in recursions.values():
        recursion.direction(start, found["gpomdp"])
        recursion.large_batch = False
    squares = (vector_norm(found["gpomdp"]) / scale) ** 2
    previous, gradient = start, found["gpomdp"]
    for step in range(1, N_STEPS + 1):
        make_step(model, batch, gradient, kl)
        point = {name: values.clone() for name, values in model.action_distribution.point().items()}
        batch = collect(model, SMALL)
        found = estimate(model, batch, [point, previous, start])
        gradient = found["gpomdp"]
        recursions["storm_plus"].momentum = max(MOMENTUM_FLOOR, storm_plus_momentum(squares))
        squares += (vector_norm(gradient) / scale) ** 2
        directions = {name: found[name] for name in ("reinforce", "gpomdp", "gae")}
        for name, recursion in recursions.items():
            at_anchor = found["weighted"][1 if name == "svrpg" else 0]
            directions[name] = recursion.direction(point, gradient, at_anchor)
        if step in MEASURED_AT:
            directions["gpomdp_equal"] = estimate(model, collect(model, EQUAL), [point], True)["gpomdp"]
            reference = collect(model, reference_episodes)
            truth = estimate(model, reference, [point], True)["gpomdp"]
            for name, direction in directions.items():
                errors.append({"step": step, "estimator": name, **compare(direction, truth)})
            weights += weight_rows(step, weights_of(model, reference, [point, previous, start]), reference.mask)
        previous = point
    return errors, weights


def weight_rows(step: int, weights: list[Tensor], mask: Tensor) -> list[dict[str, Any]]:
    """Largest weight and effective share of the episodes alive at some horizons, for both anchors."""
    rows = []
    for anchor, values in zip(("previous", "snapshot"), weights, strict=True):
        for horizon in (1, 5, 10, 20, 50, 100, 200, 500):
            alive = mask[:, horizon - 1] if horizon <= mask.shape[1] else mask.new_zeros(len(mask))
            if alive.sum() >= 20:
                at = values[:, horizon - 1][alive]
                share = float(effective_sample_size(at)) / len(at)
                rows.append(
                    {"step": step, "anchor": anchor, "horizon": horizon, "largest": float(at.max()), "effective": share}
                )
    return rows


def plot(errors: pd.DataFrame, path: Path) -> None:
    """Median relative error against the KL of a step: a panel for each stage, a line for each estimator."""
    errors = errors[errors["step"] == N_STEPS]
    stages = sorted(errors["stage"].unique())
    figure, axes = plt.subplots(1, len(stages), figsize=(4.0 * len(stages), 3.8), sharey=True, layout="constrained")
    for panel, stage in zip(np.atleast_1d(axes), stages, strict=True):
        at_stage = errors[errors["stage"] == stage]
        for i, (name, rows) in enumerate(at_stage.groupby("estimator", sort=False)):
            median = rows.groupby("kl")["relative_error"].median()
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[(i // len(COLOURS)) % len(LINES)]}
            panel.plot(median.index, median, label=name, marker="o", markersize=3, **style)
        # An error above 1 is worse than no estimate at all; how much worse is in the table.
        panel.set(
            xscale="log",
            yscale="log",
            ylim=(0.1, 20.0),
            xlabel="KL of a step (nats)",
            title=f"after {stage:,} env steps",
        )
    np.atleast_1d(axes)[0].set_ylabel(f"relative error after {N_STEPS} steps")
    np.atleast_1d(axes)[-1].legend(fontsize=7, loc="upper left")
    save(figure, path)


def gradient_error(
    task: Annotated[str, typer.Option(help="A task of the benchmark.")] = "CartPole-v1",
    stages: Annotated[
        list[int] | None, typer.Option("--stage", min=1, help="Env steps of training; 1k, 3k, 6k.")
    ] = None,
    kls: Annotated[list[float] | None, typer.Option("--kl", help="KL of a step; 1e-5 to 1e-2.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs, and paths from each stage.")] = 3,
    reference_episodes: Annotated[int, typer.Option(min=20, help="Episodes of the reference batch.")] = 500,
    output: Annotated[Path, typer.Option(help="Folder of tables and plot; seeds there are not repeated.")] = Path(
        "runs/gradient_error"
    ),
) -> None:
    """Measure the error of each gradient estimator along training runs; write two tables and a plot."""
    torch.set_num_threads(1)
    task_id = get_task(task).id
    batched_class(task_id)
    if any(not 0.0 < kl < np.inf for kl in kls or ()):
        raise ValueError(f"--kl must be above 0, got {min(kls or ())}")
    errors = Rows(output / f"errors_{task_id}.csv", (*PATH, "step", "estimator"))
    weights = Rows(output / f"weights_{task_id}.csv", (*PATH, "step", "anchor", "horizon"))
    stages, kls = sorted(stages or STAGES), kls or list(KLS)
    last = (MEASURED_AT[-1], "gpomdp_equal")
    paths = list(itertools.product(stages, kls))
    missing = [seed for seed in range(seeds) if any(errors.get(task_id, *path, seed, *last) is None for path in paths)]
    with Clock(Console(), len(missing), len(missing) * len(paths), "paths") as clock:
        for seed in missing:
            with clock.run(f"{task_id}, seed {seed}", len(paths)) as report:
                found = along_training(task_id, seed, stages, kls, reference_episodes, report)
            weights.add(found[1])
            errors.add(found[0])  # Last: they say that the seed is finished.
    table = errors.table()
    plot(table, output / f"gradient_error_{task_id}.png")
    summary = table[table["step"] == N_STEPS].groupby(["stage", "kl", "estimator"], sort=False)["relative_error"]
    print(summary.median().unstack().round(2).to_string())


def along_training(
    task_id: str,
    seed: int,
    stages: list[int],
    kls: list[float],
    reference_episodes: int,
    report: Callable[[float], None],
) -> tuple[list[Row], list[Row]]:
    """The paths of one training run, at every stage one for each KL: rows of errors and rows of weights.

    ``report`` is called with the number of paths so far.
    """
    errors: list[Row] = []
    weights: list[Row] = []
    env, probe = make_vec(task_id, 20, seed), make_vec(task_id, PROBE_ENVS, 1_000 + seed)
    model = GPOMDP("MlpPolicy", env, baseline="state_value", seed=seed, device="cpu")
    for stage in stages:
        use(model, env)
        model.learn(max(1, stage - model.num_timesteps), reset_num_timesteps=False)
        use(model, probe)
        trained, steps = model.policy.state_dict(), model.num_timesteps
        trained = {name: values.clone() for name, values in trained.items()}
        for kl in kls:
            path = dict(zip(PATH, (task_id, stage, kl, seed), strict=True))
            for stored, rows in zip((errors, weights), walk(model, kl, reference_episodes), strict=True):
                stored += [{**path, **_rounded(row)} for row in rows]
            model.policy.load_state_dict(trained)
            report(stages.index(stage) * len(kls) + kls.index(kl) + 1)
        model.num_timesteps = steps
    return errors, weights


def _rounded(row: Row) -> Row:
    return {name: float(np.round(value, 5)) if isinstance(value, float) else value for name, value in row.items()}
