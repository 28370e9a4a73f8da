r"""Which solver of :math:`(F + \lambda I) x = d`, STORM+PG's step, is fastest at equal quality?

STORM+PG is trained with its defaults; after some rollouts the policy, the states that its metric remembers and the
recursion's direction ``d`` make one problem. Each solver's time starts at the policy and the raw states, as in the
agent's update, so that passes, products and factors are all paid for. It is the processor time of one thread; solvers
take turns, repeat by repeat, and ratios to what the agent does are taken within a repeat: drift of the machine hits all
alike.

Quality is against the exact solution :math:`x`, with :math:`M = F + \lambda I` on all states: the relative error
:math:`\lVert \hat x - x \rVert_M / \lVert x \rVert_M`, the cosine of both, and :math:`d^T \hat x / d^T x`, which sets
the agent's step size.

Solvers that the library does not have are here, in closed form for fully connected networks with a softmax:

- *Sample space.* With ``F = R^T R``, one row of ``R`` for each state and each dimension of its outputs' Fisher block,
  :math:`x = (d - R^T (\lambda I + R R^T)^{-1} R d) / \lambda` (Woodbury), exact with as many states as ``F`` has.
- *K-FAC.* Each layer's block of ``F`` as a Kronecker product (Martens and Grosse, "Optimizing Neural Networks with
  Kronecker-factored Approximate Curvature", 2015), by itself or before conjugate gradients.

``python -m experiments fisher-solvers --help``
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from envs import get_task
from envs.batched import make_vec
from experiments.files import write_atomically
from experiments.plots import COLOURS, LINES, MARKERS, new_figure, save
from experiments.report.page import markdown_table
from experiments.studies.throughput.measure import one_core
from storm_rl import STORMPlusPG
from storm_rl.common.dense_network import Array, DenseNetwork, Jacobian
from storm_rl.common.dense_policy import DensePolicy
from storm_rl.common.observations import ObservationBatch, concatenate
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.gradients.fisher import conjugate_gradient
from storm_rl.storm_plus_pg.actor import ActorOnStates, DenseActorOnStates
from storm_rl.storm_plus_pg.metric import FisherMetric

RESULTS = Path(__file__).parents[1] / "results" / "fisher_solvers"
TASKS = ["CartPole-v1", "Acrobot-v1"]
STAGES = [2, 6, 14, 40]
N_ENVS = 8

Product = Callable[[Tensor], Tensor]


class FisherRows:
    """The matrix ``R`` of ``F = R^T R``: one row for each state and each dimension of its outputs' Fisher block.

    The rows are those of ``S^T J / sqrt(n)`` with the Jacobian ``J`` of the logits and the Fisher block ``S S^T`` of a
    state's logits. They are never held: passes through the network multiply with them.

    Args:
        network: From features to logits.
        features: The states, ``(n, n_in)``.
    """

    def __init__(self, network: DenseNetwork, features: Array) -> None:
        self.network = network
        values = network.forward(features)
        self.jacobian = Jacobian(network, values)
        self.values = [torch.from_numpy(layer) for layer in values]
        self.roots = softmax_roots(self.values[-1]) / len(features) ** 0.5

    def times(self, vector: Tensor) -> Tensor:
        """``R v``."""
        moved: Tensor = (self.roots * torch.from_numpy(self.jacobian.times(vector.numpy()))).sum(dim=-1)
        return moved.flatten()

    def transposed_times(self, coefficients: Tensor) -> Tensor:
        """``R^T c``."""
        rank, size, _ = self.roots.shape
        cotangent = (self.roots * coefficients.view(rank, size, 1)).sum(dim=0)
        result = coefficients.new_empty(self.network.n_parameters)
        self.jacobian.transposed_times(cotangent.numpy(), result.numpy())
        return result

    def product(self, vector: Tensor) -> Tensor:
        """``F v``."""
        return self.transposed_times(self.times(vector))

    def deltas(self) -> list[Tensor]:
        """What each row sends to the linear part of each layer, ``(rows, n_out)`` each."""
        of_roots = [self.network.backward(self.jacobian.slopes, root.numpy()) for root in self.roots]
        return [torch.from_numpy(np.concatenate(layer)) for layer in zip(*of_roots, strict=True)]

    def kernel(self) -> Tensor:
        """``R R^T``: a layer's share is the product of what arrives at it, times that of its inputs and bias."""
        rank, size, _ = self.roots.shape
        result: Tensor = self.roots.new_zeros(rank * size, rank * size)
        blocks = result.view(rank, size, rank, size)
        for inputs, deltas in zip(self.values, self.deltas(), strict=False):
            blocks.addcmul_((deltas @ deltas.t()).view_as(blocks), (inputs @ inputs.t()).add_(1.0)[:, None, :])
        return result


def softmax_roots(logits: Tensor) -> Tensor:
    r"""Square roots ``S`` of ``S S^T = diag(p) - p p^T`` for ``(n, k)`` logits, column by column: ``(k - 1, n, k)``.

    The Cholesky factor in closed form; with :math:`r_j = p_j + \dots + p_k`, column ``j`` is
    :math:`\sqrt{p_j r_{j+1} / r_j}` at ``j`` and :math:`-p_i \sqrt{p_j / (r_j r_{j+1})}` at ``i > j``.
    """
    probabilities = torch.softmax(logits, dim=-1).clamp_min(torch.finfo(logits.dtype).tiny)
    tails = probabilities.flip(-1).cumsum(dim=-1).flip(-1)
    columns = []
    for j in range(logits.shape[1] - 1):
        length = (probabilities[:, j] * tails[:, j + 1] / tails[:, j]).sqrt()
        column = torch.zeros_like(logits)
        column[:, j] = length
        column[:, j + 1 :] = -probabilities[:, j + 1 :] * (length / tails[:, j + 1]).unsqueeze(1)
        columns.append(column)
    return torch.stack(columns)


def sample_space_solve(rows: FisherRows, direction: Tensor, damping: float) -> Tensor:
    """``(R^T R + damping I)^{-1} d`` by a Cholesky factor of the rows' kernel."""
    kernel = rows.kernel()
    kernel.diagonal().add_(damping)
    seen = rows.times(direction).unsqueeze(1)
    coefficients = torch.cholesky_solve(seen, torch.linalg.cholesky(kernel)).flatten()
    return (direction - rows.transposed_times(coefficients)) / damping


class KroneckerFactors:
    r"""K-FAC's approximation of :math:`(F + \lambda I)^{-1}`: a Kronecker product for each layer, none between layers.

    The factors ``A`` of a layer's inputs, with a 1 for the bias, and ``G`` of what arrives at it share the damping as
    :math:`A + \pi \sqrt\lambda I` and :math:`G + \sqrt\lambda / \pi I`, with :math:`\pi^2` the ratio of their mean
    eigenvalues (section 6.3 of the paper). ``G`` is exact over the policy's actions, not sampled.
    """

    def __init__(self, rows: FisherRows, damping: float) -> None:
        self.network = rows.network
        self.inverses = []
        for inputs, deltas in zip(rows.values, rows.deltas(), strict=False):
            with_one = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
            of_inputs, arrived = with_one.t() @ with_one / len(inputs), deltas.t() @ deltas
            pi = (of_inputs.diagonal().mean() / arrived.diagonal().mean()).sqrt()
            of_inputs.diagonal().add_(pi * damping**0.5)
            arrived.diagonal().add_(damping**0.5 / pi)
            self.inverses.append((_inverse(arrived), _inverse(of_inputs)))

    def solve(self, vector: Tensor) -> Tensor:
        """The approximate inverse times a flat vector."""
        result = torch.empty_like(vector)
        parts, solved = (
            [torch.from_numpy(part) for part in self.network.split(flat.numpy())] for flat in (vector, result)
        )
        for index, (arrived, of_inputs) in enumerate(self.inverses):
            weight, bias = parts[2 * index], parts[2 * index + 1]
            image = arrived @ torch.cat([weight, bias.unsqueeze(1)], dim=1) @ of_inputs
            solved[2 * index].copy_(image[:, :-1])
            solved[2 * index + 1].copy_(image[:, -1])
        return result


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def preconditioned_conjugate_gradient(
    product: Product, precondition: Product, target: Tensor, n_iterations: int
) -> Tensor:
    """As :func:`conjugate_gradient`, with an approximate inverse; without iterations, what that gives by itself."""
    if n_iterations == 0:
        return precondition(target)
    solution, residual = torch.zeros_like(target), target.clone()
    direction = preconditioned = precondition(residual)
    square = residual.dot(preconditioned)
    for _ in range(n_iterations):
        image = product(direction)
        step = square / direction.dot(image)
        solution += step * direction
        residual -= step * image
        preconditioned = precondition(residual)
        new_square = residual.dot(preconditioned)
        direction = preconditioned + (new_square / square) * direction
        square = new_square
    return solution


class Problem(NamedTuple):
    """One solve of the agent."""

    policy: StandardisedActorCriticPolicy
    observations: ObservationBatch
    direction: Tensor
    damping: float

    def dense_actor(self) -> DenseActorOnStates:
        """The actor on the states, in closed form."""
        dense = DensePolicy.of(self.policy)
        if dense is None:
            raise ValueError("the study's solvers are for fully connected policies.")
        return DenseActorOnStates(dense, self.observations)

    def damped(self, product: Product) -> Product:
        """``v -> (F + damping I) v`` from ``v -> F v``."""
        return lambda vector: product(vector) + self.damping * vector


def by_autograd(n_iterations: int, problem: Problem) -> Tensor:
    """Conjugate gradients on products by double backward: the form for any policy."""
    product = ActorOnStates(problem.policy, problem.observations).fisher_product()
    return conjugate_gradient(problem.damped(product), problem.direction, n_iterations)


def by_closed_form(n_iterations: int, problem: Problem) -> Tensor:
    """Conjugate gradients on Gauss-Newton products in closed form: the agent's."""
    product = problem.dense_actor().fisher_product()
    return conjugate_gradient(problem.damped(product), problem.direction, n_iterations)


def in_sample_space(max_states: int, problem: Problem) -> Tensor:
    """The exact solve on at most so many states, evenly among all."""
    actor = problem.dense_actor()
    size = min(max_states, actor.size)
    rows = FisherRows(actor.network, actor.features[np.arange(size) * actor.size // size])
    return sample_space_solve(rows, problem.direction, problem.damping)


def after_kfac(n_iterations: int, problem: Problem) -> Tensor:
    """Conjugate gradients in closed form with K-FAC as preconditioner; K-FAC by itself with 0 iterations."""
    actor = problem.dense_actor()
    factors = KroneckerFactors(FisherRows(actor.network, actor.features), problem.damping)
    product = problem.damped(actor.fisher_product()) if n_iterations else factors.solve
    return preconditioned_conjugate_gradient(product, factors.solve, problem.direction, n_iterations)


AGENT = "CG 10, closed form"
# What is one line in the plot: a method and its sizes.
METHODS: dict[str, dict[str, Callable[[Problem], Tensor]]] = {
    "CG, autograd": {"CG 10, autograd": partial(by_autograd, 10)},
    "CG, closed form": {f"CG {n}, closed form": partial(by_closed_form, n) for n in (3, 5, 10, 20)},
    "sample space": {f"sample space, {n} states": partial(in_sample_space, n) for n in (256, 1024)},
    "K-FAC, then CG": {"K-FAC": partial(after_kfac, 0), **{f"K-FAC, CG {n}": partial(after_kfac, n) for n in (3, 5)}},
}
# Points apart, so that neighbours' labels do not meet.
LABEL_OFFSETS = [(0, -10), (9, -8), (0, 10), (0, 9)]
LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "va": "center"}
SOLVERS = {name: solve for sizes in METHODS.values() for name, solve in sizes.items()}


def exact_solution(problem: Problem) -> tuple[Tensor, Product]:
    """The solution and ``v -> M v`` in float64, by conjugate gradients to a tiny residual.

    Raises:
        RuntimeError: They do not get there.
    """
    actor = problem.dense_actor()
    network = DenseNetwork([array.astype(np.float64) for array in actor.network.arrays], actor.network.activations)
    rows = FisherRows(network, actor.features.astype(np.float64))
    product = problem.damped(rows.product)
    target = problem.direction.double()
    solution = conjugate_gradient(product, target, max_iterations=network.n_parameters, tolerance=1e-22)
    residual = float((target - product(solution)).norm() / target.norm())
    if residual > 1e-9:
        raise RuntimeError(f"the reference solution has a relative residual of {residual:.1e}.")
    return solution, product


def judged(problem: Problem) -> dict[str, dict[str, float]]:
    """Error, cosine and gain of every solver."""
    exact, product = exact_solution(problem)
    target = problem.direction.double()
    found = {}
    for name, solve in SOLVERS.items():
        solution = solve(problem).double()
        error = solution - exact
        found[name] = {
            "error": float((error.dot(product(error)) / exact.dot(target)).clamp_min(0.0).sqrt()),
            "cosine": float(solution.dot(exact) / (solution.norm() * exact.norm())),
            "gain": float(target.dot(solution) / target.dot(exact)),
        }
    return found


def timed(problem: Problem, repeats: int) -> dict[str, dict[str, float]]:
    """Processor milliseconds of every solver and the ratio to the agent's, medians over repeats."""
    seconds = np.empty((repeats, len(SOLVERS)))
    for repeat in range(repeats):
        for index, solve in enumerate(SOLVERS.values()):
            begin = time.process_time()
            solve(problem)
            seconds[repeat, index] = time.process_time() - begin
    ratios = seconds / seconds[:, [list(SOLVERS).index(AGENT)]]
    medians = zip(SOLVERS, np.median(seconds, axis=0), np.median(ratios, axis=0), strict=True)
    return {name: {"ms": 1e3 * float(middle), "time_ratio": float(ratio)} for name, middle, ratio in medians}


def problem_of(model: STORMPlusPG) -> Problem:
    """What the trained agent would solve with its present policy."""
    metric, direction = model.step_metric, model.recursion.direction
    assert isinstance(metric, FisherMetric)
    assert direction is not None
    policy = model.policy
    assert isinstance(policy, StandardisedActorCriticPolicy)
    policy.set_training_mode(False)
    return Problem(policy, concatenate(metric.rollouts), direction, metric.damping)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each solver: medians over all problems, and the worst."""
    table = []
    for name in SOLVERS:
        each = rows[rows["solver"] == name]
        line = {"solver": f"**{name}**" if name == AGENT else name}
        for task, group in each.groupby("task", sort=False):
            line[f"time, {task}"] = f"{group['time_ratio'].median():.2f}"
        line["of learn()"] = f"{100 * (each['ms'] / each['rollout_ms']).median():.1f} %"
        for stage, group in each.groupby("rollouts"):
            line[f"error, {stage} rollouts"] = f"{group['error'].median():.1e}"
        line["worst"] = f"{each['error'].max():.1e}"
        line["cosine (worst)"] = f"{each['cosine'].median():.4f} ({each['cosine'].min():.4f})"
        line["dᵀx over exact (range)"] = (
            f"{each['gain'].median():.4f} ({each['gain'].min():.4f} to {each['gain'].max():.4f})"
        )
        table.append(line)
    return pd.DataFrame(table)


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Error against time: a panel for each task, a line for each method, a point for each of its sizes."""
    tasks = rows["task"].unique()
    figure, panels = new_figure(1, len(tasks), (5.2 * len(tasks), 4.4), sharex=True, sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        medians = rows[rows["task"] == task].groupby("solver")[["time_ratio", "error"]].median()
        for index, ((method, sizes), offset) in enumerate(zip(METHODS.items(), LABEL_OFFSETS, strict=True)):
            points = medians.loc[list(sizes)]
            style: dict[str, Any] = {"color": COLOURS[index], "linestyle": LINES[index], "marker": MARKERS[index]}
            axes.plot(points["time_ratio"], points["error"], label=method, **style)
            for name, point in points.iterrows():
                size = "".join(filter(str.isdigit, str(name))) or "0"
                axes.annotate(size, tuple(point), xytext=offset, color=COLOURS[index], **LABEL)
        axes.set(xscale="log", yscale="log", title=task, xlabel="time, in that of CG 10 in closed form")
        axes.set_xticks([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    panels[0].set_ylabel("relative error in the metric's norm")
    panels[0].legend(fontsize=8, title="numbers: iterations or states", title_fontsize=8)
    save(figure, path)


def fisher_solvers(
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="With discrete actions; CartPole and Acrobot.")
    ] = None,
    stages: Annotated[
        list[int] | None, typer.Option("--stage", min=1, help="Rollouts of training; 2, 6, 14, 40.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs of each task.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Timed solves of each problem by each solver.")] = 20,
    output: Annotated[Path, typer.Option(help="Folder of rows, table and plot.")] = RESULTS,
) -> None:
    """Time the solvers of STORM+PG's step and judge what they find; write rows, a table and a plot."""
    rows: list[dict[str, Any]] = []
    with one_core():
        for task in tasks or TASKS:
            for seed in range(first_seed, first_seed + seeds):
                rows += _solved_along_training(get_task(task).id, seed, sorted(stages or STAGES), repeats)
                # After every run, so that an interrupted study leaves what it had.
                content = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
                write_atomically(output / "solves.csv", content.encode())
                print(f"{task}, seed {seed}: {len(rows)} rows", flush=True)
    # Of the rows as they are stored, so that the table and the plot can be had from them again.
    table = pd.read_csv(output / "solves.csv")
    text = markdown_table(summary(table))
    write_atomically(output / "table.md", f"{text}\n".encode())
    plot(table, output / "fisher_solvers.png")
    print(text)


def _solved_along_training(task: str, seed: int, stages: list[int], repeats: int) -> list[dict[str, Any]]:
    model = STORMPlusPG("MlpPolicy", make_vec(task, N_ENVS, seed), seed=seed, device="cpu")
    rows = []
    for stage in stages:
        size = model.n_steps * model.n_envs
        begin, done = time.process_time(), model.num_timesteps // size
        model.learn((stage - done) * size, reset_num_timesteps=False)
        rollout_ms = 1e3 * (time.process_time() - begin) / (stage - done)
        problem = problem_of(model)
        quality, times = judged(problem), timed(problem, repeats)
        key = {"task": task, "rollouts": stage, "seed": seed, "rollout_ms": rollout_ms}
        rows += [{**key, "solver": name, **times[name], **quality[name]} for name in SOLVERS]
    return rows
