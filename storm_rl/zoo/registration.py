"""This package's algorithms in RL Zoo's tables: class, hyperparameter file, search space."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

from storm_rl import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG, STORMPlusPG

if TYPE_CHECKING:
    from optuna import Trial

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "storm_plus_pg": STORMPlusPG,
    "gpomdp": GPOMDP,
    "svrpg": SVRPG,
    "srvrpg": SRVRPG,
    "stormpg": STORMPG,
    "pagepg": PAGEPG,
    "defpg": DEFPG,
}
"""The algorithms by the names that they have in RL Zoo (``--algo``)."""


class MissingExtraError(ImportError):
    """What RL Zoo or the hub needs is not installed."""

    def __init__(self, error: ImportError) -> None:
        super().__init__(f'{error}. RL Zoo and the hub need an extra: pip install "storm-rl[zoo]"', name=error.name)


def hyperparameter_file(algorithm: str) -> Path:
    """The hyperparameters that ship with this package: a default section, and the classic-control tasks.

    Args:
        algorithm: A key of `ALGORITHMS`.

    Raises:
        ValueError: No such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    return Path(__file__).parent / "hyperparams" / f"{algorithm}.yml"


def register() -> None:
    """Add the algorithms to RL Zoo's tables, which all its scripts share. A second call changes nothing.

    RL Zoo has no option for foreign algorithms; its tables are the way in.

    Raises:
        MissingExtraError: RL Zoo is not installed, or something that it needs.
    """
    try:
        from rl_zoo3 import hyperparams_opt, utils
    except ImportError as error:
        raise MissingExtraError(error) from error
    for name, algorithm in ALGORITHMS.items():
        utils.ALGOS[name] = algorithm
        hyperparams_opt.HYPERPARAMS_SAMPLER[name] = functools.partial(sample_hyperparameters, name)
        # Trials hold the constructor's arguments as they are.
        hyperparams_opt.HYPERPARAMS_CONVERTER[name] = dict


def sample_hyperparameters(
    algorithm: str, trial: "Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Constructor arguments for one trial of a search, as RL Zoo asks for them.

    STORM+PG has nothing that must be set; its space holds what an ablation would vary. The family's is learning rate
    and batch sizes, as in the search that is stored with this project, and what tells one sibling from another.

    Args:
        algorithm: A key of `ALGORITHMS`.
        trial: Optuna's trial, which is asked for every value.
        n_actions: Not used; part of RL Zoo's call.
        n_envs: Not used; as above.
        additional_args: Not used; as above.
    """
    if algorithm == "storm_plus_pg":
        return {
            "gamma": trial.suggest_categorical("gamma", [0.95, 0.98, 0.99, 0.995, 0.999]),
            "gae_lambda": trial.suggest_categorical("gae_lambda", [0.9, 0.95, 0.98, 1.0]),
            "ent_coef": trial.suggest_categorical("ent_coef", [0.0, 0.001, 0.01, 0.03]),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
            "critic_steps": trial.suggest_categorical("critic_steps", [40, 80, 160]),
            "reuse_rollouts": trial.suggest_categorical("reuse_rollouts", [1, 2, 4]),
            "max_kl": trial.suggest_float("max_kl", 3e-3, 3e-2, log=True),
        }
    sampled: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True),
        "baseline": trial.suggest_categorical("baseline", ["leave_one_out", "state_value"]),
    }
    if algorithm == "gpomdp":
        return sampled | {"batch_size": trial.suggest_categorical("batch_size", [5, 10, 30])}
    sampled["batch_size"] = trial.suggest_categorical("batch_size", [10, 30, 100])
    sampled["mini_batch_size"] = trial.suggest_categorical("mini_batch_size", [5, 10])
    if algorithm == "srvrpg":
        sampled["epoch_length"] = trial.suggest_categorical("epoch_length", [3, 5, 10])
    if algorithm == "stormpg":
        sampled["momentum"] = trial.suggest_float("momentum", 0.1, 0.9)
    if algorithm in ("pagepg", "defpg"):
        sampled["probability"] = trial.suggest_float("probability", 0.1, 0.9)
    if algorithm == "defpg":
        sampled["defensive"] = trial.suggest_float("defensive", 0.1, 0.9)
    return sampled
