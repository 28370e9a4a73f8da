"""The actors' study: a simulation that is right where the answer is known, and rows that stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.rows import Rows

pytest.importorskip("ray")

from experiments.studies.actors import faults, limits, speed, study
from experiments.studies.actors.limits import Learner, simulate

TRANSITIONS = limits.N_STEPS * limits.WIDTH


@pytest.mark.parametrize("rollout_seconds", [0.01, 0.5])
def test_one_actor_works_while_its_learner_does(rollout_seconds: float) -> None:
    learner = Learner(taking=(0.02, 0.001), learning=(0.1, 0.01))
    row = simulate(1, learner, [rollout_seconds])
    # From one arrival to the next: both begin when it is taken in, and the later one counts.
    cycle = 0.001 + max(rollout_seconds, 0.02 + 0.1 + 0.01)
    assert row["rate"] == pytest.approx(TRANSITIONS / cycle)
    assert row["busy"] == pytest.approx((0.001 + 0.13) / cycle)
    assert row["age"] == 1.0


def test_many_actors_are_bound_by_the_learner_and_few_by_themselves() -> None:
    learner = Learner(taking=(0.0, 0.001), learning=(0.1, 0.01))
    few, many = (simulate(n_actors, learner, [10.0]) for n_actors in (4, 1000))
    assert few["rate"] == pytest.approx(4 * TRANSITIONS / 10.0, rel=0.02)
    assert few["busy"] < 0.05
    assert many["rate"] == pytest.approx(TRANSITIONS / 0.011, rel=0.02)
    assert many["busy"] == pytest.approx(1.0, abs=0.02)


def test_actors_of_unequal_speed_have_older_rollouts() -> None:
    learner = Learner(taking=(0.0, 0.0), learning=(0.01, 0.0))
    equal, unequal = simulate(8, learner, [1.0]), simulate(8, learner, [0.1] * 9 + [9.0])
    assert equal["oldest"] == 1.0
    assert unequal["oldest"] > 2.0
    # Little's law: as many rollouts are under way as a round has.
    assert unequal["age"] == pytest.approx(1.0, rel=0.15)


def test_fit_finds_the_line_that_times_are_on() -> None:
    actors = [1, 4, 64, 256]
    learner = Learner.fitted(actors, [0.02 + 0.003 * n for n in actors], [0.2 + 0.01 * n for n in actors])
    np.testing.assert_allclose(np.array(learner), [[0.02, 0.003], [0.2, 0.01]], rtol=1e-9)


def test_learner_is_timed_on_rollouts_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[Any] = []
    monkeypatch.setattr(limits.ray, "put", lambda value: stored.append(value) or len(stored) - 1)
    monkeypatch.setattr(limits.ray, "get", stored.__getitem__)
    monkeypatch.setattr(limits, "ROUNDS", 2)
    monkeypatch.setattr(limits, "N_STEPS", 16)
    rows = limits.learner_times(3)
    assert [row["transitions"] for row in rows] == [96, 96]
    assert all(row["taking"] > 0.0 and row["learning"] > 0.0 for row in rows)


def test_finished_rows_stay_and_all_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def speeds(missing: list[tuple[str, int]], add: Any) -> None:
        for number, (name, repeat) in enumerate(missing):
            add({"configuration": name, "repeat": repeat, "rate": 100.0 + number})

    def learned(mode: str, seed: int) -> dict[str, Any]:
        return {"mode": mode, "seed": seed, "reached": True, "steps": 9_000.0 + 1_024 * seed, "age": 1.0}

    def learner_times(n_actors: int) -> list[dict[str, Any]]:
        return [{"actors": n_actors, "repeat": 0, "transitions": 128 * n_actors, "taking": 0.1, "learning": 0.2}]

    def actor_times(environment: str, n_rollouts: int) -> list[dict[str, Any]]:
        return [{"environment": environment, "repeat": 0, "seconds": 0.6}]

    def killed(folder: Path, seed: int) -> dict[str, Any]:
        return {"seed": seed, "actor_kills": 4, "learner_kills": 1, "steps": 64, "expected": 64, "orphans": 0}

    fakes = {
        "speeds": speed,
        "learned": speed,
        "learner_times": limits,
        "actor_times": limits,
        "killed": faults,
    }
    for name, module in fakes.items():
        monkeypatch.setattr(module, name, locals()[name])
    # What is stored of a comparison whose code is gone.
    (tmp_path / "engines.csv").write_text("engine,bytes,repeat,milliseconds\nRay,50000,0,1.5\n")
    command = ["actors", "--seeds", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "actors.md").read_text()
    assert "| DummyVecEnv of 8 | 105 | 100 | 110 | 1.00 |" in text
    assert "asynchronous / synchronous, medians: 1.00" in text
    assert "| Ray | 50000 | 1.5 | 1.5 | 1.5 |" in text
    assert "| 4 | 4 | 1 | 64 | 64 | 0 |" in text
    assert (tmp_path / "actors.png").exists()
    for name, module in fakes.items():
        if name != "speeds":
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("measured again"))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(pd.read_csv(tmp_path / "speed.csv")) == 3 * len(speed.CONFIGURATIONS)
    assert Rows(tmp_path / "learning.csv", ("mode", "seed")).get("asynchronous", 2) is not None
    assert study.MODES == ("synchronous", "asynchronous")
