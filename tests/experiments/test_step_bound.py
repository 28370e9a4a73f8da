from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies.step_bound import HALVES, summary


def test_updates_until_the_threshold_and_after_it_are_told_apart() -> None:
    steps = [512, 1024, 1536, 2048, 2560]
    log = {tag: pd.Series([5.0, 1.0, 3.0, 8.0, 9.0], index=steps) for tag, _ in HALVES.values()}
    log["train/step_bound"] = pd.Series([1.0, 0.0, 0.0, 0.0, 1.0], index=steps)
    log["train/statistics_kl"] = pd.Series([0.7, 0.1, 0.3, 0.2, 0.1], index=steps)
    row = summary(log, 1536)
    assert (row["bound_before"], row["bound_after"]) == (pytest.approx(1 / 3), 0.5)
    assert (row["momentum_before"], row["momentum_after"]) == (3.0, 8.5)
    assert (row["first_statistics_kl"], row["largest_later_statistics_kl"], row["largest_kl"]) == (0.7, 0.3, 9.0)
    # A threshold that was never reached counts as the budget.
    assert summary(log, 2560)["kl_before"] == 5.0


@pytest.mark.slow
def test_a_run_is_a_row_and_one_without_its_log_an_error(tmp_path: Path) -> None:
    command = ["benchmark", "--agent", "storm_plus_pg", "--task", "CartPole-v1", "--seeds", "1", "--budget", "1500"]
    assert CliRunner().invoke(app, [*command, "--workers", "1", "--output", str(tmp_path)]).exit_code == 0
    result = CliRunner().invoke(app, ["step-bound", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (row,) = pd.read_csv(tmp_path / "step_bound.csv").to_dict("records")
    assert (row["task"], row["seed"], row["steps_to_threshold"]) == ("CartPole-v1", 0, 1500)
    assert 0.0 < row["kl_before"] <= row["largest_kl"]
    (tmp_path / "tensorboard" / "CartPole-v1").rename(tmp_path / "elsewhere")
    result = CliRunner().invoke(app, ["step-bound", "--results", str(tmp_path)])
    assert "expected one TensorBoard log" in str(result.exception)
