"""``python -m experiments report``: everything that is published about a study, from its stored runs."""

import os
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure

from agents import FAMILY
from experiments.files import check_folder, own_folder, write_atomically
from experiments.plots import png
from experiments.report import figures, tables
from experiments.report.page import Image, Section, Table, as_html, as_markdown, markdown_table
from experiments.report.study import OURS, Study, label, unmarked
from experiments.runs import PROTOCOL_VERSION
from experiments.storage import failures, load_runs

TITLE = "STORM+ policy gradient: benchmark"
BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
INTERVALS = (
    "In square brackets: 95 % intervals of the stratified bootstrap, 10,000 resamples of seeds within each task."
)


def report(
    results: Annotated[Path, typer.Option(help="The study's folder, with raw runs or packed ones.")] = Path(
        "runs/benchmark"
    ),
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; RESULTS/report, or runs/benchmark/report for the published results."),
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Rewrite the marked section of this page too, as README.md.")
    ] = None,
) -> None:
    """Write index.html (one file, images inside), README.md, the figures and runs.csv, all from the stored runs."""
    folder = output or own_folder(results) / "report"
    check_folder(folder)
    if readme is not None:
        _split(readme)  # A page without a marked section is an error before the work, not after.
    study = Study.of(load_runs(results))
    sections = build(study, failures(results))
    for section in sections:
        for item in section.items:
            if isinstance(item, Image):
                write_atomically(folder / f"{item.name}.png", item.content)
    write_atomically(folder / "runs.csv", study.rows.to_csv(index=False).encode())
    write_atomically(folder / "README.md", as_markdown(TITLE, sections).encode())
    write_atomically(folder / "index.html", as_html(TITLE, sections).encode())
    typer.echo(f"{len(study.runs)} runs: {folder / 'index.html'}, {folder / 'README.md'}")
    if readme is not None:
        rewrite(readme, study, folder)
        typer.echo(f"Rewrote the section between {BEGIN} and {END} in {readme}.")


def build(study: Study, failed: dict[str, str]) -> list[Section]:
    """The report's sections."""
    sections = [*_results(study), *_details(study)]
    if study.variants:
        sections.append(_ablations(study))
    return [*sections, _provenance(study, failed)]


def _results(study: Study) -> list[Section]:
    agents = study.agents
    left_out = [label(name) for name in agents if name not in study.complete(agents)]
    partial = f" Without {', '.join(left_out)}, which did not run on every task." if left_out else ""
    several = f"over {len(study.tasks)} tasks" if len(study.tasks) > 1 else f"on {study.tasks[0].id}"
    return [
        Section(
            "Env steps to the threshold",
            "Env step of the first of two evaluations in a row at or above the task's threshold (deterministic policy, "
            "mean of 20 episodes). A run that never gets there counts as the budget, and is counted.",
            [
                Table(tables.steps(study, agents), "Median over seeds."),
                Image(
                    "steps_to_threshold",
                    png(figures.steps_to_threshold(study, agents)),
                    "Env steps to the threshold: every seed, and the median as a bar; the dotted line is the budget.",
                ),
                Table(tables.each_seed(study, agents), "Every seed, in thousands of env steps, from seed 0 on."),
                Table(
                    tables.ratios(study, agents),
                    f"Median steps of RL Zoo's PPO over the agent's, where most seeds of both learn. {INTERVALS}",
                ),
            ],
        ),
        Section(
            "Learning curves",
            "",
            _learning_curves(study),
        ),
        Section(
            "Aggregates",
            f"Scores are normalised to each task's range and pooled {several}.{partial} {INTERVALS}",
            [
                Table(tables.aggregates(study, agents), "Interquartile mean of normalised scores."),
                *_image("aggregate_scores", figures.aggregate_scores(study, agents), "Interquartile means."),
                *_image(
                    "performance_profiles",
                    figures.profiles(study, agents),
                    "Performance profiles: share of runs with a normalised score above a value; higher is better.",
                ),
                Table(
                    tables.improvement(study, agents),
                    "Probability that a seed of the agent beats one of that PPO on the same task, ties one half "
                    "(Mann-Whitney), mean over tasks.",
                ),
                *_image(
                    "probability_of_improvement",
                    figures.improvement(study, agents),
                    "Probability of improvement over RL Zoo's PPO; the dotted line is one half.",
                ),
            ],
        ),
    ]


def _learning_curves(study: Study) -> list[Image]:
    """A figure of STORM+PG and its opponents and, if SVRPG's siblings ran, one of the whole family."""
    agents, text = (
        study.agents,
        "Deterministic return (mean of 20 episodes) against env steps: interquartile mean ",
    )
    text += "over seeds, and its pointwise 95 % bootstrap interval."
    members = {name.lower() for name in FAMILY}
    family = [name for name in agents if unmarked(name) in members]
    siblings = [name for name in family if unmarked(name) != "svrpg"]
    opponents = [name for name in agents if name not in siblings]
    images = [Image("learning_curves", png(figures.learning_curves(study, agents, opponents)), text)]
    if siblings:
        shown = [name for name in agents if name in family or unmarked(name) == OURS]
        figure = figures.learning_curves(study, agents, shown)
        images.append(Image("learning_curves_family", png(figure), f"SVRPG and its siblings. {text}"))
    return images


def _details(study: Study) -> list[Section]:
    agents = study.agents
    spread = "Median over seeds [lowest, highest]."
    return [
        Section(
            "Returns",
            spread,
            [
                Table(
                    tables.medians(study, agents, "final_return", 1),
                    "Final return: deterministic policy after training, 100 episodes.",
                ),
                Table(
                    tables.medians(study, agents, "evaluation_score", 2),
                    "Area under the evaluation curve, normalised: mean score over the budget.",
                ),
                Table(
                    tables.medians(study, agents, "training_score", 2),
                    "Area under the training curve, normalised: mean score of training episodes over the budget.",
                ),
                Table(
                    tables.collapses(study, agents),
                    "Collapsed seeds: last ten evaluations below the threshold, on average, after it was reached.",
                ),
            ],
        ),
        Section(
            "Time",
            f"Each run alone on one core, one torch thread; evaluations do not count. {spread}",
            [
                Table(
                    tables.medians(study, agents, "seconds_to_threshold", 1),
                    "Seconds of training to the threshold; all of them for a run that never got there.",
                ),
                Table(tables.medians(study, agents, "steps_per_second"), "Env steps per second of learn()."),
            ],
        ),
    ]


def _ablations(study: Study) -> Section:
    variants = [*[name for name in study.agents if unmarked(name) == OURS], *study.variants]
    return Section(
        "Ablations",
        "Variants of STORM+PG, each with one part switched off or replaced.",
        [
            Table(tables.steps(study, variants), "Env steps to the threshold, median over seeds."),
            Table(
                tables.ratios(study, variants, OURS),
                f"Median steps of STORM+PG as it is over those of the variant; below 1 the variant needs more. "
                f"{INTERVALS}",
            ),
            Table(
                tables.medians(study, variants, "evaluation_score", 2), "Area under the evaluation curve, normalised."
            ),
            Table(tables.medians(study, variants, "final_return", 1), "Final return."),
            Table(tables.collapses(study, variants), "Collapsed seeds."),
            *_image("ablations", figures.steps_to_threshold(study, variants), "Env steps to the threshold."),
        ],
    )


def _provenance(study: Study, failed: dict[str, str]) -> Section:
    return Section(
        "Runs",
        f"Protocol version {PROTOCOL_VERSION}; docs/benchmark.md describes it. Everything here is computed from the "
        "stored runs by `python -m experiments report`.",
        [
            Table(tables.versions(study)),
            Table(
                pd.DataFrame({"run": list(failed), "error": list(failed.values())}),
                "Failed runs, which are not in any table or figure.",
            ),
        ],
    )


def _image(name: str, figure: Figure | None, caption: str) -> list[Table | Image]:
    return [] if figure is None else [Image(name, png(figure), caption)]


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
        ratios = pd.DataFrame(
            {"agent": ratios["agent"], "PPO's steps / its steps, where most seeds of both learn": means}
        )
        table = table.merge(ratios, how="left", on="agent").fillna(tables.NONE)
    place = Path(os.path.relpath(folder, readme.parent)).as_posix()
    proper = study.rows[study.rows["contestant"].isin(study.agents)]
    seeds = proper.groupby(["contestant", "task"]).size()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    parts = [
        BEGIN,
        f"Env steps to each task's threshold, median of {count} seeds ([everything else]({place}/README.md)):",
        markdown_table(table),
        f"![Deterministic return against env steps]({place}/learning_curves.png)",
        END,
    ]
    write_atomically(readme, (before + "\n\n".join(parts) + after).encode())


def _split(readme: Path) -> tuple[str, str]:
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} has no section between {BEGIN} and {END}; put the two lines where it belongs.")
    return text.partition(BEGIN)[0], text.partition(END)[2]
