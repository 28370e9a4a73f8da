"""The study of adaptation: what its meta-gradients cost and how wrong they are, equal budgets, rows that stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import adaptation, implicit_gradient

COMMAND = ["adaptation", "--seeds", "1", "--family", "cart-poles", "--updates", "1", "--output"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "N_TASKS", 2)
    monkeypatch.setattr(adaptation, "EPISODES", 2)
    monkeypatch.setattr(adaptation, "TASKS", {"validation": (2, 1_000_000), "held out": (3, 2_000_000)})
    kinds = (("implicit", 2e6), ("first-order", None), ("through the path", 3e6))
    rows = [
        {"gradient": name, "inner_steps": steps, "error": 0.1 / steps, "saved_bytes": saved}
        for steps in (1, 2)
        for name, saved in kinds
    ]
    monkeypatch.setattr(implicit_gradient, "measure", lambda report: rows)


def test_an_implicit_gradient_saves_no_more_for_more_steps_and_one_through_the_path_does() -> None:
    problems, start = implicit_gradient.cart_pole_problems(n_tasks=2, copies=2, horizon=10)
    implicit = [implicit_gradient.implicit(problems, start, steps).saved for steps in (1, 2, 6)]
    through = [implicit_gradient.through_the_path(problems, start, steps).saved for steps in (1, 2, 6)]
    assert implicit[0] == implicit[1] == implicit[2] > 0
    # Equally more for each step.
    assert through[2] - through[1] == 4 * (through[1] - through[0]) > 0


def test_saved_tensors_are_counted_while_they_are_held() -> None:
    x = torch.ones(10, dtype=torch.float64, requires_grad=True)
    with implicit_gradient.SavedTensors() as saved:
        for _ in range(3):
            y = (x * x).sum()  # Saves x twice; the product before is given up.
        assert saved.now == 160
        del y
    assert saved.now == 0
    assert saved.most == 320


def test_the_error_falls_with_the_inner_steps() -> None:
    problems = implicit_gradient.mdp_problems(implicit_gradient.inner_mdps(2))
    start = 0.5 * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = implicit_gradient.differences(problems, start)
    errors = [
        float((implicit_gradient.implicit(problems, start, steps).gradients - exact).norm() / exact.norm())
        for steps in (1, 4, 16)
    ]
    assert errors[0] > 10.0 * errors[1] > 100.0 * errors[2]
    first_order = implicit_gradient.first_order(problems, start, 16)
    assert float((first_order - exact).norm() / exact.norm()) > 0.1
    through = implicit_gradient.through_the_path(problems, start, 40).gradients
    assert float((through - exact).norm() / exact.norm()) < 0.01


@pytest.mark.usefixtures("small")
def test_rows_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, [*COMMAND, str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "adaptation.csv")
    assert len(rows) == len(adaptation.STARTS) * 2 * len(adaptation.RULES) * (adaptation.STEPS + 1)
    steps = rows.groupby(["start", "seed"])["env_steps"].first().unstack("start")
    assert (steps["from scratch"] == 0).all()
    assert (steps["joint policy"] >= steps["implicit MAML"]).all()
    # By no more than an update of the joint policy.
    most = 2 * adaptation.SETTINGS["cart-poles"]["episodes"] * 200
    assert (steps["joint policy"] < steps["implicit MAML"] + most).all()
    text = (tmp_path / "adaptation.md").read_text()
    assert "| cart-poles | implicit MAML |" in text
    assert "| cart-poles | from scratch |" in text
    assert (tmp_path / "adaptation.png").exists()
    assert (tmp_path / "gradients.png").exists()
    assert "| 2 | 5.0e-02 | 5.0e-02 | 5.0e-02 | 2.0 | 3.0 |" in text
    monkeypatch.setattr(implicit_gradient, "measure", lambda _: pytest.fail("measured again"))
    monkeypatch.setattr(adaptation, "make", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, [*COMMAND, str(tmp_path)]).exit_code == 0
    assert (tmp_path / "adaptation.md").read_text() == text


def test_the_rule_is_chosen_on_validation_tasks_and_reported_on_others() -> None:
    rows: list[dict[str, Any]] = [
        {"family": "f", "start": "s", "seed": seed, "tasks": tasks, "rule": rule, "step": 3, "return": value}
        for seed in (0, 1)
        for tasks, rule, value in (
            ("validation", "proximal", 10.0),
            ("validation", "0.1 nats", 9.0),
            ("held out", "proximal", 1.0),
            ("held out", "0.1 nats", 20.0),
        )
    ]
    chosen = adaptation.chosen_rules(pd.DataFrame(rows))
    np.testing.assert_array_equal(chosen["return"], [1.0, 1.0])


def test_a_difference_is_bold_only_where_its_interval_leaves_0_out() -> None:
    def cell(*values: float, difference: bool = True) -> str:
        return adaptation._cell(pd.DataFrame({"seed": range(len(values)), "step": 1, "return": values}), 1, difference)

    assert cell(5.0, 5.0) == "**5 [5, 5]**"
    assert cell(-5.0, -5.0) == "**-5 [-5, -5]**"
    assert cell(0.2, 0.2) == "**0 [0, 0]**"
    assert cell(-1.0, 3.0) == "1 [-1, 3]"
    assert cell(5.0) == "5 [nan, nan]"
    assert cell(5.0, 5.0, difference=False) == "5 [5, 5]"


def test_measured_rows_hold_every_gradient_and_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = implicit_gradient.cart_pole_problems(n_tasks=2, copies=2, horizon=5)
    monkeypatch.setattr(implicit_gradient, "STEPS", (1,))
    monkeypatch.setattr(implicit_gradient, "differences", lambda problems, start: torch.ones_like(start))
    monkeypatch.setattr(implicit_gradient, "cart_pole_problems", lambda: networks)
    reported: list[float] = []
    rows = implicit_gradient.measure(reported.append)
    assert [row["gradient"] for row in rows] == ["implicit", "first-order", "through the path"]
    assert [bool(row["saved_bytes"]) for row in rows] == [True, False, True]
    assert reported == [1]


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["adaptation", "--family", "acrobots", "--output", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "unknown family 'acrobots'; known: cart-poles" in str(result.exception)
