"""The command: what is missing is run, and all of it becomes tables and figures."""

import itertools
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console

from experiments.files import write_atomically
from experiments.plots import COLOURS, INK, LINES, MARKERS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Rows
from experiments.statistics import Floats, estimate
from experiments.studies.delay.pca import STEP_SIZES, Memory, borne, errors, predicted_delay
from experiments.studies.delay.plan import BASE, DELAYS, FLOORS, RULE, TASKS, Setting

# In the table of the memories that bear them.
SHOWN_DELAYS = (10, 20, 30, 35, 40, 60, 80, 100)


class Part(StrEnum):
    """What is run."""

    PCA = "pca"
    LEARNING = "learning"


def delay(
    output: Annotated[Path, typer.Option(help="Folder of rows, tables and figures; finished rows stay.")] = Path(
        "runs/delay"
    ),
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What is run; all by default.")] = None,
    settings: Annotated[
        list[Setting] | None, typer.Option("--setting", help="Of the agent, in the second part; both by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of either part, from 0 on.")] = 10,
) -> None:
    """Momentum where gradients are old: streaming PCA, and STORM+PG with rollouts of the policy of some updates ago."""
    torch.set_num_threads(1)
    chosen, sections = set(parts or Part), list[str]()
    if Part.PCA in chosen:
        _pca(output, seeds)
    if Part.LEARNING in chosen:
        _learning(output, list(settings or Setting), seeds)
    if (path := output / "pca.csv").exists():
        sections.append(pca_report(pd.read_csv(path)))
        draw_pca(pd.read_csv(path), output / "pca.png")
    if (path := output / "learning.csv").exists():
        rows = pd.read_csv(path, dtype={"floor": str})
        # An interrupted study has a part of a seed.
        sizes = {setting: len(tasks) * len(DELAYS) * len(FLOORS) for setting, tasks in TASKS.items()}
        whole = rows.groupby(["setting", "seed"]).filter(lambda group: len(group) == sizes[group["setting"].iloc[0]])
        if len(whole):
            sections.append(learning_report(whole))
            draw_learning(whole, output / "learning.png")
    write_atomically(output / "delay.md", ("\n\n".join(["# Momentum under delay", *sections]) + "\n").encode())
    typer.echo(f"Tables: {output / 'delay.md'}")


def _pca(output: Path, seeds: int) -> None:
    rows = Rows(output / "pca.csv", ("memory", "weight", "delay", "seed"))
    todo = []
    for seed, memory in itertools.product(range(seeds), Memory):
        found = rows.table()
        if not len(found) or not ((found["memory"] == memory) & (found["seed"] == seed)).any():
            todo.append((memory, seed))
    with Clock(Console(), len(todo), len(todo), "seeds") as clock:
        for memory, seed in todo:
            with clock.run(f"{memory}, seed {seed}"):
                rows.add(errors(memory, seed))


def _learning(output: Path, settings: list[Setting], seeds: int) -> None:
    try:
        from experiments.studies.delay.learning import learned
    except ImportError as error:
        raise ValueError("this part takes the floor of storm_rl.distributed: pip install 'storm-rl[ray]'") from error
    rows = Rows(output / "learning.csv", ("setting", "task", "delay", "floor", "seed"), text=("floor",))
    # Seed by seed, so that what an interrupted study has is balanced. One floor's run may be that of others too.
    wanted = [
        (setting.value, task, delay, floor, seed)
        for setting in settings
        for seed, task, delay, floor in itertools.product(range(seeds), TASKS[setting], DELAYS, FLOORS)
    ]
    todo = [key for key in wanted if rows.get(*key) is None]
    with Clock(Console(), len(todo), len(todo), "runs") as clock:
        for key in todo:
            if rows.get(*key) is not None:
                clock.skip(1)
                continue
            with clock.run(" ".join(map(str, key))):
                rows.add(learned(*key))


def pca_report(rows: pd.DataFrame) -> str:
    """What each memory bears, beside the theory."""
    found = borne(rows)
    shown = pd.DataFrame(
        {
            "memory": found["memory"],
            "a": found["a"].map("{:g}".format),
            "delay borne": found["borne"].map("{:.1f}".format),
            "range": [f"{low:.1f} to {high:.1f}" for low, high in zip(found["least"], found["most"], strict=True)],
            "theory": found["theory"].map("{:.1f}".format),
            "error without delay": found["error without delay"].map("{:.4f}".format),
        }
    )
    steps = ", ".join(f"{memory.value} {size:g}" for memory, size in STEP_SIZES.items())
    ball = found[found["memory"] == Memory.HEAVY_BALL.value]
    exponent = np.polyfit(np.log(ball["a"]), np.log(ball["borne"]), 1)[0]
    return "\n\n".join(
        [
            "## Streaming PCA",
            f"The delay, in steps, at which the error is twice that without: median and range of "
            f"{rows['seed'].nunique()} seeds. Step sizes: {steps}.",
            markdown_table(shown),
            f"What heavy ball bears goes with the power {exponent:.2f} of a. The other way round, the largest 1 - a of "
            "these with which a delay is borne:",
            markdown_table(largest_memory(found)),
            "![Errors against the delay](pca.png)",
        ]
    )


def largest_memory(found: pd.DataFrame) -> pd.DataFrame:
    """For some delays the largest ``1 - a`` that bears them, by memory."""
    lines = []
    for memory, group in found.groupby("memory", sort=False):
        line = {"memory": str(memory)}
        for delay in SHOWN_DELAYS:
            able = group[group["borne"] >= delay]["a"]
            line[f"delay {delay}"] = f"{1.0 - able.min():g}" if len(able) else "none"
        lines.append(line)
    return pd.DataFrame(lines)


def geometric_mean(logs: Any, axis: int = -1) -> Any:
    """Of one group of logarithms, for `estimate`."""
    return np.exp(np.mean(logs[0], axis=axis))


def learning_report(rows: pd.DataFrame) -> str:
    """Env steps, ratios to no floor seed by seed, and what momentum was."""
    lines = []
    for (setting, task, delay), place in rows.groupby(["setting", "task", "delay"], sort=False):
        steps = {str(name): part.sort_values("seed") for name, part in place.groupby("floor", sort=False)}
        base = steps[BASE]["steps"].to_numpy(float)
        for floor in FLOORS:
            part = steps[floor]
            lines.append(
                {
                    **{"setting": setting, "task": task, "seeds": str(len(part)), "delay": str(delay), "floor": floor},
                    "env steps": f"{part['steps'].median():.0f}",
                    "reached": f"{int(part['reached'].sum())}/{len(part)}",
                    "times no floor": "1" if floor == BASE else _ratio(part["steps"].to_numpy(float), base),
                    "floor binds": f"{part['binds'].mean():.0%}",
                    "measured $a_t$": f"{part['measured'].median():.2f}",
                    "median floor": f"{part['median_floor'].median():.2f}",
                    "loop gain": f"{part['gain'].median():.3f}",
                }
            )
    return "\n\n".join(
        [
            "## STORM+PG with delays put in",
            "Median env steps to the threshold, seeds from 0 on; ratios are geometric means over seeds, with 95 % "
            "bootstrap intervals.",
            pooled(rows),
            markdown_table(pd.DataFrame(lines)),
            "![Env steps against the delay](learning.png)",
        ]
    )


def _ratio(steps: Floats, base: Floats) -> str:
    if (steps == base).all():
        return "1, equal env steps"
    found = estimate(geometric_mean, [np.log(steps / base)])
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def pooled(rows: pd.DataFrame) -> str:
    """Ratios over all delays but 0, to no floor and of the rule: a seed's are averaged before seeds are drawn."""
    lines = []
    for (setting, task), place in rows[rows["delay"] > 0].groupby(["setting", "task"], sort=False):
        table = np.log(place.pivot_table(index=["floor", "seed"], columns="delay", values="steps")).mean(axis=1)
        logs = {floor: table.loc[floor].to_numpy(float) for floor in FLOORS}
        for floor in FLOORS:
            line = {"setting": setting, "task": task, "floor": floor}
            line["floor binds"] = f"{place[place['floor'] == floor]['binds'].mean():.0%}"
            lines.append(
                {
                    **line,
                    "times no floor": _pooled(logs[floor] - logs[BASE]),
                    "the rule, times this": _pooled(logs[RULE] - logs[floor]),
                }
            )
    return markdown_table(pd.DataFrame(lines))


def _pooled(logs: Floats) -> str:
    if not logs.any():
        return "1"
    found = estimate(geometric_mean, [logs])
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def draw_pca(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each memory: medians over seeds, and where the linear theory sees the limit."""
    figure, panels = new_figure(1, len(Memory), (12.0, 3.8))
    for axes, memory in zip(panels, Memory, strict=True):
        part = rows[rows["memory"] == memory.value]
        for number, (weight, group) in enumerate(part.groupby("weight", sort=False)):
            middle = group.groupby("delay")["error"].median()
            style: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "marker": MARKERS[number]}
            axes.plot(middle.index, middle, label=f"a = {weight:g}", markersize=3, **style)
            limit = predicted_delay(memory, float(str(weight)), STEP_SIZES[memory])
            axes.axvline(limit, color=COLOURS[number], linewidth=0.8, alpha=0.6)
        axes.set_title(f"{memory.value}, step size {STEP_SIZES[memory]:g}", fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(0.003, 1.0)
        axes.set_xlabel("delay, steps")
        axes.legend(fontsize=7, loc="lower right", ncols=2)
    panels[0].set_ylabel("squared distance to the solution")
    save(figure, path)


def draw_learning(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each setting and task; geometric means over seeds."""
    columns = [(setting, task) for setting, tasks in TASKS.items() for task in tasks]
    figure, panels = new_figure(1, len(columns), (12.0, 3.8))
    for axes, (setting, task) in zip(panels, columns, strict=True):
        part = rows[(rows["setting"] == setting) & (rows["task"] == task)]
        for number, floor in enumerate(FLOORS):
            steps = part[part["floor"] == floor].groupby("delay")["steps"].apply(lambda one: np.exp(np.log(one).mean()))
            style: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "marker": MARKERS[number]}
            axes.plot(steps.index, steps, label=floor, markersize=4, **style)
        axes.set_title(f"{task}, {setting}", fontsize=9)
        axes.set_xscale("symlog", base=2, linthresh=1.0)
        axes.set_xticks(DELAYS, [str(value) for value in DELAYS])
        axes.set_xlabel("delay, updates")
        axes.set_ylim(bottom=0.0)
        axes.tick_params(axis="x", which="minor", bottom=False, colors=INK)
    panels[0].set_ylabel("env steps to the threshold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(FLOORS), fontsize=9)
    save(figure, path)
