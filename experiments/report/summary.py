"""A study in a few sentences, computed from its runs."""

import subprocess
from collections.abc import Iterable
from math import isinf
from pathlib import Path
from typing import NamedTuple

from scipy.stats import mannwhitneyu

from envs import Task
from experiments.measures import median_to_threshold
from experiments.report import tables
from experiments.report.study import OURS, Study, label, short, unmarked
from experiments.statistics import estimate, ratio_of_medians

ROOT = Path(__file__).parents[2]
# A difference in steps counts as beyond chance where chance makes one as large less often than this.
SIGNIFICANCE = 0.05


class Fact(NamedTuple):
    """A sentence, in Markdown, and its figure for those who only look."""

    figure: str
    what: str
    sentence: str


def introduction(study: Study) -> str:
    """What was compared, on what, and with how many seeds."""
    everywhere = study.complete(study.agents)
    elsewhere: dict[str, list[str]] = {}
    for name in study.agents:
        if name not in everywhere:
            ids = listed(task.id for task in study.tasks if len(study.of_task(name, task)))
            elsewhere.setdefault(ids, []).append(label(name))
    text = [
        "How many env steps does an agent need until it solves a task, and does it keep what it has learned?",
        f"{listed(map(label, everywhere or study.agents))} on {listed(task.id for task in study.tasks)}, "
        f"{seeds(study)} seeds each.",
        *(f"{listed(names)}: on {ids} only." for ids, names in elsewhere.items() if everywhere),
    ]
    if any(unmarked(name) == OURS for name in study.agents):
        text.append("STORM+PG has its constructor's defaults everywhere; nothing else is set.")
    return " ".join(text)


def seeds(study: Study) -> str:
    """How many seeds the agents have on each task: "10", or "3 to 10"."""
    counts = study.rows[study.rows["contestant"].isin(study.agents)].groupby(["contestant", "task"]).size()
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def origin(study: Study) -> str:
    """How many runs, by which revisions of the code, and of which days these are."""
    revisions: dict[str, list[str]] = {}
    for name in (*study.agents, *study.variants):
        for task in study.tasks:
            for run in study.records(name, task):
                names = revisions.setdefault(run["versions"].get("git", "unknown"), [])
                names.extend([short(name)] if short(name) not in names else [])
    parts = []
    for revision, names in revisions.items():
        day = committed(revision)
        parts.append(f"{revision}{f' of {day}' if day else ''} for {listed(names)}")
    return f"{len(study.runs)} runs, by the code's revision {'; '.join(parts)}."


def committed(revision: str) -> str:
    """The day of the commit, as 2026-01-31; empty where this checkout does not know it."""
    command = ["git", "-C", str(ROOT), "show", "-s", "--format=%cs", f"{revision}^{{commit}}", "--"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts(study: Study) -> list[Fact]:
    """Three or four statements about STORM+PG, or none if it did not run."""
    if OURS not in study.complete([OURS]):
        return []
    found = [_reached(study)]
    reference = study.reference
    if reference is not None:
        found += [*_ratio(study, reference), _by_pairs(study, reference), *_by_area(study, reference)]
    return [*found, *_rivals(study)]


def _reached(study: Study) -> Fact:
    def count(name: str) -> tuple[int, int, int]:
        rows = study.rows[study.rows["contestant"] == name]
        return int(rows["reached"].sum()), int((rows["reached"] & ~rows["collapsed"]).sum()), len(rows)

    reached, held, runs = count(OURS)
    others = [
        f"{label(name)} in {those} of {all_of_them} and held it in {kept}"
        for name in study.complete(study.agents)
        if name != OURS
        for those, kept, all_of_them in [count(name)]
    ]
    sentence = f"**STORM+PG reached the threshold in {reached} of {runs} runs and held it to the end in {held}**"
    return Fact(
        f"{reached} of {runs}",
        "runs of STORM+PG reach the task's threshold",
        f"{'; '.join([sentence, *([', '.join(others)] if others else [])])} (to the end: the mean of the last ten "
        "evaluations is not below the threshold).",
    )


def _ratio(study: Study, reference: str) -> list[Fact]:
    tasks = study.learned(reference, OURS)
    if not tasks:
        return []
    samples = [study.samples(name, "steps_to_threshold", tasks) for name in (reference, OURS)]
    ratio = estimate(ratio_of_medians, *samples)
    interval = "" if ratio.low != ratio.low else f" (95 % interval {ratio.low:.2f} to {ratio.high:.2f})"
    sentence = (
        f"**{label(reference)} needed {ratio.value:.2f} times as many env steps as STORM+PG**{interval}: ratio of "
        f"medians, geometric mean over {len(tasks)} {'tasks' if len(tasks) > 1 else 'task'}"
    )
    left = [_why_not(study, task, reference) for task in study.tasks if task not in tasks]
    if left:
        sentence += f". No median, because half of the seeds or fewer get there: {listed(left)}"
    return [
        Fact(
            f"{ratio.value:.2f} ×",
            f"as many env steps as STORM+PG are needed by {short(reference)}, where most seeds of both learn",
            f"{sentence}.",
        )
    ]


def _why_not(study: Study, task: Task, reference: str) -> str:
    parts = []
    for name in (OURS, reference):
        reached = study.of_task(name, task)["reached"]
        if reached.mean() <= 0.5:
            parts.append(f"{short(name)} {reached.sum()} of {len(reached)} seeds")
    return f"{task.id} ({', '.join(parts)})"


def _by_pairs(study: Study, reference: str) -> Fact:
    verdicts: dict[str, list[str]] = {"fewer": [], "level": [], "more": []}
    for task in study.tasks:
        test, lower = _steps_test(study, reference, task)
        verdicts["level" if test >= SIGNIFICANCE else "fewer" if lower else "more"].append(task.id)
    texts = {
        "fewer": "fewer steps on",
        "level": "a difference that chance explains on",
        "more": "more steps on",
    }
    parts = [f"{texts[verdict]} {listed(ids)}" for verdict, ids in verdicts.items() if ids]
    return Fact(
        f"{len(verdicts['fewer'])} of {len(study.tasks)}",
        f"tasks with fewer steps than {short(reference)} beyond chance"
        + (f", {len(verdicts['level'])} level" if verdicts["level"] else ""),
        f"Against {short(reference)} STORM+PG has **{'; '.join(parts)}** (two-sided Mann-Whitney test of all seeds, "
        f"p < {SIGNIFICANCE:g}).",
    )


def _by_area(study: Study, reference: str) -> list[Fact]:
    """On how many tasks STORM+PG has more area than the reference; separately on those held out."""
    held_out = [task for task in study.tasks if task.held_out]
    developed = [task for task in study.tasks if not task.held_out]
    found = []
    for tasks, kind in ((developed, ""), (held_out, "held-out ")):
        if not tasks:
            continue
        areas = [study.samples(name, "evaluation_area", tasks) for name in (OURS, reference)]
        less = [task.id for task, ours, theirs in zip(tasks, *areas, strict=True) if ours.mean() <= theirs.mean()]
        chance = tables.interval(tables.improved(study, "evaluation_score", OURS, reference, tuple(tasks)))
        figure, several = f"{len(tasks) - len(less)} of {len(tasks)}", "tasks" if len(tasks) > 1 else "task"
        what = f"{kind}{several} with more area under the evaluation curve than {short(reference)}"
        sentence = (
            f"**STORM+PG has more area under the evaluation curve than {short(reference)} on {figure} {kind}"
            f"{several}**{f', less on {listed(less)}' if less else ''} (means over seeds); probability that a seed "
            f"has more, mean over these tasks: {chance}."
        )
        found.append(Fact(figure, what, sentence))
    return found


def more_steps(study: Study, reference: str, task: Task) -> bool:
    """Whether STORM+PG needs more steps than the reference there, beyond chance."""
    p_value, lower = _steps_test(study, reference, task)
    return p_value < SIGNIFICANCE and not lower


def _steps_test(study: Study, reference: str, task: Task) -> tuple[float, bool]:
    """The p-value of a difference in steps to the threshold, and whether STORM+PG has fewer."""
    # Runs that never reached it have the budget here: later than any that did.
    ours, theirs = (study.samples(name, "steps_to_threshold", [task])[0] for name in (OURS, reference))
    test = mannwhitneyu(ours, theirs)
    return float(test.pvalue), bool(test.statistic < len(ours) * len(theirs) / 2)


def _rivals(study: Study) -> list[Fact]:
    """The agent with the fewest median steps but for ours, on each task that one has learned."""
    parts = []
    for task in study.tasks:
        medians = {
            name: median_to_threshold(study.of_task(name, task))
            for name in study.agents
            if name != OURS and len(study.of_task(name, task))
        }
        name = min(medians, key=lambda name: medians[name], default="")
        if name and not isinf(medians[name]):
            reached = study.of_task(name, task)["reached"]
            count = "" if reached.all() else f", {reached.sum()} of {len(reached)} seeds"
            ours = median_to_threshold(study.of_task(OURS, task))
            against = "no median" if isinf(ours) else f"{ours:,.0f}"
            alike = [other for other in study.agents if short(other) == short(name)]
            called = short(name) if len(alike) == 1 else label(name)
            parts.append(f"{called} on {task.id} ({medians[name]:,.0f}{count}; STORM+PG {against})")
    return [Fact("", "", f"The nearest rivals, by median steps: {listed(parts)}.")] if parts else []


def listed(parts: Iterable[str]) -> str:
    """Parts in a sentence: "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
