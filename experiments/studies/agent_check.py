"""The aims that STORM+PG has to meet against RL Zoo's PPO, each with pass or miss; runs what is missing first."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents import CONTESTANTS
from agents.ablations import ABLATIONS
from envs import Suite
from experiments.execution import run_all
from experiments.files import own_folder
from experiments.report import tables
from experiments.report.study import OURS, REFERENCE, Study, short
from experiments.report.summary import more_steps
from experiments.runs import RunSpec
from experiments.statistics import ratio_of_medians
from experiments.storage import Record, finished
from experiments.studies.benchmark import run_specs, show_failed

# Deterministic return after training, median over seeds.
FINAL_RETURNS = {
    "CartPole-v1": 500.0,
    "Acrobot-v1": -85.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 93.0,
    "Pendulum-v1": -150.0,
}
# Geometric mean over tasks of PPO's median steps over ours.
RATIO = 2.0
# Of a suite's tasks: those on which ours has more area under the evaluation curve than PPO, and those on which it is
# not later than the best agent with settings for each task.
TASKS_WON = 0.8
# That a seed of ours has more area than one of PPO's, mean over tasks.
PROBABILITY = 0.75


def agent_check(
    results: Annotated[
        list[Path] | None,
        typer.Option(help="The study's folder, runs/benchmark by default; once for each of several studies."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs that it lacks; RESULTS, or runs/benchmark for the published ones."),
    ] = None,
    suite: Annotated[Suite, typer.Option(help="The tasks; held-out ones are for the end.")] = Suite.CLASSIC,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Run the ablations too (agents/ablations.py).")
    ] = False,
) -> None:
    """Compare STORM+PG's defaults with the others on a suite of tasks, aim by aim; exit code 1 for a miss."""
    agents = [OURS, REFERENCE, *(ABLATIONS if ablations else [])]
    specs = run_specs(agents, suite.tasks(), range(seeds))
    known = list(dict.fromkeys([*specs, *run_specs([*CONTESTANTS, *ABLATIONS], suite.tasks(), range(seeds))]))
    studies = results or [Path("runs/benchmark")]
    folder = output or own_folder(studies[0])
    console = Console()
    runs: dict[RunSpec, Record] = {}
    for study in studies:
        if folder != study and not study.exists():
            raise ValueError(f"--results {study}: no such folder")
        runs |= finished(study, [spec for spec in known if spec not in runs], None, rerun_broken=False)
    missing = [spec for spec in specs if spec not in runs]
    if missing and (failed := run_all(missing, folder, workers, console)):
        show_failed(failed, len(missing), folder, console)
        raise typer.Exit(1)
    if folder not in studies:
        runs |= finished(folder, [spec for spec in known if spec not in runs], None, rerun_broken=False)
    found = Study.of({spec: runs[spec] for spec in known if spec in runs})
    aims = check(found)
    console.print(_table("STORM+PG against RL Zoo's PPO", aims))
    if found.variants:
        variants = [OURS, *found.variants]
        console.print(_table("Ablations: median env steps to the threshold", tables.steps(found, variants)))
        console.print(
            _table("Ablations: median steps of STORM+PG over the variant's", tables.ratios(found, variants, OURS))
        )
    missed = int((aims["verdict"] == "MISS").sum())
    console.print("All aims are met." if not missed else f"{missed} of {len(aims)} aims are missed.")
    raise typer.Exit(1 if missed else 0)


def check(study: Study) -> pd.DataFrame:
    """A row for each aim: task, measure, what we have, what is asked for, and "pass" or "MISS"."""
    rows: list[tuple[str, str, str, str, str]] = []

    def aim(task: str, measure: str, ours: float, wanted: str, passed: bool) -> None:
        rows.append((task, measure, f"{ours:,.2f}".removesuffix(".00"), wanted, "pass" if passed else "MISS"))

    for task in study.tasks:
        ours, theirs = study.of_task(OURS, task), study.of_task(REFERENCE, task)
        steps, limit = ours["steps_to_threshold"].median(), theirs["steps_to_threshold"].median()
        aim(task.id, "median steps to threshold", steps, f"< {limit:,.0f} (PPO)", bool(steps < limit))
        never, theirs_never = int((~ours["reached"]).sum()), int((~theirs["reached"]).sum())
        aim(task.id, "failed seeds", never, f"<= {theirs_never} (PPO)", never <= theirs_never)
        area, theirs_area = ours["evaluation_area"].median(), theirs["evaluation_area"].median()
        aim(task.id, "area under evaluation curve", area, f"> {theirs_area:,.2f} (PPO)", bool(area > theirs_area))
        final, asked = ours["final_return"].median(), FINAL_RETURNS.get(task.id)
        if asked is not None:
            aim(task.id, "final return", final, f">= {asked:g}", bool(final >= asked))
        collapsed = int(ours["collapsed"].sum())
        aim(task.id, "collapsed seeds", collapsed, "0", collapsed == 0)
    learned = study.learned(REFERENCE, OURS)
    theirs_learned = study.samples(REFERENCE, "steps_to_threshold", learned)
    ours_learned = study.samples(OURS, "steps_to_threshold", learned)
    ratio = float(ratio_of_medians(theirs_learned, ours_learned)) if learned else float("nan")
    aim("those that both learn", "geometric mean of PPO's steps over ours", ratio, f">= {RATIO:g}", ratio >= RATIO)
    won = [bool(ours > theirs) for ours, theirs in zip(_areas(study, OURS), _areas(study, REFERENCE), strict=True)]
    asked_tasks = TASKS_WON * len(study.tasks)
    aim("all", "tasks with more area than PPO", sum(won), f">= {asked_tasks:g}", sum(won) >= asked_tasks)
    chance = tables.improved(study, "evaluation_score", OURS, REFERENCE, tuple(study.tasks)).value
    aim("all", "probability of more area than PPO", chance, f">= {PROBABILITY:g}", chance >= PROBABILITY)
    not_later = 0
    for task in study.tasks:
        best = study.best_tuned("steps_to_threshold", task)
        not_later += best is None or not more_steps(study, best, task)
    text = "tasks not later than the best tuned agent, beyond chance"
    aim("all", text, not_later, f">= {asked_tasks:g}", not_later >= asked_tasks)
    for name in study.agents:
        both = tuple(study.shared(OURS, name))
        if name != OURS and both:
            own, others = (tables.pooled(study, "evaluation_score", agent, both) for agent in (OURS, name))
            where = "all" if len(both) == len(study.tasks) else f"{len(both)} of {len(study.tasks)}"
            text = f"interquartile mean, above {short(name)}"
            aim(where, text, own.low, f"> {others.high:.2f}", own.low > others.high)
    return pd.DataFrame(rows, columns=["task", "measure", "STORM+PG", "aim", "verdict"])


def _areas(study: Study, name: str) -> list[float]:
    return [float(sample.mean()) for sample in study.samples(name, "evaluation_area")]


def _table(title: str, rows: pd.DataFrame) -> Table:
    table = Table(title=title)
    for index, name in enumerate(rows.columns):
        table.add_column(str(name), justify="left" if index == 0 else "right")
    for row in rows.to_numpy():
        table.add_row(*(_coloured(str(cell)) for cell in row))
    return table


def _coloured(cell: str) -> str:
    colours = {"pass": "green", "MISS": "red"}
    return f"[{colours[cell]}]{cell}[/]" if cell in colours else escape(cell)
