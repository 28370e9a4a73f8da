"""How large a perturbation of the observations provably leaves a policy's actions alone: STORM+PG's, and PPO's.

Perturbations are of every entry of an observation, in units of its standard deviation over the states that the
repository's trained agent visits, so that all policies of a task have the same unit. Each policy is measured in the
states that it visits itself.
"""

from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
from gymnasium import spaces
from rich.progress import track
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import get_contestant
from envs import TASKS, get_task
from experiments.files import write_atomically
from experiments.plots import COLOURS, new_figure, save
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.trained import TRAINED, visited
from storm_rl import STORMPlusPG, verify

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Of Discrete actions the share of states whose choice stays; of Box ones how far a mean moves, in half the range.
BOUNDS = {"certified": "certified", "without steps": "certified, without gradient steps", "attacked": "attack"}
EPISODES = 10
EXPLANATION = (
    "For each size of the perturbations, in standard deviations of each entry. With Discrete actions: the share of "
    "states whose choice provably stays, and of those whose choice the attack does not change; the truth is between. "
    "With Box actions: how far the largest mean can provably move at most, and how far the attack moves it, in half "
    "the actions' range, mean over states. `trained` is the repository's agent"
)


def certify(
    output: Annotated[Path, typer.Option(help="Folder of rows, table and figure; finished rows stay.")] = Path(
        "runs/certify"
    ),
    agents: Annotated[
        list[str] | None, typer.Option("--agent", help="An agent to train and certify; storm_plus_pg and ppo_zoo.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; the benchmark's five.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds, from 0 on; 0: the trained agents alone.")] = 3,
    states: Annotated[int, typer.Option(min=1, help="Number of states.")] = 100,
    steps: Annotated[int | None, typer.Option(min=1, help="Env steps of training, in place of the task's.")] = None,
) -> None:
    """Certify the repository's trained agents, and policies that are trained for it: a table and a figure."""
    names = agents or ["storm_plus_pg", "ppo_zoo"]
    # A seed is text: beside an empty cell pandas makes 0.0 of a 0.
    todo: list[tuple[str, str, str]] = []
    for task in map(get_task, tasks or TASKS):
        if not (TRAINED / task.id / "model.zip").exists():
            raise ValueError(f"there is no trained agent of {task.id} to take the unit from in {TRAINED}")
        todo += [("trained", task.id, "")]
        todo += [(get_contestant(name).name, task.id, str(seed)) for seed in range(seeds) for name in names]
    rows = Rows(output / "certify.csv", ("agent", "task", "seed", "epsilon"), text=("seed",))
    for name, task_id, seed in track(todo, "Policies"):
        if any(rows.get(name, task_id, seed, radius) is None for radius in RADII):
            trained = STORMPlusPG.load(TRAINED / task_id / "model.zip", device="cpu")
            unit = visited(trained, task_id, EPISODES).std(axis=0)
            model = _train(name, task_id, int(seed), steps) if seed else trained
            key = {"agent": name, "task": task_id, "seed": seed}
            rows.add([{**key, **row} for row in measured(model, task_id, unit, states)])
    table = rows.table()
    write_atomically(output / "certify.md", summary(table, states).encode())
    draw(table, output / "certify.png")
    typer.echo(f"Table: {output / 'certify.md'}\nFigure: {output / 'certify.png'}")


def _train(agent: str, task_id: str, seed: int, steps: int | None) -> BaseAlgorithm:
    return get_contestant(agent).build(task_id, seed, None).learn(steps or get_task(task_id).budget)


def measured(model: BaseAlgorithm, task_id: str, unit: npt.NDArray[np.float64], n_states: int) -> list[Row]:
    """A row for each size of the perturbations."""
    states = visited(model, task_id, EPISODES)
    states = states[np.random.default_rng(0).permutation(len(states))[:n_states]]
    rows = []
    for radius in RADII:
        found = {
            "certified": verify.certify(model, states, radius, unit),
            "without steps": verify.certify(model, states, radius, unit, n_steps=0),
            "attacked": verify.attack(model, states, radius, unit),
        }
        row: Row = {"epsilon": radius}
        for name, certificate in found.items():
            if certificate.deviations is None:
                row[name] = float(certificate.certified.mean())
            else:
                space = model.action_space
                assert isinstance(space, spaces.Box)
                half = (space.high - space.low) / 2.0
                row[name] = float((certificate.deviations / half).max(axis=1).mean())
        rows.append(row)
    return rows


def summary(rows: pd.DataFrame, states: int) -> str:
    """Means over seeds, as Markdown."""
    means = rows.groupby(["task", "agent", "epsilon"], sort=False)[list(BOUNDS)].mean()
    text = means.map("{:.2f}".format).agg(" / ".join, axis=1).unstack("epsilon").reset_index()
    text.columns = [str(name) for name in text.columns]
    n_seeds = len(set(rows["seed"].dropna()) - {""})
    others = f", the others are means over {n_seeds} seeds" if n_seeds else ""
    order = " / ".join(BOUNDS.values())
    explanation = f"{EXPLANATION}{others}. {states} states of each policy. In each cell: {order}."
    return f"# Certified policies\n\n{explanation}\n\n{markdown_table(text)}\n"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each task: certified as a line, attacked dashed, the truth between the two."""
    tasks, agents = rows["task"].unique(), rows["agent"].unique()
    figure, panels = new_figure(1, len(tasks), (3.2 * len(tasks), 3.4))
    for axes, task in zip(panels, tasks, strict=True):
        for agent, colour in zip(agents, COLOURS, strict=False):
            means = rows[(rows["task"] == task) & (rows["agent"] == agent)].groupby("epsilon")[list(BOUNDS)].mean()
            axes.plot(means.index, means["certified"], color=colour, marker="o", markersize=3, label=agent)
            axes.plot(means.index, means["attacked"], color=colour, linestyle="--")
            axes.fill_between(means.index, means["certified"], means["attacked"], color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("perturbation, standard deviations")
        box = isinstance(gymnasium.spec(task).make().action_space, spaces.Box)
        axes.set_ylabel("largest move of a mean, half ranges" if box else "share of states whose choice stays")
        if box:
            axes.set_yscale("log")
    panels[0].legend(fontsize=8)
    save(figure, path)
