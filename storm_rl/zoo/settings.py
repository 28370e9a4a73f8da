"""Hyperparameters for RL Zoo, made from the settings that the study ``tune-family`` found."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from storm_rl.zoo.algorithms import MissingExtraError, get_algorithm

SETTINGS_FILE = Path(__file__).with_name("tuned_settings.json")
"""What the search found: by class name and environment, the constructor arguments that differ from the defaults."""

_N_TIMESTEPS = {  # The benchmark's budgets, which a wheel does not hold.
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "MountainCar-v0": 200_000,
    "MountainCarContinuous-v0": 60_000,
    "Pendulum-v1": 150_000,
}


def tuned_settings(class_name: str) -> dict[str, dict[str, Any]]:
    """The arguments found for a class, as ``"SVRPG"``, by environment; none where none were searched for."""
    # Read anew each time: a search in the same process may have written it.
    return json.loads(SETTINGS_FILE.read_text(encoding="utf-8")).get(class_name, {})  # type: ignore[no-any-return]


def hyperparameters(algorithm: str) -> dict[str, dict[str, Any]]:
    """What RL Zoo reads: a default section, and one for each environment with a budget or settings of its own."""
    row = get_algorithm(algorithm)
    tuned = tuned_settings(row.algorithm.__name__)
    return {
        section: {
            "n_envs": row.n_envs,
            "n_timesteps": _N_TIMESTEPS.get(section, 1_000_000),
            "policy": "MlpPolicy",
            **tuned.get(section, {}),
        }
        for section in dict.fromkeys(("default", *_N_TIMESTEPS, *tuned))
    }


def hyperparameter_file(algorithm: str) -> Path:
    """`hyperparameters` as a YAML file for RL Zoo's ``-conf``, to be read or copied until this process ends.

    Raises:
        MissingExtraError: PyYAML, which comes with RL Zoo, is not installed.
        ValueError: ``algorithm`` is no key of `ALGORITHMS`.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(error) from error
    path = Path(_folder().name) / f"{algorithm}.yml"
    path.write_text(yaml.safe_dump(hyperparameters(algorithm), sort_keys=False), encoding="utf-8")
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="storm-rl-")
