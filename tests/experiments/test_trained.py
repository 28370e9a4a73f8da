from pathlib import Path

import imageio.v3 as imageio
import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments import trained
from experiments.cli import app
from experiments.runs import RunSpec, execute, model_path
from experiments.storage import pack
from storm_rl import STORMPlusPG


def test_the_median_seed_is_neither_the_luckiest_nor_chosen_by_hand() -> None:
    rows = pd.DataFrame(
        {
            "seed": [0, 1, 2, 3],
            "steps_to_threshold": [4_000, 9_000, 5_000, 5_000],
            "final_return": [500.0, 500.0, 490.0, 495.0],
        }
    )
    assert trained.median_run(rows)["seed"] == 2
    assert trained.median_run(rows[rows["seed"] != 1])["seed"] == 3


@pytest.mark.slow
def test_agents_are_taken_from_a_study_with_their_cards_and_recorded(tmp_path: Path) -> None:
    spec = RunSpec("storm_plus_pg", "CartPole-v1", 0)
    execute(spec, tmp_path / "study", budget=1_000)
    trained.export_agents(tmp_path / "study", tmp_path / "agents")
    folder = tmp_path / "agents" / "CartPole-v1"
    card = (folder / "README.md").read_text()
    assert "seed 0" in card
    assert "`gamma=0.99`" in card
    assert "stable-baselines3 2" in card
    size = (folder / "model.zip").stat().st_size
    assert size < 150_000
    assert size < model_path(tmp_path / "study", spec).stat().st_size

    # Without the model beside the runs it is trained again, and is the same.
    pack(tmp_path / "study", tmp_path / "packed")
    trained.export_agents(tmp_path / "packed", tmp_path / "again")
    policies = [
        STORMPlusPG.load(tmp_path / name / "CartPole-v1" / "model.zip").policy.state_dict()
        for name in ("agents", "again")
    ]
    assert all((policies[0][name] == policies[1][name]).all() for name in policies[0])

    for suffix in (".gif", ".mp4"):
        film = tmp_path / f"film{suffix}"
        arguments = ["watch", "CartPole-v1", "--model", str(folder / "model.zip"), "--record", str(film)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "return" in result.output
        assert imageio.imread(film, index=0).shape == (400, 600, 3)


def test_film_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").touch()
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4"):
        trained.watch("CartPole-v1", tmp_path / "model.zip", tmp_path / "film.avi", 1, 0)


def test_without_a_display_watching_is_an_error_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    if trained.has_display():
        pytest.skip("a display that needs no variable")
    result = CliRunner().invoke(app, ["watch", "CartPole-v1"])
    assert "there is no display: watch it in a file, `watch CartPole-v1 --record CartPole-v1.gif`" in str(
        result.exception
    )
