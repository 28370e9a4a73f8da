"""This package's algorithms in RL Zoo's tables."""

import functools

from storm_rl.zoo.algorithms import ALGORITHMS, sample_hyperparameters


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
