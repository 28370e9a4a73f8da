"""The list of contestants. Each is a name, a label for plots, and a function that builds it for a task."""

import ast
import contextlib
import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import gymnasium
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.build import build_model
from agents.variants import STORMPlusPGVariant
from agents.zoo import build_from_zoo
from storm_rl import STORMPlusPG
from storm_rl.zoo import ALGORITHMS

_SIBLINGS = [row for row in ALGORITHMS.values() if row.algorithm is not STORMPlusPG]

FAMILY = tuple(row.algorithm.__name__ for row in _SIBLINGS)
"""SVRPG and its siblings by the names of their classes: all of the package's algorithms but the agent."""


@dataclass(frozen=True)
class Contestant:
    """A contestant of the benchmark.

    Attributes:
        name: Name on the command line and in file names.
        label: Name in tables and plots.
        build: From a task's id, a seed, a TensorBoard folder (or None) and constructor arguments that replace
            the contestant's own, the model with its training environments, ready for ``learn``. ``make_env`` among
            them stands in for SB3's ``make_vec_env``, unless it has environments of its own.
        own_environments: Whether its environments are part of its settings, so that no others can stand in.
        build_variant: What builds it with arguments in brackets, where that is not ``build``.
        settings: Where its settings come from, in words, for reports.
        actions: The kind of action space that it has to have; None: any.
        tuned: Whether its settings are chosen task by task.
    """

    name: str
    label: str
    build: Callable[..., BaseAlgorithm]
    own_environments: bool = False
    build_variant: Callable[..., BaseAlgorithm] | None = None
    settings: str = ""
    actions: type[spaces.Space[Any]] | None = None
    tuned: bool = False

    def plays(self, task_id: str) -> bool:
        """Whether it can act in the task; yes where the task cannot be made, which is for others to say."""
        if self.actions is None:
            return True
        try:
            return isinstance(_action_space(task_id), self.actions)
        except (gymnasium.error.Error, ImportError):
            return True


@cache
def _action_space(task_id: str) -> spaces.Space[Any]:
    with contextlib.closing(gymnasium.make(task_id)) as env:
        return env.action_space


def _of_the_zoo(algorithm: str, label: str | None = None, actions: type[spaces.Space[Any]] | None = None) -> Contestant:
    return Contestant(
        f"{algorithm}_zoo",
        f"{label or algorithm.upper()} (RL Zoo's settings)",
        partial(build_from_zoo, algorithm),
        own_environments=True,
        settings="RL Zoo's for each task, with its environments and normalisation; SB3's defaults where it has none",
        actions=actions,
        tuned=True,
    )


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            "storm_plus_pg",
            "STORM+PG",
            partial(build_model, STORMPlusPG),
            build_variant=partial(build_model, STORMPlusPGVariant),
            settings="the constructor's defaults, nothing else set",
        ),
        _of_the_zoo("ppo"),
        Contestant("ppo_default", "PPO (SB3 defaults)", partial(build_model, PPO), settings="SB3's defaults"),
        _of_the_zoo("a2c"),
        _of_the_zoo("trpo"),
        _of_the_zoo("sac", actions=spaces.Box),
        _of_the_zoo("tqc", actions=spaces.Box),
        _of_the_zoo("dqn", actions=spaces.Discrete),
        _of_the_zoo("qrdqn", "QR-DQN", actions=spaces.Discrete),
        _of_the_zoo("ars"),
        *(
            Contestant(
                row.name,
                row.algorithm.__name__,
                partial(build_model, row.algorithm),
                settings="the best of a search for each of the benchmark's tasks",
                tuned=True,
            )
            for row in _SIBLINGS
        ),
    )
}


def get_contestant(name: str) -> Contestant:
    """The contestant of that name, or a variant of it: ``"storm_plus_pg[momentum=1.0,n_steps=32]"``.

    A variant is built with the arguments in brackets (Python literals) in place of the contestant's own.

    Raises:
        ValueError: No such contestant (the message lists the known ones and the nearest), or arguments that are
            not ``argument=literal`` pairs.
    """
    base, bracket, arguments = name.partition("[")
    if base not in CONTESTANTS:
        nearest = difflib.get_close_matches(base, CONTESTANTS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"unknown agent {base!r}; known: {', '.join(CONTESTANTS)}.{hint}")
    contestant = CONTESTANTS[base]
    if not bracket:
        return contestant
    build = partial(contestant.build_variant or contestant.build, **_literals(name, arguments))
    label = f"{contestant.label} [{arguments}"
    settings = f"{contestant.settings}, with [{arguments}"
    return replace(contestant, name=name, label=label, build=build, build_variant=None, settings=settings)


def _literals(name: str, arguments: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"dict({arguments.removesuffix(']')})", mode="eval").body
        if not arguments.endswith("]") or not isinstance(call, ast.Call) or call.args:
            raise ValueError("expected name[argument=literal,...]")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the arguments of agent {name!r}: {error}") from error
