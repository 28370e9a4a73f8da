"""``python -m experiments report``: everything that is published about a study, from its stored runs."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure

from agents import FAMILY
from experiments.files import check_folder, own_folder, write_atomically
from experiments.plots import svg
from experiments.report import figures, stored_ablation, summary, tables
from experiments.report.page import Image, Report, Section, Table, as_html, as_markdown, markdown_table
from experiments.report.study import OURS, Study, label, short, unmarked
from experiments.runs import PROTOCOL_VERSION, RunSpec
from experiments.storage import Record, failures, load_studies

TITLE = "STORM+ policy gradient: benchmark"
BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
INTERVALS = (
    "In square brackets: 95 % intervals of the stratified bootstrap, 10,000 resamples of seeds within each task."
)
REACHED = (
    "In brackets, how many seeds reached it, where not all did; `-`: half of them or fewer, so that there is no median."
)
BELOW = "Of the evaluations after the threshold was reached, how many are below it, over all seeds that reached it."
NOT_RUN = "`not run`: the agent was not run on that task; `cannot act`: its actions are of another kind."


def report(
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="The study's folder, with raw runs or packed ones; runs/benchmark by default. "
            "Give the option once for each of several studies, to report on them together."
        ),
    ] = None,
    agents: Annotated[
        list[str] | None, typer.Option("--agent", help="Report on this agent only; once for each of several.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; RESULTS/report, or runs/benchmark/report for the published results."),
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Rewrite the marked section of this page too, as README.md.")
    ] = None,
) -> None:
    """Write index.html, README.md, their figures and runs.csv into one folder, all from the stored runs."""
    studies = results or [Path("runs/benchmark")]
    if len(studies) > 1 and output is None:
        raise ValueError(f"a report on {len(studies)} studies belongs to none of them: say where with --output")
    folder = output or own_folder(studies[0]) / "report"
    check_folder(folder)
    if readme is not None:
        _split(readme)  # A page without a marked section is an error before the work, not after.
    study = Study.of(_of_agents(load_studies(studies), agents))
    failed = {name: reason for each in studies for name, reason in failures(each).items()}
    page = build(study, failed, studies[0].parent / "ablations")
    for section in page.sections:
        for item in section.items:
            if isinstance(item, Image):
                for name, content in item.files().items():
                    write_atomically(folder / name, content)
    write_atomically(folder / "runs.csv", tables.every_run(study).to_csv(index=False).encode())
    write_atomically(folder / "README.md", as_markdown(page).encode())
    write_atomically(folder / "index.html", as_html(page).encode())
    typer.echo(f"{len(study.runs)} runs: {folder / 'index.html'}, {folder / 'README.md'}")
    if readme is not None:
        rewrite(readme, study, folder)
        typer.echo(f"Rewrote the section between {BEGIN} and {END} in {readme}.")


def _of_agents(runs: dict[RunSpec, Record], agents: list[str] | None) -> dict[RunSpec, Record]:
    """The runs of these agents; None: all of them."""
    known = {spec.agent for spec in runs}
    if unknown := set(agents or ()) - known:
        raise ValueError(f"no runs of {', '.join(sorted(unknown))} there; there are some of {', '.join(sorted(known))}")
    return runs if agents is None else {spec: run for spec, run in runs.items() if spec.agent in agents}


def build(study: Study, failed: dict[str, str], ablations: Path) -> Report:
    """The report; ``ablations`` is the folder of a stored ablation of STORM+PG, which may be missing."""
    facts = summary.facts(study)
    sections = []
    if facts:
        sections.append(Section("Summary", "\n".join(f"- {fact.sentence}" for fact in facts)))
    if OURS in study.agents:
        sections += stored_ablation.sections(ablations)
    sections += [_steps(study), _learning_curves(study), _task_by_task(study), _over_tasks(study), _returns(study)]
    sections.append(_time(study))
    if study.variants:
        sections.append(_variants(study))
    sections.append(_runs(study, failed))
    glance = [(fact.figure, fact.what) for fact in facts if fact.figure]
    return Report(TITLE, summary.introduction(study), glance, summary.origin(study), sections, marked=label(OURS))


def _steps(study: Study) -> Section:
    agents, reference = study.agents, study.reference
    against = short(reference) if reference is not None else ""
    return Section(
        "Env steps to the threshold",
        "The env step of the first of two evaluations in a row at or above the task's threshold; an evaluation is the "
        "mean of 20 episodes of the deterministic policy.",
        [
            *_figure(
                "steps_to_threshold",
                partial(figures.steps_to_threshold, study, agents),
                "Env steps to the threshold of every seed, by task and agent",
                "Each marker is a seed. Hollow, in the grey strip right of the budget: a seed that never reached the "
                "threshold. The bar is the median, the band its 95 % interval over seeds; both are missing where half "
                "of the seeds or fewer got there.",
            ),
            Table(tables.steps(study, agents), f"Median over seeds. {REACHED} {NOT_RUN}"),
            Table(
                tables.each_seed(study, agents),
                "Every seed that reached it, in thousands of env steps, in ascending order.",
                folded=True,
            ),
            Table(
                tables.ratios(study, agents),
                f"Median steps of {against} over the agent's, where more than half of the seeds of both reach it; "
                f"elsewhere `-` and the number of seeds that did. {INTERVALS}",
            ),
            *_figure(
                "fewer_steps",
                partial(figures.fewer_steps, study, agents),
                f"Probability of needing fewer env steps than {against}, by task and agent",
                f"Each seed of the agent against each of {against}: how often it needs fewer steps (Mann-Whitney, ties "
                "one half). A seed that never reached the threshold comes after any that did: no budget enters. "
                "Bars: 95 % intervals over seeds; an interval over the dotted line, one half, is no difference.",
            ),
            Table(tables.fewer_steps(study, agents), f"The same in figures. {INTERVALS} {NOT_RUN}", folded=True),
        ],
    )


def _learning_curves(study: Study) -> Section:
    """A figure of STORM+PG and its opponents and, if SVRPG's siblings ran, one of the whole family."""
    agents = study.agents
    members = {name.lower() for name in FAMILY}
    family = [name for name in agents if unmarked(name) in members]
    siblings = [name for name in family if unmarked(name) != "svrpg"]
    shown = {"learning_curves": [name for name in agents if name not in siblings]}
    if siblings:
        shown["learning_curves_family"] = [name for name in agents if name in family or unmarked(name) == OURS]
    return Section(
        "Learning curves",
        "Return of the deterministic policy, mean of 20 episodes, against env steps: interquartile mean over seeds "
        "and, as a band, its pointwise 95 % interval. The axis begins at the return that counts as 0 (table under "
        "[Runs](#runs)); what is lower is cut.",
        [
            image
            for name, some in shown.items()
            for image in _figure(
                name,
                partial(figures.learning_curves, study, agents, some),
                f"Deterministic return against env steps of {summary.listed(map(label, some))}, by task",
                "STORM+PG and SVRPG with its siblings." if name == "learning_curves_family" else "",
            )
        ],
    )


def _task_by_task(study: Study) -> Section:
    agents = study.agents
    return Section(
        "Task by task",
        "Which agent is best where? By the area under the evaluation curve: the mean of the normalised return over the "
        "budget, which rewards learning early and keeping it.",
        [
            *_figure(
                "heat_map",
                partial(figures.heat_map, study, agents),
                "Normalised area under the evaluation curve, by task and agent",
                "Interquartile mean over seeds; 1 is the return that counts as 1 from the first env step on. Framed: "
                "the best on the task. `-`: not run.",
            ),
            *(
                Table(
                    tables.ranking(study, agents, task),
                    f"{task.id}, by area.",
                    folded=True,
                    note=f"Area: interquartile mean over seeds. Env steps: median over seeds. {REACHED} Final return "
                    f"and seconds: median [lowest, highest]. {INTERVALS}",
                )
                for task in study.tasks
            ),
        ],
    )


def _over_tasks(study: Study) -> Section:
    agents = study.agents
    left_out = [label(name) for name in agents if name not in study.complete(agents)]
    partial_runs = f" Without {summary.listed(left_out)}, not run on every task." if left_out else ""
    several = f"over the {len(study.tasks)} tasks" if len(study.tasks) > 1 else f"on {study.tasks[0].id}"
    reference = label(study.reference) if study.reference is not None else ""
    return Section(
        "All tasks together",
        f"Returns are normalised to each task's range from 0 to 1 and pooled {several}, every seed of each."
        f"{partial_runs}",
        [
            *_figure(
                "aggregate_scores",
                partial(figures.aggregate_scores, study, agents),
                "Interquartile means of normalised scores, by agent",
                "Interquartile mean: the mean without the lowest and highest quarter of runs. Bars: 95 % intervals.",
            ),
            Table(tables.aggregates(study, agents), f"The same in figures. {INTERVALS}", folded=True),
            *_figure(
                "performance_profiles",
                partial(figures.profiles, study, agents),
                "Performance profiles: share of runs above a normalised score, by agent",
                "Performance profiles: the share of runs with a higher score than the one on the axis. Higher is "
                "better; bands are 95 % intervals.",
            ),
            Table(
                tables.improvement(study, agents),
                f"Probability that a seed of the agent beats one of {reference} on the same task (Mann-Whitney, ties "
                f"one half), mean over tasks. {INTERVALS}",
            ),
            Table(
                tables.against_ours(study, agents),
                "Each agent against STORM+PG, on the tasks that both ran on: interquartile means of the area under the "
                "evaluation curve, and the probability that a seed of STORM+PG has more area, or needs fewer steps, "
                f"than one of the agent's, mean over tasks. {INTERVALS}",
            ),
            Table(
                tables.against_the_best(study, agents),
                "Probability that a seed of an agent without settings for each task beats one of the best agent that "
                "has them: on each task and measure the one of the best median, by these very runs, which favours it. "
                f"{INTERVALS}",
            ),
        ],
    )


def _returns(study: Study) -> Section:
    agents, spread = study.agents, "Median over seeds [lowest, highest]."
    return Section(
        "Returns and what becomes of them",
        "",
        [
            Table(
                tables.medians(study, agents, "final_return", 1),
                f"Final return: 100 episodes of the deterministic policy after training. {spread}",
            ),
            Table(
                tables.collapses(study, agents),
                "Seeds that lost the threshold again, of those that reached it: their last ten evaluations are below "
                "it, on average. `-`: none reached it.",
            ),
            Table(tables.dips(study, agents), BELOW),
            Table(
                tables.medians(study, agents, "evaluation_score", 2),
                f"Area under the evaluation curve, normalised: mean score over the budget. {spread}",
                folded=True,
            ),
            Table(
                tables.medians(study, agents, "training_score", 2),
                f"Area under the training curve, normalised: mean score of training episodes over the budget. {spread}",
                folded=True,
            ),
        ],
    )


def _time(study: Study) -> Section:
    agents = study.agents
    return Section(
        "Time",
        "Of training alone, without evaluations, in a process with one torch thread. What else the machine did "
        "meanwhile is not recorded: take times as rough. `python -m experiments throughput` measures speed side by "
        "side.",
        [
            Table(
                tables.seconds(study, agents),
                f"Seconds of training to the threshold, median over seeds. {REACHED}",
                folded=True,
            ),
            Table(
                tables.medians(study, agents, "steps_per_second"),
                "Env steps per second of `learn()`. Median over seeds [lowest, highest].",
                folded=True,
            ),
        ],
    )


def _variants(study: Study) -> Section:
    variants = [*[name for name in study.agents if unmarked(name) == OURS], *study.variants]
    return Section(
        "Variants of STORM+PG",
        "Each with one part switched off or replaced.",
        [
            *_figure(
                "variants",
                partial(figures.steps_to_threshold, study, variants),
                "Env steps to the threshold of every seed, by task and variant",
                "Each marker is a seed, hollow ones never reached the threshold; the bar is the median.",
            ),
            Table(tables.steps(study, variants), f"Env steps to the threshold, median over seeds. {REACHED}"),
            Table(
                tables.ratios(study, variants, OURS),
                f"Median steps of STORM+PG as it is over those of the variant; below 1 the variant needs more. "
                f"{INTERVALS}",
            ),
            Table(
                tables.medians(study, variants, "evaluation_score", 2), "Area under the evaluation curve, normalised."
            ),
            Table(tables.medians(study, variants, "final_return", 1), "Final return."),
            Table(tables.collapses(study, variants), "Seeds that lost the threshold again, of those that reached it."),
            Table(tables.dips(study, variants), BELOW),
        ],
    )


def _runs(study: Study, failed: dict[str, str]) -> Section:
    return Section(
        "Runs",
        f"Protocol version {PROTOCOL_VERSION}; docs/benchmark.md describes it. Everything here is computed from the "
        "stored runs by `python -m experiments report`; `runs.csv` beside this page has a row for each.",
        [
            Table(tables.tasks(study), "The tasks."),
            Table(tables.contestants(study), "The agents."),
            Table(tables.versions(study), "What the runs were made with.", folded=True),
            Table(
                pd.DataFrame({"run": list(failed), "error": list(failed.values())}),
                "Failed runs, which are not in any table or figure.",
            ),
        ],
    )


def _figure(name: str, draw: Callable[..., Figure | None], title: str, caption: str = "") -> list[Image]:
    """The figure for a page and for a phone; none where it cannot be drawn."""
    wide, narrow = draw(narrow=False), draw(narrow=True)
    if wide is None or narrow is None:
        return []
    return [Image(f"{name}.svg", svg(wide), title, caption, svg(narrow))]


# THE README


def rewrite(readme: Path, study: Study, folder: Path) -> None:
    """Put the table of steps, the ratios and the learning curves, as in ``folder``, between the page's two markers.

    Raises:
        ValueError: The page lacks the markers.
    """
    before, after = _split(readme)
    table = tables.steps(study, study.agents)
    ratios = tables.ratios(study, study.agents)
    if len(ratios):
        means = ratios["geometric mean"] + " on " + ratios["tasks"] + " tasks"
        column = f"{short(study.reference or '')}'s steps / its steps [95 % interval]"
        table = table.merge(pd.DataFrame({"agent": ratios["agent"], column: means}), how="left", on="agent")
        # Second: the last columns of a table as wide as this are cut off on a repository's page.
        table.insert(1, column, table.pop(column).fillna(""))
    counts = tables.contestants(study).set_index("agent")["seeds"]
    if counts.nunique() > 1:
        table.insert(1, "seeds", table["agent"].map(counts))
    place = Path(os.path.relpath(folder, readme.parent)).as_posix()
    parts = [
        BEGIN,
        f"Env steps to each task's threshold, median of {summary.seeds(study)} seeds "
        f"([everything else]({place}/README.md)). {REACHED}",
        f"![Deterministic return against env steps]({place}/learning_curves.svg)",
        markdown_table(table),
        END,
    ]
    write_atomically(readme, (before + "\n\n".join(parts) + after).encode())


def _split(readme: Path) -> tuple[str, str]:
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} has no section between {BEGIN} and {END}; put the two lines where it belongs.")
    return text.partition(BEGIN)[0], text.partition(END)[2]
