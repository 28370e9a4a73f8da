import json
from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import CONTESTANTS, FAMILY, get_contestant
from agents.build import build_model
from envs import TASKS
from storm_rl import SVRPG
from storm_rl.zoo import ALGORITHMS
from storm_rl.zoo.settings import SETTINGS_FILE, tuned_settings


def test_stored_settings_name_known_algorithms_and_tasks_and_can_be_built() -> None:
    stored = json.loads(SETTINGS_FILE.read_text())
    assert set(stored) <= set(FAMILY)
    for class_name, by_task in stored.items():
        assert set(by_task) <= set(TASKS)
        for task_id, settings in by_task.items():
            model = get_contestant(class_name.lower()).build(task_id, 0, None)
            assert type(model).__name__ == class_name
            assert model.n_envs == 5
            for name, value in settings.items():
                assert getattr(model, name) == value


def test_every_registered_algorithm_is_a_contestant_of_that_name() -> None:
    for name, row in ALGORITHMS.items():
        assert CONTESTANTS[name].build.args == (row.algorithm,)  # type: ignore[attr-defined]
    # Settings, results and options have the class's name, files and commands the one in RL Zoo.
    assert [name.lower() for name in FAMILY] == [name for name in ALGORITHMS if name != "storm_plus_pg"]


def test_arguments_replace_settings() -> None:
    model = build_model(SVRPG, "CartPole-v1", 3, None, batch_size=7, n_envs=2)
    assert vars(model)["batch_size"] == 7
    assert model.n_envs == 2
    assert model.seed == 3


@pytest.mark.parametrize("algorithm", [SVRPG, PPO])
def test_where_nothing_was_searched_for_the_defaults_rule(algorithm: type[BaseAlgorithm]) -> None:
    assert tuned_settings("PPO") == {}
    assert "MountainCar-v1" not in tuned_settings("SVRPG")
    arguments: dict[str, Any] = {"policy": "MlpPolicy", "env": None, "_init_setup_model": False}
    default, model = algorithm(**arguments), build_model(algorithm, "FrozenLake-v1", 0, None)
    assert (model.learning_rate, vars(model)["batch_size"]) == (default.learning_rate, vars(default)["batch_size"])
