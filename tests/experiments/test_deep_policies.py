"""The study of deep policies: rows stay, tables and figures are made, memory is that of a process of its own."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import deep_policies


@pytest.mark.slow
def test_rows_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minatar")
    command = ["deep-policies", "--depth", "2", "--depth", "24", "--steps", "1024", "--seeds", "1"]
    command += ["--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert len(curves) == 2 * 4 * 2 * 10
    assert curves["return"].notna().sum() > 40
    memory = pd.read_csv(tmp_path / "memory.csv").set_index(["task", "network", "depth"])["bytes"]
    for task in deep_policies.TASKS:
        grown = {name: memory[task, name, 24] - memory[task, name, 2] for name in ("ResNet", "Momentum ResNet")}
        assert grown["ResNet"] > 2 * grown["Momentum ResNet"]
    report = (tmp_path / "deep_policies.md").read_text()
    assert "| CartPole-v1 | 24 |" in report
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "depths.png").exists()
    monkeypatch.setattr(deep_policies, "trained", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(deep_policies, "peak_memory", lambda *_: pytest.fail("measured again"))
    assert CliRunner().invoke(app, command).exit_code == 0
