from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.ablations import ABLATIONS
from experiments.cli import app
from experiments.studies import ablations


def test_every_ablation_is_a_row_and_the_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: ABLATIONS[name] for name in list(ABLATIONS)[:2]}
    monkeypatch.setattr(ablations, "ABLATIONS", few)
    monkeypatch.setattr(ablations, "BUDGETS", {"CartPole-v1": 1_000})
    arguments = ["ablations", "--output", str(tmp_path), "--seeds", "1", "--workers", "1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    table = (tmp_path / "ablations.md").read_text()
    assert "| variant | CartPole-v1 (1k) |" in table
    for name in ("default", *few.values()):
        assert f"| {name} | - (0." in table
    assert len(list((tmp_path / "CartPole-v1" / "raw").glob("*__batched.json.gz"))) == 3
