import dataclasses
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from agents import CONTESTANTS, Contestant
from agents.ablations import ABLATIONS
from envs import TASKS, Task
from experiments.cli import app
from experiments.report import figures, tables
from experiments.report.command import BEGIN, END, build, report, rewrite
from experiments.report.page import markdown_table
from experiments.report.study import Study
from experiments.storage import load_runs, pack

Store = Callable[..., Path]
HITS = {
    ("storm_plus_pg", "CartPole-v1"): [4_000, 5_000, 6_000],
    ("ppo_zoo", "CartPole-v1"): [12_000, 20_000, None],
    ("storm_plus_pg", "Acrobot-v1"): [10_000, 10_000, 10_000],
    ("ppo_zoo", "Acrobot-v1"): [20_000, 20_000, 30_000],
    ("svrpg", "CartPole-v1"): [40_000, 50_000, 60_000],
}


@pytest.fixture
def folder(store: Store) -> Path:
    for (agent, task), hits in HITS.items():
        for seed, hit in enumerate(hits):
            path = store(agent, task, seed, hit)
    for seed in range(2):
        store(next(iter(ABLATIONS)), "CartPole-v1", seed, 9_000)
    return path.parents[1]


def test_tables_hold_what_the_runs_say(folder: Path) -> None:
    study = Study.of(load_runs(folder))
    agents = ["storm_plus_pg", "ppo_zoo", "svrpg"]
    assert list(study.agents) == agents
    steps = tables.steps(study, agents).set_index("agent")
    assert steps.loc["STORM+PG (defaults)", "CartPole-v1"] == "5,000"
    assert steps.loc["PPO (RL Zoo's settings)", "CartPole-v1"] == "20,000 (1 of 3 never)"
    assert steps.loc["SVRPG", "Acrobot-v1"] == "-"
    assert tables.each_seed(study, agents).loc[1, "CartPole-v1"] == "12 20 never"
    (ratios,) = tables.ratios(study, agents).to_dict("records")  # SVRPG did not run on every task.
    assert (ratios["CartPole-v1"], ratios["Acrobot-v1"]) == ("4.00", "2.00")
    assert ratios["geometric mean"].startswith("2.83 [")


def test_a_ratio_never_hangs_on_a_budget(folder: Path, store: Store) -> None:
    for seed, hit in enumerate((20_000, None, None)):
        store("ppo_zoo", "MountainCar-v0", seed, hit)
        store("storm_plus_pg", "MountainCar-v0", seed, 5_000)
    (ratios,) = tables.ratios(Study.of(load_runs(folder)), ["storm_plus_pg", "ppo_zoo"]).to_dict("records")
    assert ratios["MountainCar-v0"] == "-"
    assert (ratios["tasks"], ratios["geometric mean"][:6]) == ("2", "2.83 [")


def test_report_is_one_page_with_its_images_and_a_summary_beside_them(folder: Path, tmp_path: Path) -> None:
    (folder / "raw" / "gone.failed.json").write_text('{"traceback": "MemoryError: of 3 GB"}')
    result = CliRunner().invoke(app, ["report", "--results", str(folder), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text()
    images = re.findall(r'src="([^"]*)"', page)
    assert images
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert "http" not in page
    summary = (tmp_path / "report" / "README.md").read_text()
    assert "## Ablations" in summary
    assert "no recursion" in summary
    assert "| gone | MemoryError: of 3 GB |" in summary
    for name in re.findall(r"\]\((.*?)\)", summary):
        assert (tmp_path / "report" / name).exists()


@pytest.mark.slow
def test_packed_runs_give_the_same_report(folder: Path, tmp_path: Path) -> None:
    report(folder, tmp_path / "raw", None)
    report(pack(folder, tmp_path / "packed").parent, tmp_path / "packed", None)
    for path in (tmp_path / "raw").iterdir():
        assert path.read_bytes() == (tmp_path / "packed" / path.name).read_bytes(), path.name


def test_batched_runs_have_rows_of_their_own(store: Store) -> None:
    store("storm_plus_pg", "CartPole-v1", 0, 4_000)
    study = Study.of(load_runs(store("storm_plus_pg", "CartPole-v1", 0, 8_000, batched=True).parents[1]))
    rows = tables.steps(study, study.agents)
    assert rows["agent"].tolist() == ["STORM+PG (defaults)", "STORM+PG (defaults) - batched environments"]
    assert rows["CartPole-v1"].tolist() == ["4,000", "8,000"]


def test_new_agent_and_new_task_need_one_entry_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("Acrobot-v1", 10_000, 1_000, -90.0, (-500.0, -75.0))
    monkeypatch.setitem(TASKS, "Acrobot-v2", dataclasses.replace(task, id="Acrobot-v2"))
    monkeypatch.setitem(CONTESTANTS, "mine", Contestant("mine", "Mine", CONTESTANTS["storm_plus_pg"].build))
    study = Study.of(load_runs(store("mine", "Acrobot-v2", 0, 3_000).parents[1]))
    assert tables.steps(study, study.agents).to_dict("records") == [{"agent": "Mine", "Acrobot-v2": "3,000"}]
    assert len(build(study, {})) > 4


def test_readme_is_rewritten_between_its_marks_only(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nforgotten\n{END}\nafter\n")
    study = Study.of(load_runs(folder))
    for _ in range(2):
        rewrite(page, study, tmp_path / "results")
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\nEnv steps")
    assert text.endswith(f"{END}\nafter\n")
    assert "forgotten" not in text
    assert "(results/learning_curves.png)" in text
    assert text.count(BEGIN) == 1
    assert "| STORM+PG (defaults) | 5,000 | 10,000 | 2.83 [" in text


def test_readme_without_marks_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="has no section between"):
        report(folder, tmp_path / "report", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "report").exists()


def test_the_true_readme_has_the_marks() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert text.index(BEGIN) < text.index(END)


def test_styles_of_neighbours_differ_in_colour_line_and_marker() -> None:
    styles = [figures.style(index) for index in range(11)]
    for first, second in pairwise(styles):
        assert all(first[part] != second[part] for part in first)
    assert len({tuple(map(str, style.values())) for style in styles}) == 11


def test_cells_do_not_break_a_markdown_table() -> None:
    assert markdown_table(pd.DataFrame({"a": ["x|y"], "b": [1]})) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
