from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs import TASKS
from experiments.cli import app
from experiments.report.study import Study
from experiments.runs import RunSpec
from experiments.storage import load_runs, pack
from experiments.studies import agent_check

Store = Callable[..., Path]


def folder(store: Store, ours: float, theirs: float) -> Path:
    """A study of all tasks, two seeds each, whose runs pass the threshold at these shares of the budget."""
    for task in TASKS.values():
        for seed in range(2):
            store("storm_plus_pg", task.id, seed, ours * task.budget)
            path = store("ppo_zoo", task.id, seed, theirs * task.budget)
    return path.parents[1]


def verdicts(study: Path) -> dict[tuple[str, str], str]:
    rows = agent_check.check(Study.of(load_runs(study)))
    return {(row["task"], row["measure"]): row["verdict"] for row in rows.to_dict("records")}


def test_every_aim_is_checked_on_every_task(store: Store) -> None:
    found = verdicts(folder(store, 0.1, 0.4))
    assert len(found) == 4 * len(TASKS) + len(agent_check.FINAL_RETURNS) + 1 + 4
    # The made-up runs end between the threshold and the best score.
    assert {key for key, verdict in found.items() if verdict == "MISS"} == {
        (task, "final return") for task in agent_check.FINAL_RETURNS
    }


def test_worse_agent_misses_the_aims(store: Store) -> None:
    study = folder(store, 0.3, 0.4)
    store("storm_plus_pg", "Pendulum-v1", 1, None)
    found = verdicts(study)
    assert found["those that both learn", "geometric mean of PPO's steps over ours"] == "MISS"
    assert found["Pendulum-v1", "failed seeds"] == "MISS"
    assert found["CartPole-v1", "median steps to threshold"] == "pass"


def test_aims_over_all_tasks_are_missed_where_the_others_are_as_good(store: Store) -> None:
    study = folder(store, 0.2, 0.2)
    for task in TASKS.values():
        for seed in range(6):
            store("storm_plus_pg", task.id, seed, 0.2 * task.budget)
            store("ppo_zoo", task.id, seed, 0.2 * task.budget)
            store("trpo_zoo", task.id, seed, (0.1 if task.id in list(TASKS)[:2] else 0.6) * task.budget)
    for seed in range(2):
        store("dqn_zoo", "CartPole-v1", seed, 90_000)
    rows = verdicts(study)
    assert rows["1 of 5", "interquartile mean, above DQN"] == "pass"  # On the tasks that it ran on.
    found = {measure: verdict for (task, measure), verdict in rows.items() if task == "all"}
    assert found == {
        "tasks with more area than PPO": "MISS",
        "probability of more area than PPO": "MISS",
        "tasks not later than the best tuned agent, beyond chance": "MISS",  # TRPO is on two of them.
        "interquartile mean, above PPO": "MISS",
        "interquartile mean, above TRPO": "pass",
    }


def test_collapse_after_the_threshold_is_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = load_runs(folder(store, 0.1, 0.4))
    for spec, run in runs.items():
        if (spec.agent, spec.task, spec.seed) == ("storm_plus_pg", "Acrobot-v1", 0):
            run["evaluations"]["mean_return"][-10:] = [-500.0] * 10
    rows = agent_check.check(Study.of(runs)).set_index(["task", "measure"])
    assert rows.loc[("Acrobot-v1", "collapsed seeds"), "verdict"] == "MISS"
    assert rows.loc[("CartPole-v1", "collapsed seeds"), "verdict"] == "pass"


def test_command_shows_the_aims_and_its_exit_code_says_whether_all_are_met(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = folder(store, 0.1, 0.4)
    monkeypatch.setattr(agent_check, "FINAL_RETURNS", dict.fromkeys(TASKS, -1e9))
    arguments = ["agent-check", "--results", str(study), "--seeds", "2"]
    before = sorted(study.rglob("*"))
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "All aims are met" in result.output
    assert sorted(study.rglob("*")) == before  # Nothing was missing, so nothing is written.
    monkeypatch.setattr(agent_check, "RATIO", 100.0)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 1
    assert f"1 of {5 * len(TASKS) + 5} aims are missed" in result.output


def test_tasks_may_be_in_several_studies(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = folder(store, 0.1, 0.4)
    monkeypatch.setattr(agent_check, "FINAL_RETURNS", {})
    other = pack(study, tmp_path / "other").parent
    for path in (study / "raw").glob("*Pendulum*"):
        path.unlink()
    arguments = ["agent-check", "--seeds", "2", "--results", str(study), "--results", str(other)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "Pendulum-v1" in result.output
    assert not list((study / "raw").glob("*Pendulum*"))


def test_what_published_results_lack_is_run_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = folder(store, 0.1, 0.4)
    asked: list[tuple[list[str], Path]] = []

    def run_all(specs: list[RunSpec], output: Path, *_: object) -> list[RunSpec]:
        asked.append(([spec.stem for spec in specs], output))
        return specs

    monkeypatch.setattr(agent_check, "run_all", run_all)
    monkeypatch.setattr("experiments.files.PUBLISHED", tmp_path)
    arguments = ["agent-check", "--results", str(study), "--seeds", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    ((missing, output),) = asked
    assert output == Path("runs/study")
    assert sorted(missing) == sorted(
        f"{agent}__{task}__seed2" for agent in ("storm_plus_pg", "ppo_zoo") for task in TASKS
    )
    wrong = CliRunner().invoke(app, ["agent-check", "--results", str(tmp_path / "nowhere")])
    assert "no such folder" in str(wrong.exception)
