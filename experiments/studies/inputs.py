"""Which entries of the observation the trained agents act by; and how well best subsets find a support that is known.

The second part is a small form of the simulations of Kenney, Chiaromonte, Felici ("MIP-BOOST", arXiv 1808.02526):
normal inputs with correlation ``rho**|i - j|``, a few of them with slope 1, and noise for a given ratio of signal to
noise. The lasso is scikit-learn's, its penalty of the least cross-validated error, or the largest within one standard
error of it.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
from rich.progress import track
from scipy.stats import binomtest
from sklearn.linear_model import LassoCV

from envs import TASKS, get_task
from experiments.files import write_atomically
from experiments.plots import COLOURS, MARKERS, new_figure, save
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.trained import TRAINED, played, visited
from storm_rl import STORMPlusPG
from storm_rl.best_subset import best_subset, outputs, select_size

NAMES = {
    "CartPole-v1": ("position", "velocity", "angle", "angular velocity"),
    "Acrobot-v1": ("cos 1", "sin 1", "cos 2", "sin 2", "velocity 1", "velocity 2"),
    "MountainCar-v0": ("position", "velocity"),
    "MountainCarContinuous-v0": ("position", "velocity"),
    "Pendulum-v1": ("cos", "sin", "velocity"),
}
EPISODES = 10
COLUMNS, SUPPORT, OBSERVATIONS = 12, 3, 100
DESIGNS = tuple((rho, snr) for rho in (0.0, 0.5, 0.9) for snr in (1.0, 5.0))
METHODS = ("best subset", "whitened", "lasso", "lasso, one error")


def inputs(
    output: Annotated[Path, typer.Option(help="Folder of rows, tables and figure; finished rows stay.")] = Path(
        "runs/inputs"
    ),
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; the benchmark's five.")] = None,
    states: Annotated[int, typer.Option(min=10, help="Number of states, spread over the episodes.")] = 500,
    seeds: Annotated[int, typer.Option(min=0, help="Data sets of each design with a known support.")] = 10,
) -> None:
    """Find the entries of the observation that explain the trained agents; and known supports, against the lasso."""
    entries = Rows(output / "entries.csv", ("task", "target", "size"))
    for task in track([get_task(name) for name in tasks or TASKS], "Trained agents"):
        path = TRAINED / task.id / "model.zip"
        if not path.exists():
            raise ValueError(f"there is no trained agent of {task.id} in {TRAINED}")
        if entries.get(task.id, "value", 1) is None:
            entries.add(explained(STORMPlusPG.load(path, device="cpu"), task.id, states))
    recovery = Rows(output / "recovery.csv", ("rho", "snr", "seed", "method"))
    todo = [(rho, snr, seed) for seed in range(seeds) for rho, snr in DESIGNS]
    for rho, snr, seed in track(todo, "Known supports"):
        if recovery.get(rho, snr, seed, METHODS[-1]) is None:
            recovery.add(recovered(rho, snr, seed))
    write_atomically(output / "inputs.md", summary(entries.table(), recovery.table(), states).encode())
    draw(entries.table(), output / "inputs.png")
    typer.echo(f"Tables: {output / 'inputs.md'}\nFigure: {output / 'inputs.png'}")


def explained(model: STORMPlusPG, task_id: str, n_states: int) -> list[Row]:
    """A row for each size and target: the best entries, and the agent's return with the others held at their mean."""
    found = visited(model, task_id, EPISODES)
    found = found[np.linspace(0, len(found) - 1, min(n_states, len(found))).astype(int)]
    rows: list[Row] = []
    for target in ("action", "value"):
        targets = outputs(model, found, target)
        chosen, _ = select_size(found, targets)
        for size in range(1, found.shape[1] + 1):
            entries, r2 = best_subset(found, targets, size)
            names = " ".join(map(str, entries))
            row: Row = {"task": task_id, "target": target, "size": size, "chosen": size == chosen, "r2": r2}
            held = held_return(model, task_id, entries, found.mean(axis=0)) if target == "action" else float("nan")
            rows.append({**row, "entries": names, "return": held})
    return rows


def held_return(model: STORMPlusPG, task_id: str, entries: tuple[int, ...], means: npt.NDArray[np.float64]) -> float:
    """Mean return of the deterministic policy that sees ``entries`` alone, and the others at their mean."""

    def act(observation: npt.NDArray[Any]) -> Any:
        seen = means.astype(observation.dtype)
        seen[list(entries)] = observation[list(entries)]
        return model.predict(seen, deterministic=True)[0]

    return sum(reward for _, reward in played(act, task_id, EPISODES)) / EPISODES


def recovered(rho: float, snr: float, seed: int) -> list[Row]:
    """A row for each method: how many columns of the support it finds, and how many others."""
    rng = np.random.default_rng([seed, round(10 * rho), round(10 * snr)])
    covariance = rho ** np.abs(np.subtract.outer(np.arange(COLUMNS), np.arange(COLUMNS))).astype(float)
    slopes = np.zeros(COLUMNS)
    slopes[:: COLUMNS // SUPPORT] = 1.0
    x = rng.multivariate_normal(np.zeros(COLUMNS), covariance, OBSERVATIONS)
    noise = np.sqrt(slopes @ covariance @ slopes / snr) * rng.standard_normal(OBSERVATIONS)
    y = x @ slopes + noise
    supports: dict[str, Any] = {}
    for method, whiten in (("best subset", False), ("whitened", True)):
        supports[method] = best_subset(x, y[:, None], select_size(x, y[:, None], whiten)[0], whiten).entries
    path = LassoCV(cv=5).fit((x - x.mean(axis=0)) / x.std(axis=0), y)
    errors = path.mse_path_.mean(axis=1)
    within = errors <= errors.min() + path.mse_path_[errors.argmin()].std(ddof=1) / np.sqrt(5)
    sparse = LassoCV(cv=5, alphas=[path.alphas_[within].max()]).fit((x - x.mean(axis=0)) / x.std(axis=0), y)
    supports["lasso"], supports["lasso, one error"] = (np.flatnonzero(each.coef_) for each in (path, sparse))
    truth = set(np.flatnonzero(slopes).tolist())
    rows: list[Row] = []
    for method in METHODS:
        found = set(map(int, supports[method]))
        row: Row = {"rho": rho, "snr": snr, "seed": seed, "method": method, "size": len(found)}
        rows.append({**row, "found": len(found & truth), "others": len(found - truth), "exact": found == truth})
    return rows


def summary(entries: pd.DataFrame, recovery: pd.DataFrame, states: int) -> str:
    """Two tables, as Markdown."""
    table: list[Row] = []
    for (task, size), group in entries.groupby(["task", "size"], sort=False):
        row: Row = {"task": task, "entries": size}
        for target, part in group.set_index("target").iterrows():
            names, r2 = _named(task, part["entries"]), f"{part['r2']:.2f}"
            row |= {f"for the {target}": f"**{names}**" if part["chosen"] else names, f"R², {target}": r2}
        table.append({**row, "return": f"{group['return'].iloc[0]:.0f}"})
    text = (
        "# Which inputs matter\n\nThe best subsets of the observation's entries of each size, and the share of the "
        f"variance that their linear regression explains, in {states} states of {EPISODES} episodes of each trained "
        "agent. `action`: the mean, or the log-probabilities less their mean. Bold: the size that cross-validation "
        "chooses. `return`: of the policy that sees the entries for the action, and the others held at their mean.\n\n"
        f"{markdown_table(pd.DataFrame(table))}\n"
    )
    if recovery.empty:
        return text
    means = recovery.groupby(["rho", "snr", "method"], sort=False)[["found", "others", "exact"]].mean()
    cells = means.apply(lambda row: f"{row['found']:.1f} / {row['others']:.1f} / {row['exact']:.2f}", axis=1)
    known = cells.unstack("method")[list(METHODS)].reset_index()
    return text + (
        f"\n## A known support\n\n{SUPPORT} of {COLUMNS} columns with slope 1, {OBSERVATIONS} rows, columns correlated "
        f"by rho^|i - j|. Means of {recovery['seed'].nunique()} data sets: columns of the support found / others / "
        "share of data sets with exactly the support. Sizes and penalties by cross-validation.\n\n"
        f"{markdown_table(known)}\n\n{_paired(recovery)}\n"
    )


def _paired(recovery: pd.DataFrame) -> str:
    """How often each method finds exactly the support, and sign tests of the first one against the others."""
    exact = recovery.pivot(index=["rho", "snr", "seed"], columns="method", values="exact").astype(bool)
    ours, parts = exact[METHODS[0]], []
    for method in METHODS[1:]:
        better, worse = int((ours & ~exact[method]).sum()), int((~ours & exact[method]).sum())
        p = binomtest(better, better + worse).pvalue if better + worse else 1.0
        parts.append(f"{method} {exact[method].sum()} (better {better}, worse {worse} times, p = {p:.2g})")
    return (
        f"Exactly the support, of {len(exact)} data sets: {METHODS[0]} {ours.sum()}; against " + "; ".join(parts) + "."
    )


def _named(task_id: Any, entries: Any) -> str:
    return ", ".join(NAMES[task_id][int(entry)] for entry in str(entries).split())


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each task: R² by size, of action and value, with the size that was chosen as a large marker."""
    tasks = rows["task"].unique()
    figure, panels = new_figure(1, len(tasks), (2.8 * len(tasks), 3.2), sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        for target, colour, marker in zip(("action", "value"), COLOURS, MARKERS, strict=False):
            part = rows[(rows["task"] == task) & (rows["target"] == target)]
            axes.plot(part["size"], part["r2"], color=colour, marker=marker, markersize=4, label=target)
            chosen = part[part["chosen"]].iloc[0]
            axes.plot(chosen["size"], chosen["r2"], color=colour, marker=marker, markersize=10, alpha=0.5)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("entries")
        axes.set_xticks(range(1, int(rows.loc[rows["task"] == task, "size"].max()) + 1))
        axes.set_ylim(0.0, 1.05)
    panels[0].set_ylabel("R² of the best subset")
    panels[0].legend(fontsize=8)
    save(figure, path)
