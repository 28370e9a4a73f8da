from pathlib import Path
from typing import Any

from agents.ablations import ABLATIONS
from experiments.plots import INK, new_figure, png, svg
from experiments.report.figures import learning_curves
from experiments.report.study import Study
from experiments.storage import load_runs


def test_learning_curves_of_more_agents_than_there_are_styles_of_line(tmp_path: Path, store: Any) -> None:
    for agent in ABLATIONS:
        store(agent, "CartPole-v1", 0, 20_000)
    study = Study.of(load_runs(tmp_path / "study"))
    assert len(study.variants) == len(ABLATIONS)
    assert png(learning_curves(study, study.variants, study.variants)).startswith(b"\x89PNG")


def test_an_svg_takes_the_readers_ink_and_is_the_same_each_time() -> None:
    def drawn(width: float = 3.0) -> str:
        figure, (axes,) = new_figure(1, 1, (width, 2))
        axes.set_title("title 1.0375")
        axes.plot([0, 1], [0, 1], color=INK)
        return svg(figure).decode()

    text = drawn()
    # The layout may differ in its last digits, of which matplotlib makes names.
    assert text == drawn() == drawn(3.0 + 1e-9)
    assert INK not in text.replace("svg { color: #5a5e63 }", "")
    assert "prefers-color-scheme: dark" in text
    assert ">title 1.0375</text>" in text
