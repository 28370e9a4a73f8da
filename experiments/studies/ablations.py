"""What each part of STORM+PG is worth: its ablations on every task, over the steps in which the default learns.

The ablations are those of ``agents/ablations.py``. Classic control runs on the batched environments, which agree with
gymnasium's step for step. Runs are shorter than the benchmark's (`BUDGETS`): a variant that has not reached the
threshold by then counts as the whole budget. One folder a task, since its runs share a budget.
"""

from math import ceil, exp, isinf
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.stats import mannwhitneyu, sem

from agents.ablations import ABLATIONS
from envs import TASKS
from experiments.files import write_atomically
from experiments.measures import measured
from experiments.plots import COLOURS, new_figure, save
from experiments.report.page import markdown_table
from experiments.report.study import OURS, label
from experiments.runs import check_builds
from experiments.storage import finished, load_runs
from experiments.studies.benchmark import run_benchmark, run_specs

# Env steps: about twice what the default needs to the threshold.
BUDGETS = {
    "Pendulum-v1": 30_000,
    "CartPole-v1": 15_000,
    "MountainCar-v0": 40_000,
    "Acrobot-v1": 24_000,
    "MountainCarContinuous-v0": 12_000,
}
# MuJoCo and Box2D (the extra `outside`): the first part of learning; thresholds are beyond it.
OUTSIDE_BUDGETS = {
    "InvertedDoublePendulum-v5": 60_000,
    "Reacher-v5": 60_000,
    "Hopper-v5": 60_000,
    "HalfCheetah-v5": 40_000,
    "LunarLander-v3": 60_000,
}
# A difference from the default's evaluations is marked where chance makes it less often than this; there are 60 cells.
SIGNIFICANCE = 0.01
EXPLANATION = (
    "For each task the median of the env steps to the threshold in thousands, how many seeds did not reach it in "
    "the steps run, and the mean of all evaluations (normalised return, 0 to 1) with its standard error over seeds. "
    f"Bold: evaluations that differ from the default's (two-sided Mann-Whitney test, p < {SIGNIFICANCE:g}). Then the "
    "runs of all tasks that reached the threshold; the env steps to it in multiples of the default's on the same "
    "seeds, a run that did not reach it at its budget, over the tasks where at least half of the default's seeds reach "
    "it: geometric mean over tasks with its 95 % interval over seeds. Last, over all tasks, the mean of evaluations "
    "less the default's on the same seed, with its 95 % interval. A variant counts where it was run. Classic control "
    "is on the batched environments."
)


def ablations(
    output: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are not repeated.")] = Path(
        "runs/ablations"
    ),
    variant: Annotated[list[str] | None, typer.Option(help="One of the ablations; all by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    outside: Annotated[bool, typer.Option(help="MuJoCo's and Box2D's tasks as well (the extra 'outside').")] = False,
) -> None:
    """Run STORM+PG's ablations on every task and write ``ablations.md`` and ``.png``, a row for each."""
    if unknown := set(variant or ()) - set(ABLATIONS):
        raise ValueError(f"unknown variants {', '.join(sorted(unknown))}; known: {', '.join(ABLATIONS)}")
    budgets = {**BUDGETS, **(OUTSIDE_BUDGETS if outside else {})}
    agents = [OURS, *(variant or ABLATIONS)]
    specs = {task: run_specs(agents, [task], range(seeds), batched=task in TASKS) for task in budgets}
    # Before the first task's runs rather than after.
    for task, budget in budgets.items():
        check_builds([spec for spec in specs[task] if spec not in finished(output / task, specs[task], budget, False)])
    succeeded = True
    for number, (task, budget) in enumerate(budgets.items(), 1):
        typer.echo(f"Task {number} of {len(budgets)}: {task}")
        succeeded &= run_benchmark(specs[task], output / task, workers, budget)
    rows = {task: measured(load_runs(output / task).values()) for task in budgets}
    write_atomically(output / "ablations.md", summary(rows).encode())
    draw(rows, output / "ablations.png")
    typer.echo(f"Table: {output / 'ablations.md'}\nFigure: {output / 'ablations.png'}")
    raise typer.Exit(0 if succeeded else 1)


def summary(rows: dict[str, pd.DataFrame]) -> str:
    """The table of each task's measured runs, as Markdown."""
    columns = {}
    for task, group in rows.items():
        by_agent = {agent: group[group["agent"] == agent] for agent in group["agent"].unique()}
        cells = {agent: _cell(cell, by_agent[OURS]) for agent, cell in by_agent.items()}
        columns[f"{task} ({_thousands(group)})"] = cells
    everything = pd.concat(rows.values())
    reached = everything.groupby("agent")["reached"].agg(["sum", "size"])
    columns["reached"] = {agent: f"{total} of {size}" for agent, total, size in reached.itertuples()}
    for name, column in (("times the default's steps", _steps), ("evaluations less the default's", _evaluations)):
        columns[name] = {agent: column(everything, agent) for agent in everything["agent"].unique() if agent != OURS}
    table = pd.DataFrame(columns).reindex([OURS, *ABLATIONS])
    table.insert(0, "variant", _names())
    table = table.dropna(subset=["reached"]).fillna("")
    counts = sorted({group["seed"].nunique() for group in rows.values()})
    seeds = " or ".join(map(str, counts))
    return f"# Ablations of STORM+PG\n\n{EXPLANATION} {seeds} seeds.\n\n{markdown_table(table)}\n"


def _thousands(rows: pd.DataFrame) -> str:
    return f"{int(rows['budget'].max()) // 1000}k"


def _names() -> list[str]:
    return ["default", *(label(agent) for agent in ABLATIONS)]


def _cell(rows: pd.DataFrame, default: pd.DataFrame) -> str:
    never = int((~rows["reached"]).sum())
    # A run that did not reach it counts as longer than any that did.
    median = rows["steps_to_threshold"].where(rows["reached"], float("inf")).median()
    steps = "-" if isinf(median) else f"{median / 1000:.3g}"
    scores = rows["evaluation_score"]
    error = f" ± {sem(scores):.2f}" if len(scores) > 1 else ""
    score = f"{scores.mean():.2f}{error}"
    if mannwhitneyu(scores, default["evaluation_score"]).pvalue < SIGNIFICANCE:
        score = f"**{score}**"
    return f"{steps} ({never} never), {score}" if never else f"{steps}, {score}"


def _steps(rows: pd.DataFrame, agent: str) -> str:
    """Steps to the threshold of ``agent`` in multiples of the default's, where half of the default's seeds reach it."""
    reached = rows[rows["agent"] == OURS].groupby("task")["reached"].mean()
    paired = _paired(rows[rows["task"].isin(reached.index[reached >= 0.5])], "steps_to_threshold")
    if paired.empty:
        return ""
    mean, error = _over_tasks((paired[agent] / paired[OURS]).map(np.log))
    return f"{exp(mean):.2f} ({exp(mean - 1.96 * error):.2f} to {exp(mean + 1.96 * error):.2f})"


def _evaluations(rows: pd.DataFrame, agent: str) -> str:
    """Mean of evaluations of ``agent`` less the default's."""
    paired = _paired(rows, "evaluation_score")
    mean, error = _over_tasks(paired[agent] - paired[OURS])
    return f"{mean:+.3f} ({mean - 1.96 * error:+.3f} to {mean + 1.96 * error:+.3f})"


def _paired(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    return rows.pivot_table(index=["task", "seed"], columns="agent", values=measure)


def _over_tasks(values: pd.Series) -> tuple[float, float]:
    """Mean over tasks, which weigh the same, and its standard error over seeds; of values by task and seed."""
    tasks = values.dropna().groupby("task").agg(["mean", "var", "size"])
    return float(tasks["mean"].mean()), float(np.sqrt((tasks["var"] / tasks["size"]).sum()) / len(tasks))


def draw(rows: dict[str, pd.DataFrame], path: Path) -> None:
    """Each seed's mean of all evaluations, a row for each variant, its mean as a tick and the default's as a line."""
    present = pd.concat(rows.values())["agent"].unique()
    agents = [agent for agent in (OURS, *ABLATIONS) if agent in present]
    lines = ceil(len(rows) / 5)
    columns = ceil(len(rows) / lines)
    size = (3.0 * columns + 2.5, (0.35 * len(agents) + 1.2) * lines)
    figure, panels = new_figure(lines, columns, size, sharey=True)
    for axes, task in zip(panels, rows, strict=False):
        for position, agent in enumerate(agents):
            scores = rows[task].loc[rows[task]["agent"] == agent, "evaluation_score"]
            colour = COLOURS[0] if agent == OURS else "0.35"
            axes.plot(scores, [position] * len(scores), "o", color=colour, alpha=0.4, markersize=4)
            axes.plot(scores.mean(), position, "|", color=colour, markersize=14, markeredgewidth=2.5)
            if agent == OURS:
                axes.axvline(scores.mean(), color=colour, linewidth=0.8)
        axes.set_title(f"{task}\n{_thousands(rows[task])} env steps", fontsize=10)
        axes.set_xlabel("mean of all evaluations, normalised")
    for axes in panels[len(rows) :]:
        axes.remove()
    names = dict(zip((OURS, *ABLATIONS), _names(), strict=True))
    panels[0].set_yticks(range(len(agents)), [names[agent] for agent in agents])
    panels[0].invert_yaxis()
    save(figure, path)
