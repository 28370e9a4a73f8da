"""Stable-Baselines3's own tests with STORMPlusPG in the place of A2C, as a plugin of pytest.

With a checkout of Stable-Baselines3 beside this repository::

    cd ../stable-baselines3
    PYTHONPATH=../storm-rl:../storm-rl/tests/contract python -m pytest -p sb3_suite -c /dev/null --rootdir . tests

runs those of its tests that are about A2C. docs/sb3_contract.md has the count and what differs on purpose.
"""

import inspect
from typing import Any

import pytest
import stable_baselines3

from storm_rl import STORMPlusPG


class WithLearningRate(STORMPlusPG):
    """Takes A2C's ``learning_rate``, which has another name here: there is nothing but the critic that it is of."""

    def __init__(self, *args: Any, learning_rate: Any = None, **kwargs: Any) -> None:
        if learning_rate is not None:
            kwargs["critic_learning_rate"] = learning_rate
        super().__init__(*args, **kwargs)


stable_baselines3.A2C = WithLearningRate  # type: ignore[misc]


def about_a2c(item: pytest.Item) -> bool:
    """Whether a test has the exchanged class as a parameter or, without a class among them, in its text."""
    callspec, function = getattr(item, "callspec", None), getattr(item, "function", None)
    parameters = list(callspec.params.values()) if callspec else []
    classes = [value for value in parameters if isinstance(value, type)]
    if any(value is WithLearningRate or (isinstance(value, str) and value == "A2C") for value in parameters):
        return True
    return not classes and function is not None and "A2C" in inspect.getsource(function)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other algorithms."""
    config.hook.pytest_deselected(items=[item for item in items if not about_a2c(item)])
    items[:] = [item for item in items if about_a2c(item)]
