"""The report's tables, as data frames of text."""

from collections.abc import Callable, Sequence

import pandas as pd

from experiments.report.study import REFERENCE, Study, label
from experiments.statistics import Estimate, estimate, iqm, probability_of_improvement, ratio_of_medians

# What "better" is compared on, with a sign that makes more of it better.
COMPARED = {"final_score": 1.0, "evaluation_score": 1.0, "steps_to_threshold": -1.0}
NAMES = {
    "final_score": "final return",
    "evaluation_score": "area under the evaluation curve",
    "steps_to_threshold": "steps to threshold",
}
NONE = "-"


def steps(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Median env steps to the threshold, and how many seeds never got there."""

    def cell(rows: pd.DataFrame) -> str:
        failed = int((~rows["reached"]).sum())
        return f"{rows['steps_to_threshold'].median():,.0f}" + (f" ({failed} of {len(rows)} never)" if failed else "")

    return _by_task(study, agents, cell)


def each_seed(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Env steps to the threshold of every seed, in thousands, in the order of seeds."""

    def cell(rows: pd.DataFrame) -> str:
        pairs = zip(rows["steps_to_threshold"], rows["reached"], strict=True)
        return " ".join(f"{steps / 1000:.0f}" if reached else "never" for steps, reached in pairs)

    return _by_task(study, agents, cell)


def ratios(study: Study, agents: Sequence[str], reference: str = REFERENCE) -> pd.DataFrame:
    """Median steps of ``reference`` over median steps of each agent, and their geometric mean over tasks.

    Only of tasks that most seeds of both learn: elsewhere a median, and the ratio with it, would grow with the budget.
    """
    if reference not in study.complete([reference]):
        return pd.DataFrame()
    table = []
    for name in study.complete(agents):
        tasks = study.learned(reference, name)
        if name == reference or not tasks:
            continue
        theirs, ours = (study.samples(agent, "steps_to_threshold", tasks) for agent in (reference, name))
        row = {"agent": label(name), **{task.id: NONE for task in study.tasks}}
        for task, x, y in zip(tasks, theirs, ours, strict=True):
            row[task.id] = f"{ratio_of_medians([x], [y]):.2f}"
        row["tasks"] = str(len(tasks))
        row["geometric mean"] = interval(compared(study, "ratio", name, reference))
        table.append(row)
    return pd.DataFrame(table)


def aggregates(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Interquartile means of normalised scores over tasks and seeds."""
    return pd.DataFrame(
        {
            "agent": label(name),
            **{NAMES[score]: interval(compared(study, score, name)) for score in ("final_score", "evaluation_score")},
        }
        for name in study.complete(agents)
    )


def improvement(study: Study, agents: Sequence[str], reference: str = REFERENCE) -> pd.DataFrame:
    """Probability that a seed of the agent is better than one of ``reference`` on the same task."""
    if reference not in study.complete([reference]):
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "agent": label(name),
            **{NAMES[measure]: interval(improved(study, measure, name, reference)) for measure in COMPARED},
        }
        for name in study.complete(agents)
        if name != reference
    )


def medians(study: Study, agents: Sequence[str], measure: str, digits: int = 0) -> pd.DataFrame:
    """Median over seeds and, in brackets, the lowest and the highest."""

    def cell(rows: pd.DataFrame) -> str:
        values = rows[measure]
        return f"{values.median():,.{digits}f} [{values.min():,.{digits}f}, {values.max():,.{digits}f}]"

    return _by_task(study, agents, cell)


def collapses(study: Study, agents: Sequence[str]) -> pd.DataFrame:
    """Seeds whose last ten evaluations are below the threshold, on average, after it was reached."""
    return _by_task(study, agents, lambda rows: f"{int(rows['collapsed'].sum())} of {len(rows)}")


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


def interval(value: Estimate) -> str:
    """As text; without the interval where there are too few seeds for one."""
    return f"{value.value:.2f}" if value.low != value.low else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def compared(study: Study, score: str, name: str, reference: str = REFERENCE) -> Estimate:
    """The agent's interquartile mean of ``score`` or, for "ratio", its geometric mean against ``reference``."""
    if score == "ratio":
        tasks, measure = study.learned(reference, name), "steps_to_threshold"
        return estimate(ratio_of_medians, study.samples(reference, measure, tasks), study.samples(name, measure, tasks))
    return estimate(iqm, study.samples(name, score))


def improved(study: Study, measure: str, name: str, reference: str = REFERENCE) -> Estimate:
    """Probability of improvement over ``reference`` on that measure."""
    sign = COMPARED[measure]
    ours, theirs = ([sign * array for array in study.samples(agent, measure)] for agent in (name, reference))
    return estimate(probability_of_improvement, ours, theirs)


def _by_task(study: Study, agents: Sequence[str], cell: Callable[[pd.DataFrame], str]) -> pd.DataFrame:
    table = []
    for name in agents:
        row = {"agent": label(name)}
        for task in study.tasks:
            rows = study.of_task(name, task)
            row[task.id] = cell(rows) if len(rows) else NONE
        table.append(row)
    return pd.DataFrame(table)
