"""The study of saddles: where they are, when they are left, and rows that stay."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import saddles


@pytest.mark.parametrize("name", saddles.PROBLEMS)
def test_runs_begin_near_a_saddle_and_above_the_goal(name: str) -> None:
    make, sizes, _ = saddles.PROBLEMS[name]
    problem = make(sizes[0], torch.Generator().manual_seed(0))
    at_saddle = torch.zeros_like(problem.start)
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(problem.loss, at_saddle))
    assert torch.autograd.functional.jacobian(problem.loss, at_saddle).abs().max() < 1e-12
    assert eigenvalues[0] <= -2 * saddles.ESCAPE["min_curvature"]
    assert eigenvalues[-1] > 0.0
    assert problem.loss(problem.start) > problem.goal


def test_the_goal_is_half_of_the_least_value() -> None:
    problem = saddles.near(10, torch.Generator().manual_seed(0))
    least = min(float(problem.loss(torch.eye(10, dtype=torch.float64)[0] * x)) for x in torch.linspace(0, 1, 1_001))
    assert problem.goal == pytest.approx(least / 2, rel=1e-9)


def test_gradients_of_searches_are_counted() -> None:
    problem = saddles.from_afar(10, torch.Generator().manual_seed(0))
    with_escape = saddles.leave(problem, "gradient descent", True, 500)
    assert saddles.leave(problem, "gradient descent", False, 500) == (500, False, 0)
    assert with_escape[1:] == (True, 1)
    # One step to a small gradient, a search of a few, one at its end, and descent.
    assert 5 < with_escape[0] < 100


def test_rows_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: (make, (4,), label) for name, (make, _, label) in saddles.PROBLEMS.items()}
    monkeypatch.setattr(saddles, "PROBLEMS", sizes)
    command = ["saddles", "--output", str(tmp_path), "--seeds", "2", "--most", "12"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "saddles.csv")
    assert len(rows) == 3 * 4 * 2 * 2
    text = (tmp_path / "saddles.md").read_text()
    # One start of gradient descent may get there with the escape, none without.
    assert "| near the saddle | 4 | - (0 of 2) / " in text
    assert (tmp_path / "saddles.png").exists()
    monkeypatch.setattr(saddles, "leave", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, command).exit_code == 0
