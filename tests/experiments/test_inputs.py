"""The study of the inputs that matter: known supports are found, rows stay, tables and figure are made."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import inputs


@pytest.mark.slow
def test_rows_tables_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "EPISODES", 1)
    monkeypatch.setattr(inputs, "DESIGNS", ((0.0, 50.0),))
    monkeypatch.setattr(inputs, "COLUMNS", 6)
    command = ["inputs", "--task", "CartPole-v1", "--task", "Pendulum-v1", "--states", "40", "--seeds", "1"]
    command += ["--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    entries = pd.read_csv(tmp_path / "entries.csv")
    assert len(entries) == 2 * (4 + 3)
    for _, group in entries.groupby(["task", "target"]):
        assert group["r2"].is_monotonic_increasing
        assert group["chosen"].sum() == 1
    # The policy that sees everything is the trained agent.
    assert entries.set_index(["task", "target", "size"])["return"]["CartPole-v1", "action", 4] == 500.0
    recovery = pd.read_csv(tmp_path / "recovery.csv").set_index("method")
    assert recovery.loc[["best subset", "whitened"], "exact"].all()
    assert (recovery["found"] == 3).all()
    assert (tmp_path / "inputs.png").exists()
    report = (tmp_path / "inputs.md").read_text()
    assert "| CartPole-v1 | 4 | " in report
    assert "3.0 / 0.0 / 1.00" in report
    monkeypatch.setattr(inputs, "explained", lambda *_: pytest.fail("explained again"))
    monkeypatch.setattr(inputs, "recovered", lambda *_: pytest.fail("recovered again"))
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_task_without_a_trained_agent_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inputs", "--task", "LunarLander-v3", "--output", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "no trained agent of LunarLander-v3" in str(result.exception)
