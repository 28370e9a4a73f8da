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
# Marks contestants on the batched environments, which are never put together with those on gymnasium's.
BATCHED = " @ batched"


@dataclass(frozen=True)
class Study:
    """The finished runs of a study.

    Attributes:
        runs: The runs' records.
        rows: What is measured on each run; ``contestant`` is the agent, marked if it ran on batched environments.
        contestants: The agents proper, in the order in which they are listed.
        variants: Variants of agents (``storm_plus_pg[...]``): a section of their own.
        tasks: The tasks, in the benchmark's order.
    """

    runs: Mapping[RunSpec, dict[str, Any]]
    rows: pd.DataFrame
    contestants: Sequence[str]
    variants: Sequence[str]
    tasks: Sequence[Task]

    @classmethod
    def of(cls, runs: Mapping[RunSpec, dict[str, Any]]) -> "Study":
        """The study of these runs."""
        rows = measured(runs.values())
        rows.insert(0, "contestant", [contestant_of(spec) for spec in runs])
        order = list(CONTESTANTS)
        names = sorted(set(rows["contestant"]), key=lambda name: (BATCHED in name, _position(name, order), name))
        return cls(
            runs,
            rows,
            [name for name in names if "[" not in name],
            [name for name in names if "[" in name],
            [get_task(task) for task in (*TASKS, *OUTSIDE_TASKS) if task in set(rows["task"])],
        )

    def of_task(self, contestant: str, task: Task) -> pd.DataFrame:
        """The contestant's rows on the task, by seed."""
        rows = self.rows
        return rows[(rows["contestant"] == contestant) & (rows["task"] == task.id)].sort_values("seed")

    def records(self, contestant: str, task: Task) -> list[dict[str, Any]]:
        """The contestant's records on the task."""
        return [run for spec, run in self.runs.items() if spec.task == task.id and contestant_of(spec) == contestant]

    def complete(self, contestants: Sequence[str]) -> list[str]:
        """Those that ran on every task of the study: the others have no part in aggregates over tasks."""
        return [name for name in contestants if all(len(self.of_task(name, task)) for task in self.tasks)]

    def samples(self, contestant: str, measure: str) -> list[Floats]:
        """One array of seeds for each task."""
        return [self.of_task(contestant, task)[measure].to_numpy(dtype=np.float64) for task in self.tasks]


def contestant_of(spec: RunSpec) -> str:
    """The name under which a run is reported."""
    return spec.agent + BATCHED * spec.batched


def agent_of(contestant: str) -> str:
    """The agent, wherever it ran."""
    return contestant.removesuffix(BATCHED)


def label(contestant: str) -> str:
    """Name for tables and figures."""
    agent = agent_of(contestant)
    text = ABLATIONS.get(agent) or get_contestant(agent).label
    return text + " - batched environments" * contestant.endswith(BATCHED)


def _position(contestant: str, order: list[str]) -> tuple[int, int]:
    agent = agent_of(contestant)
    variants = list(ABLATIONS)
    return order.index(agent.partition("[")[0]), variants.index(agent) if agent in variants else len(variants)
