from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import action_bounds


@pytest.mark.parametrize("bounds", action_bounds.BOUNDS)
def test_the_task_is_the_same_in_all_bounds(bounds: str) -> None:
    env, unit = action_bounds.make("Aim", bounds), action_bounds.make("Aim", action_bounds.UNIT)
    low, high = env.action_space.low, env.action_space.high
    env.reset(seed=0)
    unit.reset(seed=0)
    for share in np.linspace(0.0, 1.0, 5):
        step = env.step((low + share * (high - low)).astype(np.float32))
        same = unit.step(np.full(2, 2.0 * share - 1.0, np.float32))
        assert step[1] == pytest.approx(same[1], rel=1e-4, abs=1e-6)


def test_a_row_for_each_run_and_finished_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, str, int, int]] = []
    monkeypatch.setattr(action_bounds, "train", lambda *run: trained.append(run) or -10.0 - run[2])
    arguments = ["action-bounds", "--output", str(tmp_path), "--seeds", "2", "--steps", "64"]
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(trained) == len(set(trained)) == 2 * 4 * 2
    assert "| [0, 1000] | -10.5 (1.00) | -10.5 (1.00) |" in (tmp_path / "action_bounds.md").read_text()
