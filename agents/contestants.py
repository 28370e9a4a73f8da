"""The list of contestants. Each is a name, a label for plots, and a function that builds it for a task."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.storm_plus_pg import build_storm_plus_pg
from agents.zoo import zoo_builder

Builder = Callable[[str, int, str | None], BaseAlgorithm]


@dataclass(frozen=True)
class Contestant:
    """A contestant of the benchmark.

    Attributes:
        name: Name on the command line and in file names.
        label: Name in tables and plots.
        build: From a task's id, a seed and a TensorBoard folder (or None), the model with its training
            environments, ready for ``learn``.
    """

    name: str
    label: str
    build: Builder


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("storm_plus_pg", "STORM+PG (defaults)", build_storm_plus_pg),
        Contestant("ppo_zoo", "PPO (RL Zoo tuned)", zoo_builder("ppo")),
    )
}


def get_contestant(name: str) -> Contestant:
    """The contestant of that name.

    Raises:
        ValueError: No such contestant; the message lists the known ones and the nearest.
    """
    if name not in CONTESTANTS:
        nearest = difflib.get_close_matches(name, CONTESTANTS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"unknown agent {name!r}; known: {', '.join(CONTESTANTS)}.{hint}")
    return CONTESTANTS[name]
