"""The algorithms, one row each: RL Zoo, the benchmark, the documentation and the tests read them here."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm

from storm_rl import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG, STORMPlusPG

if TYPE_CHECKING:
    from optuna import Trial


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included; uniform, or uniform in the logarithm."""

    low: float
    high: float
    log: bool = False


SearchSpace = Mapping[str, Range | list[Any]]
"""Argument of the constructor: a `Range`, or the list of values to choose from."""


@dataclass(frozen=True)
class ZooAlgorithm:
    """An algorithm of this package.

    Attributes:
        name: Name in RL Zoo (``--algo``), of the benchmark's agent and of files.
        algorithm: The class.
        n_envs: Environments that it trains on unless told otherwise.
        search_space: What a search of hyperparameters varies, in the order in which the sampler is asked.
    """

    name: str
    algorithm: type[BaseAlgorithm]
    n_envs: int
    search_space: SearchSpace


# STORM+PG has nothing that must be set; its space holds what an ablation would vary.
_AGENT_SPACE: SearchSpace = {
    "gamma": [0.95, 0.98, 0.99, 0.995, 0.999],
    "gae_lambda": [0.9, 0.95, 0.98, 1.0],
    "ent_coef": [0.0, 0.001, 0.01, 0.03],
    "critic_learning_rate": Range(3e-4, 3e-3, log=True),
    "critic_steps": [40, 80, 160],
    "reuse_rollouts": [1, 2, 4],
    "target_kl": Range(1e-2, 2e-1, log=True),
}

# The family's: learning rate and batch sizes, as in the search that is stored with this project. What tells one sibling
# from another stands in its row.
_PLAIN_SPACE: SearchSpace = {
    "learning_rate": Range(1e-3, 3e-2, log=True),
    "baseline": ["leave_one_out", "state_value"],
    "batch_size": [5, 10, 30],
}
_FAMILY_SPACE: SearchSpace = {**_PLAIN_SPACE, "batch_size": [10, 30, 100], "mini_batch_size": [5, 10]}
_COIN_SPACE: SearchSpace = {**_FAMILY_SPACE, "probability": Range(0.1, 0.9)}

# Batches of 5, 10, 30 and 100 episodes fill five environments without remainder: the fewest idle steps.
_FAMILY_ENVS = 5

ALGORITHMS: dict[str, ZooAlgorithm] = {
    row.name: row
    for row in (
        ZooAlgorithm("storm_plus_pg", STORMPlusPG, 8, _AGENT_SPACE),
        ZooAlgorithm("svrpg", SVRPG, _FAMILY_ENVS, _FAMILY_SPACE),
        ZooAlgorithm("gpomdp", GPOMDP, _FAMILY_ENVS, _PLAIN_SPACE),
        ZooAlgorithm("srvrpg", SRVRPG, _FAMILY_ENVS, {**_FAMILY_SPACE, "epoch_length": [3, 5, 10]}),
        ZooAlgorithm("stormpg", STORMPG, _FAMILY_ENVS, {**_FAMILY_SPACE, "momentum": Range(0.1, 0.9)}),
        ZooAlgorithm("pagepg", PAGEPG, _FAMILY_ENVS, _COIN_SPACE),
        ZooAlgorithm("defpg", DEFPG, _FAMILY_ENVS, {**_COIN_SPACE, "defensive": Range(0.1, 0.9)}),
    )
}
"""The algorithms by the names that they have in RL Zoo."""


def get_algorithm(name: str) -> ZooAlgorithm:
    """The algorithm of that name in RL Zoo, as ``"svrpg"``.

    Raises:
        ValueError: No such algorithm; the message lists the known ones.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; known: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def sample_hyperparameters(
    algorithm: str, trial: "Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Constructor arguments for one trial of a search, as RL Zoo asks for them; the last three are part of its call."""
    return {
        argument: trial.suggest_float(argument, values.low, values.high, log=values.log)
        if isinstance(values, Range)
        else trial.suggest_categorical(argument, values)
        for argument, values in get_algorithm(algorithm).search_space.items()
    }


class MissingExtraError(ImportError):
    """What RL Zoo needs is not installed."""

    def __init__(self, error: ImportError) -> None:
        super().__init__(f'{error}. RL Zoo needs an extra: pip install "storm-rl[zoo]"', name=error.name)


def register() -> None:
    """Add the algorithms to RL Zoo's tables, the only way in, which all its scripts share. A second call does nothing.

    Raises:
        MissingExtraError: RL Zoo is not installed, or something that it needs.
    """
    try:
        from rl_zoo3 import hyperparams_opt, utils
    except ImportError as error:
        raise MissingExtraError(error) from error
    for name, row in ALGORITHMS.items():
        utils.ALGOS[name] = row.algorithm
        hyperparams_opt.HYPERPARAMS_SAMPLER[name] = functools.partial(sample_hyperparameters, name)
        # Trials hold the constructor's arguments as they are.
        hyperparams_opt.HYPERPARAMS_CONVERTER[name] = dict
