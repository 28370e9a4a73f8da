"""A study's rows, arranged for tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from agents import CONTESTANTS, get_contestant
from agents.ablations import ABLATIONS
from envs import OUTSIDE_TASKS, TASKS, Task, get_task
from experiments.measures import measured
from experiments.runs import RunSpec
from experiments.statistics import Floats

OURS, REFERENCE = "storm_plus_pg", "ppo_zoo"
# What "better" is compared on, with a sign that makes more of it better.
COMPARED = {"final_score": 1.0, "evaluation_score": 1.0, "steps_to_threshold": -1.0}
# Whom others are compared with: the first of these that ran on every task.
REFERENCES = (REFERENCE, "ppo_default")
# Marks agents on the batched environments, which are never put together with those on gymnasium's.
BATCHED = " @ batched"


# Compared by identity, so that what is computed from a study can be kept.
@dataclass(frozen=True, eq=False)
class Study:
    """The finished runs of a study.

    Attributes:
        runs: The runs' records.
        rows: What is measured on each run; ``contestant`` is the agent, marked if it ran on batched environments.
        agents: The agents proper, marked likewise, in the order in which they are listed.
        variants: Variants of STORM+PG (``storm_plus_pg[...]``): a section of their own.
        tasks: The tasks, in the benchmark's order.
    """

    runs: Mapping[RunSpec, dict[str, Any]]
    rows: pd.DataFrame
    agents: Sequence[str]
    variants: Sequence[str]
    tasks: Sequence[Task]

    @classmethod
    def of(cls, runs: Mapping[RunSpec, dict[str, Any]]) -> "Study":
        """The study of these runs."""
        rows = measured(runs.values())
        rows.insert(0, "contestant", [marked(spec) for spec in runs])
        order = list(CONTESTANTS)
        names = sorted(set(rows["contestant"]), key=lambda name: (BATCHED in name, _position(name, order), name))
        return cls(
            runs,
            rows,
            [name for name in names if not name.startswith(f"{OURS}[")],
            [name for name in names if name.startswith(f"{OURS}[")],
            [get_task(task) for task in (*TASKS, *OUTSIDE_TASKS) if task in set(rows["task"])],
        )

    def of_task(self, agent: str, task: Task) -> pd.DataFrame:
        """The agent's rows on the task, by seed."""
        rows = self.rows
        return rows[(rows["contestant"] == agent) & (rows["task"] == task.id)].sort_values("seed")

    def records(self, agent: str, task: Task) -> list[dict[str, Any]]:
        """The agent's records on the task."""
        return [run for spec, run in self.runs.items() if spec.task == task.id and marked(spec) == agent]

    def complete(self, agents: Sequence[str]) -> list[str]:
        """Those that ran on every task of the study: the others have no part in aggregates over tasks."""
        return [name for name in agents if len(self.shared(name)) == len(self.tasks)]

    def shared(self, *agents: str) -> list[Task]:
        """The tasks that all of these ran on."""
        return [task for task in self.tasks if all(len(self.of_task(name, task)) for name in agents)]

    @property
    def reference(self) -> str | None:
        """The agent that the others are compared with; None if there is none that ran on every task."""
        return next(iter(self.complete(REFERENCES)), None)

    def samples(self, agent: str, measure: str, tasks: Sequence[Task] | None = None) -> list[Floats]:
        """One array of seeds for each task."""
        tasks = self.tasks if tasks is None else tasks
        return [self.of_task(agent, task)[measure].to_numpy(dtype=np.float64) for task in tasks]

    def best_tuned(self, measure: str, task: Task) -> str | None:
        """The agent of the best median there, of those with settings for each task; None if none ran on it.

        It is chosen by the runs that it is compared on, which favours it.
        """
        medians = {
            name: COMPARED[measure] * self.of_task(name, task)[measure].median()
            for name in self.agents
            if get_contestant(unmarked(name)).tuned and len(self.of_task(name, task))
        }
        return max(medians, key=lambda name: medians[name], default=None)

    def learned(self, *agents: str) -> list[Task]:
        """The tasks whose threshold more than half of each agent's seeds reach: no median there hangs on a budget."""
        return [task for task in self.tasks if all(self.of_task(name, task)["reached"].mean() > 0.5 for name in agents)]


def marked(spec: RunSpec) -> str:
    """The agent's name in reports: on batched environments it is one of its own."""
    return spec.agent + BATCHED * spec.batched


def unmarked(agent: str) -> str:
    """The agent's name, wherever it ran."""
    return agent.removesuffix(BATCHED)


def label(agent: str) -> str:
    """Name for tables and figures."""
    name = unmarked(agent)
    text = ABLATIONS.get(name) or get_contestant(name).label
    return text + " - batched environments" * agent.endswith(BATCHED)


def short(agent: str) -> str:
    """The label without its settings, for running text."""
    return label(agent).partition(" (")[0]


def _position(agent: str, order: list[str]) -> tuple[int, int]:
    name, variants = unmarked(agent), list(ABLATIONS)
    return order.index(name.partition("[")[0]), variants.index(name) if name in variants else len(variants)
