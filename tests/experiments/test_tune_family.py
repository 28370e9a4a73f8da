from pathlib import Path

import numpy as np
import pytest

from agents.family import FAMILY
from envs import get_task
from experiments.studies import tune_family


def test_every_algorithm_has_as_many_settings_as_the_others() -> None:
    assert {len(tune_family.grid(algorithm)) for algorithm in FAMILY} == {18}


def test_a_trial_is_not_repeated_and_its_row_says_how_it_went(tmp_path: Path) -> None:
    task, settings = get_task("CartPole-v1"), {"batch_size": 5}
    row = tune_family.Results(task, tmp_path).get("GPOMDP", settings, 0, 5_000)
    again = tune_family.Results(task, tmp_path).get("GPOMDP", settings, 0, 5_000)
    assert again["seconds"] == row["seconds"]
    assert 0.0 < row["score"] <= 1.0
    assert row["error"] == ""


def test_a_failing_setting_scores_nothing_and_does_not_stop_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a weight overflows")

    monkeypatch.setattr("storm_rl.common.trajectory_algorithm.TrajectoryAlgorithm.train", fail)
    row = tune_family.trial("SVRPG", get_task("CartPole-v1"), {}, 0, 5_000)
    assert row["score"] == 0.0
    assert "overflows" in row["error"]


def test_search_prefers_the_better_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(algorithm: str, task: object, settings: dict, seed: int, budget: int) -> dict:
        return {
            "algorithm": algorithm,
            "settings": tune_family.json.dumps(settings, sort_keys=True),
            "seed": seed,
            "budget": budget,
            "score": settings["learning_rate"] + settings["batch_size"] / 1000 + (settings["baseline"] == "none"),
        }

    monkeypatch.setattr(tune_family, "trial", scored)
    results = tune_family.Results(get_task("CartPole-v1"), tmp_path)
    winner = tune_family.search("SVRPG", results, 1_000)
    assert winner["learning_rate"] == max(tune_family.LEARNING_RATES)
    assert winner["batch_size"] == 100
    assert len(results.rows) == 18 + 2 * tune_family.FINALISTS
    assert np.isfinite([row["score"] for row in results.rows]).all()
