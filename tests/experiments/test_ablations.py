from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from agents.ablations import ABLATIONS
from experiments.cli import app
from experiments.studies import ablations


@pytest.mark.slow
def test_every_ablation_is_a_row_and_the_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: ABLATIONS[name] for name in list(ABLATIONS)[:2]}
    monkeypatch.setattr(ablations, "ABLATIONS", few)
    monkeypatch.setattr(ablations, "BUDGETS", {"CartPole-v1": 1_000})
    arguments = ["ablations", "--output", str(tmp_path), "--seeds", "1", "--workers", "1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    table = (tmp_path / "ablations.md").read_text()
    assert (
        "| variant | CartPole-v1 (1k) | reached | times the default's steps | evaluations less the default's |" in table
    )
    for name in ("default", *few.values()):
        assert f"| {name} | - (1 never), 0." in table
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "CartPole-v1" / "raw").glob("*__batched.json.gz"))) == 3


def measures(agent: str, steps: list[float], scores: list[float]) -> pd.DataFrame:
    rows = pd.DataFrame(
        {"steps_to_threshold": steps, "evaluation_score": scores, "agent": agent, "task": "CartPole-v1"}
    )
    return rows.assign(reached=rows["steps_to_threshold"] < 15_000, seed=range(len(rows)), budget=15_000)


def test_cells_say_how_many_never_reached_it_and_which_differences_are_no_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worse, level = list(ABLATIONS)[:2]
    monkeypatch.setattr(ablations, "ABLATIONS", {worse: ABLATIONS[worse], level: ABLATIONS[level]})
    monkeypatch.setattr(ablations, "BUDGETS", {"CartPole-v1": 15_000})
    scores = [0.8, 0.81, 0.82, 0.83, 0.84]
    rows = [
        measures("storm_plus_pg", [4_000, 4_000, 5_000, 6_000, 9_000], scores),
        measures(worse, [5_000, 9_000, 15_000, 15_000, 15_000], [0.1, 0.2, 0.3, 0.4, 0.5]),
        measures(level, [1_000, 2_500, 2_500, 15_000, 15_000], scores),
    ]
    lines = ablations.summary({"CartPole-v1": pd.concat(rows)}).splitlines()
    assert lines[-3:] == [
        "| default | 5, 0.82 ± 0.01 | 5 of 5 |  |  |",
        f"| {ABLATIONS[worse]} | - (3 never), **0.30 ± 0.07** | 2 of 5 | 2.04 (1.50 to 2.76) "
        "| -0.520 (-0.645 to -0.395) |",
        f"| {ABLATIONS[level]} | 2.5 (2 never), 0.82 ± 0.01 | 3 of 5 | 0.80 (0.35 to 1.81) "
        "| +0.000 (+0.000 to +0.000) |",
    ]
    assert "5 seeds." in lines[2]


def test_only_some_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[str]] = []
    monkeypatch.setattr(ablations, "run_specs", lambda agents, *_, **__: wanted.append(agents) or [])
    name = next(iter(ABLATIONS))
    CliRunner().invoke(app, ["ablations", "--output", str(tmp_path), "--variant", name])
    assert wanted[0] == ["storm_plus_pg", name]
