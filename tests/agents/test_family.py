import json

import pytest

from agents.family import FAMILY, SETTINGS_FILE, algorithm_class, build_family, tuned_settings
from envs import TASKS


def test_stored_settings_name_known_algorithms_and_tasks_and_can_be_built() -> None:
    stored = json.loads(SETTINGS_FILE.read_text())
    assert set(stored) <= set(FAMILY)
    for algorithm, by_task in stored.items():
        assert set(by_task) <= set(TASKS)
        for task_id, settings in by_task.items():
            model = build_family(algorithm, task_id, 0, None)
            assert type(model) is algorithm_class(algorithm)
            for name, value in settings.items():
                assert getattr(model, name) == value


def test_arguments_replace_settings() -> None:
    model = build_family("SVRPG", "CartPole-v1", 3, None, batch_size=7, n_envs=2)
    assert vars(model)["batch_size"] == 7
    assert model.n_envs == 2
    assert model.seed == 3


def test_unknown_names() -> None:
    assert tuned_settings("SVRPG", "NoSuchTask-v0") == {}
    with pytest.raises(ValueError, match="unknown algorithm"):
        algorithm_class("TRPO")
