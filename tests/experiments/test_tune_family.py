import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents import FAMILY
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

    monkeypatch.setattr("storm_rl.episodic.episodic_algorithm.EpisodicAlgorithm.train", fail)
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


def test_table_shows_the_winner_of_the_second_round(tmp_path: Path) -> None:
    def row(rate: float, seed: int, score: float, steps: float) -> dict[str, object]:
        settings = json.dumps({"learning_rate": rate, "batch_size": 10, "mini_batch_size": 5, "baseline": "none"})
        names = ("algorithm", "settings", "seed", "score", "steps_to_threshold", "last_return")
        return dict(zip(names, ("SVRPG", settings, seed, score, steps, 480.0), strict=True))

    rows = [row(0.1, 100, 0.9, 1000.0)]  # The first round's winner, worse in the second.
    rows += [
        row(0.1, 101, 0.2, np.nan),
        row(0.1, 102, 0.4, np.nan),
        row(0.2, 101, 0.5, 7000.0),
        row(0.2, 102, 0.5, np.nan),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "CartPole-v1.csv", index=False)
    (line,) = [line for line in tune_family.table(tmp_path).splitlines() if line.startswith("| CartPole")]
    assert line == "| CartPole-v1 | SVRPG | 0.2 | 10/5 | none | 0.50 | 7,000, - | 480, 480 |"
