"""What the stored ablation of STORM+PG says, as a section: a table and a picture that ``ablations`` has made.

Beside it, where a memory pays: the errors of gradient estimates that ``gradient-error`` has measured.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.plots import svg
from experiments.report import figures
from experiments.report.page import Image, Section, Table
from experiments.report.study import OURS, label
from experiments.statistics import Estimate, estimate

NAME = "ten_seeds"
# The columns over all tasks, in the names that ``ablations`` gives them, and what is no difference there.
INTERVALS = {"times the default's steps": 1.0, "evaluations less the default's": 0.0}
INTERVAL = re.compile(r"(\S+) \((\S+) to (\S+)\)")
OVERALL = ("variant", "reached", *INTERVALS)
# Estimates of a gradient: STORM+'s, and one without a memory from as many episodes.
WITH_MEMORY, WITHOUT = "storm_plus", "gpomdp_equal"


def sections(folder: Path) -> list[Section]:
    """The section "What drives the agent" from ``ten_seeds.md`` and ``.png`` in ``folder``; none without them."""
    page, picture = folder / f"{NAME}.md", folder / f"{NAME}.png"
    if not page.is_file() or not picture.is_file():
        return []
    text, rows = _parts(page.read_text())
    rows["variant"] = rows["variant"].replace("default", label(OURS))
    overall = rows[[name for name in OVERALL if name in rows]]
    return [
        Section(
            "What drives the agent",
            "Each row is STORM+PG with one of its parts switched off or replaced, on the same tasks and seeds as the "
            f"first, {rows['variant'].iloc[0]}: a part matters where its row is worse. {_verdict(rows)}",
            [
                *_differences(rows),
                Table(overall, "The same in figures, and the runs of all tasks that reached the threshold."),
                Image(
                    "what_drives_the_agent.png",
                    picture.read_bytes(),
                    "Mean of all evaluations of every seed, by task and variant of STORM+PG",
                    "Task by task: each point is a seed, the tick their mean, the line the default's.",
                ),
                Table(
                    rows[[name for name in rows if name == "variant" or name not in OVERALL]],
                    "Each task.",
                    folded=True,
                    note=text,
                ),
                *_where_memory_pays(folder.parent / "gradient_error"),
            ],
        )
    ]


def _where_memory_pays(folder: Path) -> list[Table]:
    """Errors of the two estimates after the last step of each path, as ratios by task and length of a step."""
    cells: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("errors_*.csv")):
        errors = pd.read_csv(path)
        last = errors[errors["step"] == errors["step"].max()]
        paths = last.pivot_table(index=["task", "kl", "stage", "seed"], columns="estimator", values="relative_error")
        ratios = np.log(paths[WITH_MEMORY] / paths[WITHOUT])
        for (task, kl), group in ratios.groupby(["task", "kl"]):
            by_stage = [stage.to_numpy() for _, stage in group.groupby("stage")]
            found = estimate(_geometric_mean, by_stage)
            cell = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
            cells.setdefault(str(task), {})[f"KL {kl:g}"] = f"**{cell}**" if found.high < 1.0 else cell
    caption = (
        "Where a memory pays: the error of STORM+'s estimate of the gradient over that of as many episodes without a "
        "memory, by the KL of each of ten steps that the estimate was carried along; 95 % intervals over seeds, bold "
        "below 1 ([the study](../../gradient_error/README.md)). The agent's own steps are mostly longer than KL 0.001. "
        "What was tried to give the recursion more to do is in the [log](../../../agent_log.md)."
    )
    return [Table(pd.DataFrame(cells).T.rename_axis("task").reset_index(), caption)] if cells else []


def _geometric_mean(samples: Any, axis: int = -1) -> Any:
    """Of logarithms, over all seeds of all stages."""
    return np.exp(np.mean(np.concatenate(samples, axis=axis), axis=axis))


def _estimates(rows: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """By column and variant, the differences from the default over all tasks, where the table has them."""
    return {
        name: {
            str(variant): Estimate(*map(float, match.groups()))
            for variant, cell in zip(rows["variant"], rows[name], strict=True)
            if (match := INTERVAL.fullmatch(cell))
        }
        for name in INTERVALS
        if name in rows
    }


def _verdict(rows: pd.DataFrame) -> str:
    """Which rows differ from the default beyond chance, in a sentence; empty where there are no intervals."""
    found = _estimates(rows)
    variants = {variant: None for estimates in found.values() for variant in estimates}
    steps, evaluations = (found.get(name, {}) for name in INTERVALS)
    verdicts = {
        "more env steps": [name for name, each in steps.items() if each.low > 1.0],
        "fewer env steps": [name for name, each in steps.items() if each.high < 1.0],
        "worse evaluations": [name for name, each in evaluations.items() if each.high < 0.0],
        "better evaluations": [name for name, each in evaluations.items() if each.low > 0.0],
    }
    differ = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items() if names]
    if differ:
        return f"Beyond chance, {'; '.join(differ)}."
    return f"None of them differs beyond chance: {', '.join(variants)}." if variants else ""


def _differences(rows: pd.DataFrame) -> list[Image]:
    """The differences from the default over all tasks, where the table has them."""
    found = _estimates(rows)
    if not any(found.values()):
        return []
    wide, narrow = (figures.differences(found, INTERVALS, narrow) for narrow in (False, True))
    return [
        Image(
            "differences.svg",
            svg(wide),
            "Steps to the threshold and evaluations of each variant against the default, over all tasks",
            "Against the default on the same seeds, mean over tasks: env steps to the threshold (right of the dotted "
            "line the variant needs more) and the mean of all evaluations (left of it the variant is worse). Bars: "
            "95 % intervals over seeds; grey ones include no difference.",
            svg(narrow),
        )
    ]


def _parts(markdown: str) -> tuple[str, pd.DataFrame]:
    """The page's paragraph and its table."""
    lines = markdown.splitlines()
    text = " ".join(line for line in lines if line and not line.startswith(("#", "|")))
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    return text, pd.DataFrame(body, columns=head)
