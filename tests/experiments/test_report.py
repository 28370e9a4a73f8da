import dataclasses
import re
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from agents import CONTESTANTS, Contestant
from agents.ablations import ABLATIONS
from envs import TASKS, Task, get_task
from experiments.cli import app
from experiments.files import write_atomically
from experiments.measures import measured
from experiments.report import figures, stored_ablation, summary, tables
from experiments.report.command import BEGIN, END, build, report, rewrite
from experiments.report.page import Image, Table, markdown_table
from experiments.report.study import Study
from experiments.storage import load_runs, pack
from experiments.studies import ablations

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
    assert steps.loc["STORM+PG", "CartPole-v1"] == "5,000"
    assert steps.loc["PPO (RL Zoo's settings)", "CartPole-v1"] == "20,000 (2 of 3)"
    assert steps.loc["SVRPG", "Acrobot-v1"] == "not run"
    assert tables.each_seed(study, agents).loc[1, "CartPole-v1"] == "12 20 (1 never)"
    (ratios,) = tables.ratios(study, agents).to_dict("records")  # SVRPG did not run on every task.
    assert (ratios["CartPole-v1"], ratios["Acrobot-v1"]) == ("4.00", "2.00")
    assert ratios["geometric mean"].startswith("2.83 [")


def test_ranking_and_heat_map_go_by_the_area(folder: Path) -> None:
    study = Study.of(load_runs(folder))
    rows = tables.ranking(study, study.agents, get_task("CartPole-v1"))
    assert rows["agent"].tolist() == ["STORM+PG", "SVRPG", "PPO (RL Zoo's settings)"]
    assert rows["env steps to the threshold"].tolist() == ["5,000", "50,000", "20,000 (2 of 3)"]
    assert len(tables.ranking(study, study.agents, get_task("Acrobot-v1"))) == 2
    (axes,) = figures.heat_map(study, study.agents).axes
    cells = [text.get_text() for text in axes.texts]
    assert float(cells[0]) > float(cells[2]) > float(cells[1])
    assert cells[5] == "-"  # SVRPG on Acrobot.
    assert {patch.get_xy() for patch in axes.patches} == {(0, 0), (0, 1)}


def test_the_best_tuned_agent_is_another_one_on_each_task_and_measure(folder: Path, store: Store) -> None:
    for seed in range(3):
        store("a2c_zoo", "Acrobot-v1", seed, 4_000)
        store("a2c_zoo", "CartPole-v1", seed, 90_000)
        store("ppo_default", "Acrobot-v1", seed, 2_000)  # As untuned as ours.
    study = Study.of(load_runs(folder))
    assert study.best_tuned("steps_to_threshold", get_task("Acrobot-v1")) == "a2c_zoo"
    assert study.best_tuned("evaluation_score", get_task("CartPole-v1")) == "ppo_zoo"
    assert study.best_tuned("steps_to_threshold", get_task("Pendulum-v1")) is None
    (row,) = tables.against_the_best(study, study.agents).to_dict("records")
    assert row["agent"] == "STORM+PG"
    assert row["steps: CartPole-v1"].endswith("(PPO)")
    assert row["steps: CartPole-v1"].startswith("1.00 [")
    assert row["steps: Acrobot-v1"].endswith("(A2C)")
    assert row["steps: Acrobot-v1"].startswith("0.00 [")
    assert row["steps to threshold"].startswith("0.50 [")
    with pytest.raises(ValueError, match="no tuned agent ran on Pendulum-v1"):
        tables.improved(study, "final_score", "storm_plus_pg", None, (get_task("Pendulum-v1"),))


def test_every_agent_is_compared_on_the_tasks_that_it_ran_on(folder: Path, store: Store) -> None:
    for seed in range(2):
        store("dqn_zoo", "CartPole-v1", seed, 5_000)
    store("storm_plus_pg", "Pendulum-v1", 0, 9_000)
    study = Study.of(load_runs(folder))
    rows = tables.against_ours(study, study.agents).set_index("agent")
    assert rows["tasks"].tolist() == ["2 of 3", "1 of 3", "1 of 3"]  # PPO, DQN and SVRPG.
    assert rows.loc["SVRPG", "P(fewer steps)"].startswith("1.00 [")
    assert rows.loc["DQN (RL Zoo's settings)", "P(fewer steps)"].startswith("0.50 [")
    steps = tables.steps(study, study.agents).set_index("agent")
    assert steps.loc["DQN (RL Zoo's settings)"].tolist() == ["5,000", "not run", "cannot act"]
    page = folder / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    rewrite(page, study, folder)
    assert "| agent | seeds | CartPole-v1 |" in page.read_text()
    assert "| DQN (RL Zoo's settings) | 2 |" in page.read_text()


def test_a_ratio_never_hangs_on_a_budget(folder: Path, store: Store) -> None:
    for seed, hit in enumerate((20_000, None, None)):
        store("ppo_zoo", "MountainCar-v0", seed, hit)
        store("storm_plus_pg", "MountainCar-v0", seed, 5_000)
    study = Study.of(load_runs(folder))
    (ratios,) = tables.ratios(study, ["storm_plus_pg", "ppo_zoo"]).to_dict("records")
    assert ratios["MountainCar-v0"] == "- (PPO: 1 of 3)"
    assert (ratios["tasks"], ratios["geometric mean"][:6]) == ("2", "2.83 [")


def test_no_number_is_only_a_budget(folder: Path, store: Store) -> None:
    for seed, hit in enumerate((20_000, None, None)):
        store("ppo_zoo", "MountainCar-v0", seed, hit)
    store("storm_plus_pg", "MountainCar-v0", 0, None)
    study = Study.of(load_runs(folder))
    assert tables.every_run(study).query("not reached")["steps_to_threshold"].isna().all()
    assert tables.each_seed(study, study.agents)["MountainCar-v0"].tolist() == ["(1 never)", "20 (2 never)", "not run"]
    assert tables.steps(study, study.agents)["MountainCar-v0"].tolist() == ["- (0 of 1)", "- (1 of 3)", "not run"]
    assert tables.seconds(study, study.agents)["MountainCar-v0"].tolist() == ["- (0 of 1)", "- (1 of 3)", "not run"]


def test_summary_says_what_the_runs_say(folder: Path) -> None:
    study = Study.of(load_runs(folder))
    reached, ratio, pairs, area, rivals = (fact.sentence for fact in summary.facts(study))
    assert reached.startswith("**STORM+PG reached the threshold in 6 of 6 runs and held it to the end in 6**")
    assert "PPO (RL Zoo's settings) in 5 of 6" in reached
    assert "2.83 times as many env steps as STORM+PG" in ratio
    # Three seeds against three: chance alone separates them one time in ten.
    assert "a difference that chance explains on CartPole-v1 and Acrobot-v1" in pairs
    assert area.startswith("**STORM+PG has more area under the evaluation curve than PPO on 2 of 2 tasks**")
    assert "PPO on CartPole-v1 (20,000, 2 of 3 seeds; STORM+PG 5,000)" in rivals
    introduction = summary.introduction(study)
    assert "STORM+PG and PPO (RL Zoo's settings) on CartPole-v1 and Acrobot-v1, 3 seeds each." in introduction
    assert "SVRPG: on CartPole-v1 only." in introduction


def test_tasks_held_out_are_counted_apart(folder: Path, store: Store) -> None:
    for seed in range(2):
        store("storm_plus_pg", "Taxi-v4", seed, 50_000)
        store("ppo_zoo", "Taxi-v4", seed, 20_000)
    study = Study.of(load_runs(folder))
    developed, held_out = (fact for fact in summary.facts(study) if "with more area" in fact.what)
    assert (developed.figure, held_out.figure) == ("2 of 2", "0 of 1")
    assert "less on Taxi-v4 (means over seeds)" in held_out.sentence
    assert held_out.sentence.endswith("mean over these tasks: 0.00 [0.00, 0.00].")
    assert tables.tasks(study)["held out"].tolist() == ["no", "no", "yes"]


def test_a_difference_beyond_chance_is_named_as_one(store: Store) -> None:
    for seed in range(6):
        store("storm_plus_pg", "CartPole-v1", seed, 4_000 + 1_000 * seed)
        path = store("ppo_zoo", "CartPole-v1", seed, 20_000 + 1_000 * seed if seed else None)
    pairs = summary.facts(Study.of(load_runs(path.parents[1])))[2]
    assert pairs.figure == "1 of 1"
    assert "**fewer steps on CartPole-v1**" in pairs.sentence


def test_only_variants_of_storm_plus_pg_stand_among_them(store: Store) -> None:
    store("storm_plus_pg", "CartPole-v1", 0, 4_000)
    store("storm_plus_pg[momentum=1.0]", "CartPole-v1", 0, 4_000)
    store("ppo_default", "CartPole-v1", 0, 8_000)
    study = Study.of(load_runs(store("ppo_default[n_envs=1]", "CartPole-v1", 0, 6_000).parents[1]))
    assert study.agents == ["storm_plus_pg", "ppo_default", "ppo_default[n_envs=1]"]
    assert study.variants == ["storm_plus_pg[momentum=1.0]"]
    assert study.reference == "ppo_default"


def store_ablation(study: Study, folder: Path) -> None:
    """Of STORM+PG and its variants on CartPole, as the command ``ablations`` writes it."""
    names = ("storm_plus_pg", *study.variants)
    runs = [run for name in names for run in study.records(name, get_task("CartPole-v1"))]
    write_atomically(folder / "ten_seeds.md", ablations.summary({"CartPole-v1": measured(runs)}).encode())
    ablations.draw({"CartPole-v1": measured(runs)}, folder / "ten_seeds.png")


def test_the_stored_ablation_says_which_parts_make_a_difference(tmp_path: Path) -> None:
    (tmp_path / "ten_seeds.png").write_bytes(b"png")
    table = "| variant | times the default's steps |\n| --- | --- |\n| default |  |\n| a | 1.02 (0.95 to 1.10) |\n"
    (tmp_path / "ten_seeds.md").write_text(table)
    assert "None of them differs beyond chance: a." in stored_ablation.sections(tmp_path)[0].text
    (tmp_path / "ten_seeds.md").write_text(table + "| b | 1.30 (1.15 to 1.50) |\n")
    assert "Beyond chance, more env steps: b." in stored_ablation.sections(tmp_path)[0].text
    columns = "| variant | times the default's steps | evaluations less the default's |\n"
    head = columns + "| --- | --- | --- |\n| default |  |  |\n"
    rows = "| a | 0.80 (0.70 to 0.90) | +0.02 (+0.01 to +0.03) |\n| b | 1.0 (0.9 to 1.1) | -0.02 (-0.03 to -0.01) |\n"
    (tmp_path / "ten_seeds.md").write_text(head + rows)
    verdict = "Beyond chance, fewer env steps: a; worse evaluations: b; better evaluations: a."
    assert verdict in stored_ablation.sections(tmp_path)[0].text


def test_where_a_memory_pays_is_told_by_the_errors_of_gradients(tmp_path: Path) -> None:
    rows = [
        f"CartPole-v1,1000,{kl},{seed},{step},{estimator},{error},0.9,1.0"
        for kl, with_memory in (("1e-05", 0.2), ("0.01", 0.8))
        for seed in range(3)
        for step, factor in ((2, 9.0), (10, 1.0 + 0.01 * seed))
        for estimator, error in (("storm_plus", with_memory * factor), ("gpomdp_equal", 0.4))
    ]
    head = "task,stage,kl,seed,step,estimator,relative_error,cosine,reference_norm\n"
    write_atomically(tmp_path / "gradient_error" / "errors_CartPole-v1.csv", (head + "\n".join(rows)).encode())
    write_atomically(tmp_path / "ablations" / "ten_seeds.png", b"png")
    write_atomically(tmp_path / "ablations" / "ten_seeds.md", b"| variant |\n| --- |\n| default |\n")
    (section,) = stored_ablation.sections(tmp_path / "ablations")
    table = section.items[-1]
    assert isinstance(table, Table)
    assert table.rows.to_dict("records") == [
        {"task": "CartPole-v1", "KL 1e-05": "**0.50 (0.50 to 0.51)**", "KL 0.01": "2.02 (2.00 to 2.04)"}
    ]


def test_the_stored_ablation_is_a_section_of_its_own(folder: Path, tmp_path: Path) -> None:
    assert stored_ablation.sections(tmp_path) == []
    store_ablation(Study.of(load_runs(folder)), tmp_path)
    (section,) = stored_ablation.sections(tmp_path)
    differences, overall, picture, each = section.items
    assert isinstance(differences, Image)
    assert b"no recursion" in differences.content
    assert isinstance(overall, Table)
    assert overall.rows["variant"].tolist() == ["STORM+PG", "no recursion"]
    assert overall.rows.loc[1, "times the default's steps"].startswith("2.01 (")
    assert isinstance(picture, Image)
    assert picture.content.startswith(b"\x89PNG")
    assert isinstance(each, Table)
    assert list(each.rows) == ["variant", "CartPole-v1 (100k)"]


def test_a_table_of_too_many_columns_is_turned() -> None:
    tasks = [f"task {index}" for index in range(12)]
    rows = pd.DataFrame([{"agent": name, **{task: f"{name} {task}" for task in tasks}} for name in ("a", "b")])
    fitted = Table(rows).fitted
    assert fitted.shape == (12, 3)
    assert fitted.iloc[3].tolist() == ["task 3", "a task 3", "b task 3"]
    assert "|  | a | b |" in markdown_table(fitted)
    assert Table(rows.iloc[:, :6]).fitted.equals(rows.iloc[:, :6])


def test_markers_of_seeds_do_not_hide_each_other() -> None:
    x, lanes = figures._side_by_side(np.array([3.0] * 12 + [3.5, 9.0]))
    places = list(zip(x, lanes, strict=True))
    apart = [abs(a - b) >= 1 or lane != other for (a, lane), (b, other) in combinations(places, 2)]
    assert len(places) == 14
    assert all(apart)


def test_returns_far_below_the_scale_do_not_flatten_the_curves(folder: Path) -> None:
    study = Study.of(load_runs(folder))
    for run in study.runs.values():
        run["evaluations"]["mean_return"][0] = -40_000.0
    axes = figures.learning_curves(study, study.agents, study.agents).axes[0]
    assert axes.get_ylim()[0] > -50
    assert axes.get_ylim()[1] >= 500


def test_report_is_one_page_with_its_figures_and_a_summary_beside_it(folder: Path, tmp_path: Path) -> None:
    store_ablation(Study.of(load_runs(folder)), folder.parent / "ablations")
    (folder / "raw" / "gone.failed.json").write_text('{"traceback": "MemoryError: of 3 GB"}')
    result = CliRunner().invoke(app, ["report", "--results", str(folder), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text()
    images = re.findall(r'src(?:set)?="([^"]*)"', page)
    assert "steps_to_threshold_narrow.svg" in images
    assert all((tmp_path / "report" / image).exists() for image in images)
    assert "http" not in page
    text = (tmp_path / "report" / "README.md").read_text()
    titles = re.findall("^## (.*)", text, re.MULTILINE)
    assert titles[:2] == ["Summary", "What drives the agent"]
    assert "Variants of STORM+PG" in titles
    assert "no recursion" in text
    assert "| gone | MemoryError: of 3 GB |" in text
    anchors = {f"#{anchor}" for anchor in re.findall(r'<section id="(.*?)"', page)}
    for name in re.findall(r"\]\((.*?)\)", text):
        assert name in anchors if name.startswith("#") else (tmp_path / "report" / name).exists()


def test_several_studies_are_reported_together_where_one_says(store: Store, tmp_path: Path) -> None:
    store("ppo_zoo", "CartPole-v1", 0, 20_000)
    first = pack(store("storm_plus_pg", "CartPole-v1", 0, 4_000).parents[1], tmp_path / "first").parent
    for path in (tmp_path / "study" / "raw").iterdir():
        path.unlink()
    second = store("ppo_zoo", "Acrobot-v1", 0, 20_000).parents[1]
    with pytest.raises(ValueError, match="2 studies belongs to none of them: say where with --output"):
        report([first, second])
    report([first, second], output=tmp_path / "report")
    assert len(pd.read_csv(tmp_path / "report" / "runs.csv")) == 3
    report([first, second], ["ppo_zoo"], tmp_path / "report")
    assert set(pd.read_csv(tmp_path / "report" / "runs.csv")["contestant"]) == {"ppo_zoo"}
    with pytest.raises(ValueError, match="no runs of sac_zoo there; there are some of ppo_zoo, storm_plus_pg"):
        report([first, second], ["ppo_zoo", "sac_zoo"], tmp_path / "report")


@pytest.mark.slow
def test_packed_runs_give_the_same_report(folder: Path, tmp_path: Path) -> None:
    report([folder], output=tmp_path / "raw")
    report([pack(folder, tmp_path / "packed").parent], output=tmp_path / "packed")
    for path in (tmp_path / "raw").iterdir():
        assert path.read_bytes() == (tmp_path / "packed" / path.name).read_bytes(), path.name


def test_batched_runs_have_rows_of_their_own(store: Store) -> None:
    store("storm_plus_pg", "CartPole-v1", 0, 4_000)
    study = Study.of(load_runs(store("storm_plus_pg", "CartPole-v1", 0, 8_000, batched=True).parents[1]))
    rows = tables.steps(study, study.agents)
    assert rows["agent"].tolist() == ["STORM+PG", "STORM+PG - batched environments"]
    assert rows["CartPole-v1"].tolist() == ["4,000", "8,000"]


def test_new_agent_and_new_task_need_one_entry_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("Acrobot-v1", 10_000, 1_000, -90.0, (-500.0, -75.0))
    monkeypatch.setitem(TASKS, "Acrobot-v2", dataclasses.replace(task, id="Acrobot-v2"))
    monkeypatch.setitem(CONTESTANTS, "mine", Contestant("mine", "Mine", CONTESTANTS["storm_plus_pg"].build))
    study = Study.of(load_runs(store("mine", "Acrobot-v2", 0, 3_000).parents[1]))
    assert tables.steps(study, study.agents).to_dict("records") == [{"agent": "Mine", "Acrobot-v2": "3,000"}]
    assert len(build(study, {}, Path("nowhere")).sections) > 4


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
    assert "(results/learning_curves.svg)" in text
    assert text.count(BEGIN) == 1
    assert re.search(r"\| STORM\+PG \| 2\.83 \[[^|]*\| 5,000 \| 10,000 \|", text)
    assert text.index("learning_curves.svg") < text.index("| STORM+PG")


def test_readme_without_marks_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="has no section between"):
        report([folder], output=tmp_path / "report", readme=tmp_path / "README.md")
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
