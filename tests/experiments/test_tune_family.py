import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents import FAMILY
from envs import get_task
from experiments.rows import Rows
from experiments.studies import tune_family


def test_every_algorithm_has_as_many_settings_as_the_others() -> None:
    assert {len(tune_family.grid(algorithm)) for algorithm in FAMILY} == {18}


def test_a_trial_is_not_repeated_and_its_row_says_how_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_family, "grid", lambda _: [{"batch_size": 5}])
    task, path = get_task("CartPole-v1"), tmp_path / "CartPole-v1.csv"
    assert tune_family.search("GPOMDP", task, Rows(path, tune_family.KEY), 5_000) == {"batch_size": 5}
    before = path.read_bytes()
    assert tune_family.search("GPOMDP", task, Rows(path, tune_family.KEY), 5_000) == {"batch_size": 5}
    assert path.read_bytes() == before
    rows = pd.read_csv(path, keep_default_na=False)
    assert rows["seed"].tolist() == [100, 101, 102]
    assert rows["budget"].tolist() == [2_500, 5_000, 5_000]
    assert rows["score"].between(0.0, 1.0, inclusive="right").all()
    assert rows["error"].tolist() == [""] * 3


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
    rows = Rows(tmp_path / "CartPole-v1.csv", tune_family.KEY)
    winner = tune_family.search("SVRPG", get_task("CartPole-v1"), rows, 1_000)
    assert winner["learning_rate"] == max(tune_family.LEARNING_RATES)
    assert winner["batch_size"] == 100
    assert len(rows.table()) == 18 + 2 * tune_family.FINALISTS
    assert np.isfinite(rows.table()["score"]).all()


def test_winners_go_into_the_file_of_settings_and_leave_the_others_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_family, "search", lambda *_: {"learning_rate": 0.5})
    monkeypatch.setattr(tune_family, "table", lambda _: "")
    stored = {"SVRPG": {"Acrobot-v1": {"learning_rate": 0.1}}}
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    tune_family.tune_family(["SVRPG"], ["CartPole-v1"], 1_000, tmp_path, tmp_path / "settings.json")
    stored["SVRPG"]["CartPole-v1"] = {"learning_rate": 0.5}
    assert json.loads((tmp_path / "settings.json").read_text()) == stored
    tune_family.tune_family(["SVRPG"], ["CartPole-v1"], 1_000, tmp_path, None)
    beside = json.loads((tmp_path / "tuned_settings.json").read_text())
    assert beside == {"SVRPG": {"CartPole-v1": {"learning_rate": 0.5}}}


def test_table_shows_the_winner_of_the_second_round(tmp_path: Path) -> None:
    def row(rate: float, seed: int, score: float, steps: float) -> dict[str, object]:
        settings = json.dumps({"learning_rate": rate, "batch_size": 10, "mini_batch_size": 5, "baseline": "none"})
        names = ("algorithm", "settings", "seed", "budget", "score", "steps_to_threshold", "last_return")
        return dict(zip(names, ("SVRPG", settings, seed, 1_000, score, steps, 480.0), strict=True))

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
