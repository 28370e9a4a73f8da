from pathlib import Path
from typing import Any

from agents.ablations import ABLATIONS
from experiments.plots import png
from experiments.report.figures import learning_curves
from experiments.report.study import Study
from experiments.storage import load_runs


def test_learning_curves_of_more_agents_than_there_are_styles_of_line(tmp_path: Path, store: Any) -> None:
    for agent in ABLATIONS:
        store(agent, "CartPole-v1", 0, 20_000)
    study = Study.of(load_runs(tmp_path / "study"))
    assert len(study.variants) == len(ABLATIONS)
    assert png(learning_curves(study, study.variants, study.variants)).startswith(b"\x89PNG")
