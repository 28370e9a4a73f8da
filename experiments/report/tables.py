"""The report's tables, as data frames of text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import isinf

import pandas as pd

from agents import get_contestant
from envs import Task
from experiments.measures import median_to_threshold
from experiments.report.study import COMPARED, OURS, Study, label, short, unmarked
from experiments.statistics import Estimate, estimate, iqm, probability_of_improvement, ratio_of_medians

NAMES = {
    "final_score": "final return",
    "evaluation_score": "area under the evaluation curve",
    "steps_to_threshold": "steps to threshold",
}
NONE, NOT_RUN, CANNOT_ACT = "-", "not run", "cannot act"


def steps(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Median env steps to the threshold and, where not all seeds reached it, how many did."""
    return _to_threshold(study, agents, "steps_to_threshold", 0)


def seconds(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Median seconds of training to the threshold, likewise."""
    return _to_threshold(study, agents, "seconds_to_threshold", 1)


def _to_threshold(study: Study, agents: Sequence[str], measure: str, digits: int) -> pd.DataFrame:
    def cell(rows: pd.DataFrame) -> str:
        median, reached = median_to_threshold(rows, measure), int(rows["reached"].sum())
        text = NONE if isinf(median) else f"{median:,.{digits}f}"
        return text + (f" ({reached} of {len(rows)})" if reached < len(rows) else "")

    return _by_task(study, agents, cell)


def each_seed(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Env steps to the threshold of every seed that reached it, in thousands, and how many never did."""

    def cell(rows: pd.DataFrame) -> str:
        reached = sorted(rows.loc[rows["reached"], "steps_to_threshold"])
        never = len(rows) - len(reached)
        return " ".join([*(f"{steps / 1000:.0f}" for steps in reached), *([f"({never} never)"] if never else [])])

    return _by_task(study, agents, cell)


def ratios(study: Study, agents: Sequence[str], reference: str | None = None) -> pd.DataFrame:
    """Median steps of ``reference`` over median steps of each agent, and their geometric mean over tasks.

    Only of tasks that most seeds of both learn: elsewhere a median, and the ratio with it, would grow with the budget.
    """
    reference = reference or study.reference
    if reference is None or reference not in study.complete([reference]):
        return pd.DataFrame()
    table = []
    for name in study.complete(agents):
        tasks = study.learned(reference, name)
        if name == reference or not tasks:
            continue
        theirs, ours = (study.samples(agent, "steps_to_threshold", tasks) for agent in (reference, name))
        row = {"agent": label(name), **{task.id: _no_ratio(study, task, reference, name) for task in study.tasks}}
        for task, x, y in zip(tasks, theirs, ours, strict=True):
            row[task.id] = f"{ratio_of_medians([x], [y]):.2f}"
        row["tasks"] = str(len(tasks))
        row["geometric mean"] = interval(estimate(ratio_of_medians, theirs, ours))
        table.append(row)
    return pd.DataFrame(table)


def _no_ratio(study: Study, task: Task, reference: str, name: str) -> str:
    """Which of the two has no median on the task."""
    for agent, who in ((name, ""), (reference, f"{short(reference)}: ")):
        reached = study.of_task(agent, task)["reached"]
        if reached.mean() <= 0.5:
            return f"{NONE} ({who}{reached.sum()} of {len(reached)})"
    return NONE


def aggregates(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Interquartile means of normalised scores over tasks and seeds."""
    return pd.DataFrame(
        {
            "agent": label(name),
            **{NAMES[score]: interval(pooled(study, score, name)) for score in ("final_score", "evaluation_score")},
        }
        for name in study.complete(agents)
    )


def improvement(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Probability that a seed of the agent is better than one of the reference on the same task, mean over tasks."""
    reference = study.reference
    if reference is None:
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "agent": label(name),
            **{NAMES[each]: interval(improved(study, each, name, reference, tuple(study.tasks))) for each in COMPARED},
        }
        for name in study.complete(agents)
        if name != reference
    )


def against_the_best(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Probability that a seed of an agent without settings for each task beats the best agent that has them.

    For each measure over all tasks, and that of fewer steps on each task, with the best one's name.
    """
    untuned = [name for name in study.complete(agents) if not get_contestant(unmarked(name)).tuned]
    if not untuned or any(study.best_tuned(measure, task) is None for measure in COMPARED for task in study.tasks):
        return pd.DataFrame()
    table = []
    for name in untuned:
        row = {"agent": label(name)}
        row |= {NAMES[each]: interval(improved(study, each, name, None, tuple(study.tasks))) for each in COMPARED}
        for task in study.tasks:
            best = study.best_tuned("steps_to_threshold", task)
            estimated = interval(improved(study, "steps_to_threshold", name, None, (task,)))
            row[f"steps: {task.id}"] = f"{estimated} ({short(best or '')})"
        table.append(row)
    return pd.DataFrame(table)


def against_ours(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Each agent's interquartile mean of the area on the tasks that STORM+PG ran on too, and STORM+PG's on these.

    And the probability that a seed of STORM+PG has more area, and needs fewer steps, than one of the agent's.
    """
    table = []
    for name in agents:
        both = tuple(study.shared(OURS, name))
        if name == OURS or not both:
            continue
        row = {"agent": label(name), "tasks": f"{len(both)} of {len(study.tasks)}"}
        row |= {"its area": interval(pooled(study, "evaluation_score", name, both))}
        row |= {"STORM+PG's there": interval(pooled(study, "evaluation_score", OURS, both))}
        row |= {"P(more area)": interval(improved(study, "evaluation_score", OURS, name, both))}
        row |= {"P(fewer steps)": interval(improved(study, "steps_to_threshold", OURS, name, both))}
        table.append(row)
    return pd.DataFrame(table)


def ranking(study: Study, agents: Sequence[str], task: Task) -> pd.DataFrame:
    """The agents that ran on the task, by the area under their evaluation curves."""
    ran = [name for name in agents if len(study.of_task(name, task))]
    scores = {name: pooled(study, "evaluation_score", name, (task,)) for name in ran}
    ordered = sorted(ran, key=lambda name: -scores[name].value)
    alone = replace(study, tasks=[task])
    columns = {
        "env steps to the threshold": steps(alone, ordered),
        "final return": medians(alone, ordered, "final_return", 1),
        "seconds of training": medians(alone, ordered, "learn_seconds"),
    }
    return pd.DataFrame(
        {
            "agent": [label(name) for name in ordered],
            "seeds": [str(len(study.of_task(name, task))) for name in ordered],
            "area, normalised": [interval(scores[name]) for name in ordered],
            **{name: column[task.id] for name, column in columns.items()},
        }
    )


def fewer_steps(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Probability that a seed of the agent needs fewer steps than one of the reference, on each task."""
    reference = study.reference
    if reference is None:
        return pd.DataFrame()
    others = [name for name in agents if name != reference]

    def cell(name: str, task: Task) -> str:
        return interval(improved(study, "steps_to_threshold", name, reference, (task,)))

    return pd.DataFrame(
        {
            "agent": label(name),
            **{
                task.id: cell(name, task) if len(study.of_task(name, task)) else missing(name, task)
                for task in study.tasks
            },
        }
        for name in others
    )


def medians(study: Study, agents: Sequence[str], measure: str, digits: int = 0) -> pd.DataFrame:
    """Median over seeds and, in brackets, the lowest and the highest."""

    def cell(rows: pd.DataFrame) -> str:
        values = rows[measure]
        return f"{values.median():,.{digits}f} [{values.min():,.{digits}f}, {values.max():,.{digits}f}]"

    return _by_task(study, agents, cell)


def collapses(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Of the seeds that reached the threshold, those whose last ten evaluations are below it, on average."""

    def cell(rows: pd.DataFrame) -> str:
        reached = int(rows["reached"].sum())
        return f"{int(rows['collapsed'].sum())} of {reached}" if reached else NONE

    return _by_task(study, agents, cell)


def dips(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Share of the evaluations after the threshold was reached that are below it, over all seeds that reached it."""

    def cell(rows: pd.DataFrame) -> str:
        later = int(rows["later_evaluations"].sum())
        return f"{100 * rows['later_below_threshold'].sum() / later:.1f} %" if later else NONE

    return _by_task(study, agents, cell)


def tasks(study: Study) -> pd.DataFrame:
    """What defines each task, in the protocol's words, and which are held out, if any is."""
    some = any(task.held_out for task in study.tasks)
    return pd.DataFrame(
        {
            "task": task.id,
            "budget (env steps)": f"{task.budget:,}",
            "evaluated every": f"{task.evaluate_every:,}",
            "threshold": f"{task.threshold:,g}",
            "returns that count as 0 and 1": f"{task.score_range[0]:,g} and {task.score_range[1]:,g}",
            **({"held out": "yes" if task.held_out else "no"} if some else {}),
        }
        for task in study.tasks
    )


def contestants(study: Study) -> pd.DataFrame:
    """Where each agent's settings come from, on how many environments it trained, and with how many seeds."""
    table = []
    for name in study.agents:
        runs = [run for task in study.tasks for run in study.records(name, task)]
        counts = [len(study.of_task(name, task)) for task in study.tasks]
        seeds = sorted({count for count in counts if count})
        table.append(
            {
                "agent": label(name),
                "settings": get_contestant(unmarked(name)).settings or "its own",
                "environments": _range(sorted({int(run["settings"]["n_envs"]) for run in runs})),
                "tasks": f"{sum(count > 0 for count in counts)} of {len(counts)}",
                "seeds": _range(seeds),
            }
        )
    return pd.DataFrame(table)


def versions(study: Study) -> pd.DataFrame:
    """How many runs each agent has, how long they took, and with which versions they were made."""
    table = []
    for name in (*study.agents, *study.variants):
        runs = [run for task in study.tasks for run in study.records(name, task)]
        found: dict[str, set[str]] = {}
        for run in runs:
            for package, version in run["versions"].items():
                found.setdefault(package, set()).add(version)
        text = ", ".join(f"{package} {'/'.join(sorted(numbers))}" for package, numbers in found.items())
        hours = sum(run["learn_seconds"] + run["evaluation_seconds"] for run in runs) / 3600
        row = {"agent": label(name), "name": name, "runs": str(len(runs)), "core hours": f"{hours:.2f}"}
        table.append({**row, "versions": text})
    return pd.DataFrame(table)


def _range(values: Sequence[int]) -> str:
    """A single value, or the least and the greatest."""
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def every_run(study: Study) -> pd.DataFrame:
    """What is measured on each run; without steps and seconds to a threshold that it never reached."""
    names, reached = ["steps_to_threshold", "seconds_to_threshold"], study.rows["reached"]
    return study.rows.assign(**{name: study.rows[name].where(reached).convert_dtypes() for name in names})


def interval(value: Estimate) -> str:
    """As text; without the interval where there are too few seeds for one."""
    return f"{value.value:.2f}" if value.low != value.low else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


@cache
def pooled(study: Study, score: str, name: str, tasks: tuple[Task, ...] | None = None) -> Estimate:
    """The agent's interquartile mean of ``score`` over seeds and tasks; None: all tasks."""
    return estimate(iqm, study.samples(name, score, tasks))


@cache
def improved(study: Study, measure: str, name: str, reference: str | None, tasks: tuple[Task, ...]) -> Estimate:
    """Probability of improvement over ``reference`` on that measure, mean over ``tasks``.

    None: over the best tuned agent of each task. A run that never reached the threshold counts as later than any that
    did, and ties with another such.
    """
    sign = COMPARED[measure]
    ours = [sign * array for array in study.samples(name, measure, tasks)]
    theirs = []
    for task in tasks:
        other = reference or study.best_tuned(measure, task)
        if other is None:
            raise ValueError(f"no tuned agent ran on {task.id}")
        theirs += [sign * array for array in study.samples(other, measure, [task])]
    return estimate(probability_of_improvement, ours, theirs)


def missing(name: str, task: Task) -> str:
    """Why the agent has no runs on the task."""
    return NOT_RUN if get_contestant(unmarked(name)).plays(task.id) else CANNOT_ACT


def _by_task(study: Study, agents: Sequence[str], cell: Callable[[pd.DataFrame], str]) -> pd.DataFrame:
    table = []
    for name in agents:
        row = {"agent": label(name)}
        for task in study.tasks:
            rows = study.of_task(name, task)
            row[task.id] = cell(rows) if len(rows) else missing(name, task)
        table.append(row)
    return pd.DataFrame(table)
