"""The certificates' study: rows that stay, and a table whose certified shares are below the attacked ones."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import certify

TASKS = ["--task", "CartPole-v1", "--task", "MountainCarContinuous-v0"]


@pytest.mark.slow
def test_rows_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "RADII", (0.02, 0.5))
    monkeypatch.setattr(certify, "EPISODES", 1)
    command = ["certify", *TASKS, "--seeds", "1", "--agent", "ppo_zoo", "--states", "3", "--steps", "64"]
    command += ["--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "certify.csv")
    assert len(rows) == 2 * 2 * 2
    assert set(rows["agent"]) == {"trained", "ppo_zoo"}
    discrete = rows["task"] == "CartPole-v1"
    assert (rows["certified"] <= rows["attacked"])[discrete].all()
    assert (rows["certified"] >= rows["attacked"])[~discrete].all()
    assert (tmp_path / "certify.png").exists()
    assert "| CartPole-v1 | trained |" in (tmp_path / "certify.md").read_text()
    monkeypatch.setattr(certify, "measured", lambda *_: pytest.fail("measured again"))
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_task_without_a_trained_agent_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["certify", "--task", "LunarLander-v3", "--output", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "no trained agent of LunarLander-v3" in str(result.exception)
