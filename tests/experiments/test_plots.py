from pathlib import Path
from typing import Any

from agents.ablations import ABLATIONS
from envs import get_task
from experiments.plots import learning_curves
from experiments.storage import load_runs


def test_learning_curves_of_more_agents_than_there_are_styles_of_line(tmp_path: Path, store: Any) -> None:
    for agent in ABLATIONS:
        store(agent, "CartPole-v1", 0, 20_000)
    runs: dict[str, list[dict[str, Any]]] = {}
    for record in load_runs(tmp_path / "study").values():
        runs.setdefault(record["agent"], []).append(record)
    assert len(runs) == len(ABLATIONS)
    path = tmp_path / "curves.png"
    learning_curves(get_task("CartPole-v1"), runs, path)
    assert path.read_bytes().startswith(b"\x89PNG")
