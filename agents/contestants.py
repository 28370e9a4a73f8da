"""The list of contestants. Each is a name, a label for plots, and a function that builds it for a task."""

import ast
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    """

    name: str
    label: str
    build: Callable[..., BaseAlgorithm]
    own_environments: bool = False
    build_variant: Callable[..., BaseAlgorithm] | None = None


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            "storm_plus_pg",
            "STORM+PG (defaults)",
            partial(build_model, STORMPlusPG),
            build_variant=partial(build_model, STORMPlusPGVariant),
        ),
        Contestant("ppo_zoo", "PPO (RL Zoo's settings)", partial(build_from_zoo, "ppo"), own_environments=True),
        Contestant("ppo_default", "PPO (SB3 defaults)", partial(build_model, PPO)),
        Contestant("a2c_zoo", "A2C (RL Zoo's settings)", partial(build_from_zoo, "a2c"), own_environments=True),
        Contestant("trpo_zoo", "TRPO (RL Zoo's settings)", partial(build_from_zoo, "trpo"), own_environments=True),
        *(Contestant(row.name, row.algorithm.__name__, partial(build_model, row.algorithm)) for row in _SIBLINGS),
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
    label = f"{contestant.label.removesuffix(' (defaults)')} [{arguments}"
    return Contestant(name, label, build, contestant.own_environments)


def _literals(name: str, arguments: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"dict({arguments.removesuffix(']')})", mode="eval").body
        if not arguments.endswith("]") or not isinstance(call, ast.Call) or call.args:
            raise ValueError("expected name[argument=literal,...]")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the arguments of agent {name!r}: {error}") from error
