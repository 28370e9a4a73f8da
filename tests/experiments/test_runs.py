import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from stable_baselines3.common.env_util import make_vec_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.nn.utils import parameters_to_vector
from typer.main import get_command
from typer.testing import CliRunner

from agents import get_contestant
from envs import get_task
from experiments.cli import app
from experiments.execution import run_all
from experiments.files import locked, write_atomically
from experiments.hparams import write_hparams
from experiments.measures import measure
from experiments.runs import (
    PROTOCOL_VERSION,
    ProtocolCallback,
    RunSpec,
    evaluation_env,
    execute,
    load_run,
    spec_of,
)
from experiments.studies.benchmark import run_specs

QUIET = Console(quiet=True)
ONE = ["benchmark", "--task", "CartPole-v1", "--agent", "storm_plus_pg"]
SMALL = "storm_plus_pg[n_steps=32,critic_steps=2]"


@pytest.mark.slow
def test_run_is_stored_whole_with_what_the_protocol_asks_for(tmp_path: Path) -> None:
    run = load_run(execute(RunSpec(SMALL, "CartPole-v1", 3), tmp_path, budget=2_000))
    assert run["evaluations"]["step"] == [1000, 2000]
    assert len(run["final_returns"]) == 100
    assert (run["seed"], run["protocol"], run["steps"]) == (3, PROTOCOL_VERSION, 2048)
    assert sum(run["episodes"]["length"]) <= run["steps"]
    assert run["episodes"]["return"] == run["episodes"]["length"]  # CartPole pays 1 a step.
    assert run["settings"]["n_steps"] == "32"
    assert run["settings"]["gamma"] == "0.99"
    assert not any(" at 0x" in value for value in run["settings"].values())  # Values, not addresses.
    assert run["versions"]["torch"]
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_agents_are_run_on_the_tasks_whose_actions_they_can_take() -> None:
    specs = run_specs(["dqn_zoo", "sac_zoo", "storm_plus_pg"], ["CartPole-v1", "Pendulum-v1"], [0])
    assert [(spec.agent, spec.task) for spec in specs] == [
        ("dqn_zoo", "CartPole-v1"),
        ("storm_plus_pg", "CartPole-v1"),
        ("sac_zoo", "Pendulum-v1"),
        ("storm_plus_pg", "Pendulum-v1"),
    ]


@pytest.mark.parametrize(("agent", "task"), [("ars_zoo", "CartPole-v1"), ("dqn_zoo", "CartPole-v1")])
def test_agents_without_rollouts_run_by_the_protocol(agent: str, task: str, tmp_path: Path) -> None:
    run = load_run(execute(RunSpec(agent, task, 0), tmp_path, budget=2_000))
    assert run["evaluations"]["step"][:2] == [1000, 2000]
    assert measure(run)["steps_per_second"] > 0.0


def test_a_run_that_is_tried_again_has_one_tensorboard_folder(tmp_path: Path) -> None:
    spec, logs = RunSpec(SMALL, "CartPole-v1", 0), tmp_path / "tensorboard" / "CartPole-v1"
    others = {f"{SMALL}_seed00_1", f"{SMALL}_seed1_1", f"{SMALL}_seed0_batched_1"}
    for name in {f"{SMALL}_seed0_1", f"{SMALL}_seed0_3", *others}:
        (logs / name).mkdir(parents=True)
        (logs / name / "events.of.an.attempt").touch()
    execute(spec, tmp_path, budget=64)
    assert {path.name for path in logs.iterdir()} == {f"{SMALL}_seed0_1", *others}
    (events,) = (logs / f"{SMALL}_seed0_1").iterdir()
    assert events.name != "events.of.an.attempt"


def test_evaluation_is_the_first_vector_step_at_or_past_each_multiple(tmp_path: Path) -> None:
    run = load_run(
        execute(RunSpec("storm_plus_pg[n_envs=3,n_steps=50,critic_steps=2]", "CartPole-v1", 0), tmp_path, None, 2_100)
    )
    assert run["evaluations"]["step"] == [1002, 2001]


def test_evaluating_does_not_change_training() -> None:
    def trained(evaluate: bool) -> np.ndarray:
        model = get_contestant("ppo_zoo").build("MountainCar-v0", 0, None)
        callback = ProtocolCallback(get_task("MountainCar-v0"), None)
        if not evaluate:
            callback._next_evaluation = 10**9
        model.learn(2_048, callback=callback)
        assert bool(callback.evaluations["step"]) == evaluate
        return parameters_to_vector(model.policy.parameters()).detach().numpy()

    np.testing.assert_array_equal(trained(True), trained(False))


def test_evaluation_env_shares_the_training_statistics_without_moving_them() -> None:
    model = get_contestant("ppo_zoo").build("MountainCar-v0", 0, None)
    model.learn(256)
    env = evaluation_env(get_task("MountainCar-v0"), 4, model)
    statistics = model.get_vec_normalize_env().obs_rms
    count = statistics.count
    env.seed(1)
    observation = env.reset()
    raw = make_vec_env("MountainCar-v0", n_envs=4)
    raw.seed(1)
    expected = (raw.reset() - statistics.mean) / np.sqrt(statistics.var + 1e-8)
    np.testing.assert_allclose(observation, expected, rtol=1e-5)
    assert statistics.count == count


def test_same_run_twice_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    first, second = (
        load_run(execute(RunSpec(SMALL, "CartPole-v1", 1), tmp_path / name, budget=1_000)) for name in "ab"
    )
    for key in ("episodes", "final_returns"):
        assert first[key] == second[key]
    assert first["evaluations"]["mean_return"] == second["evaluations"]["mean_return"]


@pytest.mark.slow
def test_finished_runs_are_skipped_and_failed_ones_listed(tmp_path: Path) -> None:
    good, bad = RunSpec(SMALL, "CartPole-v1", 0), RunSpec("ppo_default[n_steps=32,target_kl='x']", "CartPole-v1", 0)
    assert run_all([good, bad], tmp_path, 2, QUIET, budget=1_000) == [bad]
    path = tmp_path / "raw" / f"{good.stem}.json.gz"
    before = path.stat().st_mtime_ns
    failure = json.loads((tmp_path / "raw" / f"{bad.stem}.failed.json").read_text())
    assert "can't multiply sequence by non-int of type 'float'" in failure["traceback"]
    assert run_all([good], tmp_path, 2, QUIET, budget=1_000) == []
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole run"),
        (gzip.compress(b'{"protocol": 1, "agent"', mtime=0), "not a whole run"),
        (gzip.compress(json.dumps({"protocol": PROTOCOL_VERSION}).encode(), mtime=0)[:-4], "not a whole run"),
        (gzip.compress(json.dumps({"protocol": 0}).encode(), mtime=0), "protocol version 0"),
    ],
    ids=["empty", "half a record", "half a file", "another protocol"],
)
def test_broken_or_foreign_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.json.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_run(path)


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_command_line_runs_a_study_and_names_its_files(tmp_path: Path) -> None:
    arguments = ["benchmark", "--agent", SMALL, "--task", "CartPole-v1", "--seeds", "1", "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "2000", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "final return" in result.output
    assert "budget 2,000 env steps" in " ".join(result.output.split())
    for name in ("learning_curves_CartPole-v1.png", "runs.csv", "raw", "tensorboard"):
        assert (tmp_path / name).exists()
        assert name in result.output.replace("\n", "") or name == "runs.csv"


def test_batched_run_is_gymnasiums_run_under_another_name(tmp_path: Path) -> None:
    specs = [RunSpec(SMALL, "CartPole-v1", 1, batched) for batched in (False, True)]
    gymnasiums, batched = (load_run(execute(spec, tmp_path, budget=1_000)) for spec in specs)
    assert (gymnasiums["batched"], batched["batched"]) == (False, True)
    assert len(list((tmp_path / "raw").iterdir())) == 2
    for key in ("episodes", "final_returns"):
        assert gymnasiums[key] == batched[key]


def test_first_records_did_not_say_that_they_are_gymnasiums() -> None:
    record = {"agent": "ppo_zoo", "task": "CartPole-v1", "seed": 0}
    assert spec_of(record) == RunSpec("ppo_zoo", "CartPole-v1", 0, batched=False)


def test_every_run_has_its_session_in_the_hparams_view(tmp_path: Path) -> None:
    spec = RunSpec(SMALL, "CartPole-v1", 1)
    run = load_run(execute(spec, tmp_path, budget=2_000))
    for _ in range(2):  # The second time in place of the first.
        write_hparams({spec: run}, tmp_path / "hparams")
    (file,) = (tmp_path / "hparams" / spec.stem).iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert events.Scalars("final/final_return")[0].value == pytest.approx(np.mean(run["final_returns"]))
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert settings["n_steps"].string_value == "32"
    assert settings["agent"].string_value == SMALL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmrk"], r"unknown study or command 'benchmrk'; known: .*quickstart.*Did you mean benchmark\?"),
        (["benchmark", "--task", "CartPol-v1"], r"unknown task 'CartPol-v1'.*Did you mean CartPole-v1\?"),
        ([*ONE, "--ray", "10.0.0.1"], "--ray must be an address as 10.0.0.1:6379, or \"auto\", got '10.0.0.1'"),
        (["benchmark", "--batched"], "--batched: the environments of ppo_zoo are part of its settings"),
        (["benchmark", "--task", "CartPole-v1", "--suite", "all"], "--suite is a list of tasks: leave out --task"),
        ([*ONE[:-1], "sac_zoo"], "sac_zoo cannot take the actions of CartPole-v1: leave out either"),
        (["benchmark", "--all", "--agent", "ppo_zoo"], "--all is every agent: leave out --agent"),
        (["report", "--results", "/nowhere"], "/nowhere holds no finished runs"),
        (["watch", "CartPol-v1"], r"Did you mean CartPole-v1\?"),
        (["watch", "CartPole-v1", "--model", "/nowhere"], "no trained agent at /nowhere"),
        (["watch", "CartPole-v1", "--record", "FILE/film.gif"], "cannot write into .*file: .* is not a folder"),
        ([*ONE, "--output", "FILE"], "cannot write into .*file: .* is not a folder"),
        ([*ONE, "--output", "FILE/study"], "cannot write into .*study: .*file is not a folder"),
        ([*ONE, "--output", "HALF"], "cannot write into .*models: .* is not a folder"),
        (["ablations", "--output", "FILE"], "cannot write into .*file: .* is not a folder"),
        (["report", "--results", "runs", "--output", "FILE"], "cannot write into .*file: .* is not a folder"),
        (["export-agents", "--output", "FILE"], "cannot write into .*file: .* is not a folder"),
        ([*ONE, "--first-seed", "999999", "--seeds", "2"], "seeds must be from 0 to 999,999, got 999999 to 1000000"),
        ([*ONE[:-1], "storm_plus_pg[momentun=1.0]"], r"agent 'storm_plus_pg\[momentun=1.0\]' cannot be .*'momentun'"),
        ([*ONE[:-1], "storm_plus_pg[gamma='x']"], "cannot be built for CartPole-v1: gamma must be .* got 'x'"),
        ([*ONE[:-1], "storm_plus_pg[gamma]"], r"cannot read the arguments of agent 'storm_plus_pg\[gamma\]'"),
        ([*ONE[:-1], "storm_plus_pg[device='a/b']"], "must be without / and no longer"),
        (["ablations", "--variant", "storm_plus_pg[a=1]"], r"unknown variants storm_plus_pg\[a=1\]; known: "),
        (["confirm-family", "--algorithm", "GPOMDP", "--algorithm", "SVRP"], "unknown algorithm 'SVRP'; known: SVRPG"),
        (["tune-family", "--algorithm", "svrpg"], "unknown algorithm 'svrpg'; known: SVRPG"),
        (
            ["tune-family", "--task", "CartPole-v1", "--task", "LunarLander-v3"],
            "no batched environment 'LunarLander-v3'",
        ),
        (["gradient-error", "--task", "LunarLander-v3"], "no batched environment 'LunarLander-v3'"),
        (["gradient-error", "--kl", "0"], "--kl must be above 0, got 0"),
        (["throughput", "--task", "LunarLander-v3"], "no batched environment 'LunarLander-v3'"),
        (["throughput", "--runs", "/nowhere"], "/nowhere holds no finished runs"),
        (["optimisers", "--report-only"], "--report-only: runs/optimisers holds no runs.json.gz"),
    ],
)
def test_command_line_says_what_is_wrong_before_it_runs_anything(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stable_baselines3.common.base_class.BaseAlgorithm._setup_learn", refuse)
    monkeypatch.setattr("experiments.execution.local_processes", refuse)
    (tmp_path / "half").mkdir()
    for name in ("file", "half/models"):
        (tmp_path / name).touch()
    places = {"FILE": str(tmp_path / "file"), "HALF": str(tmp_path / "half")}
    result = CliRunner().invoke(app, [re.sub("FILE|HALF", lambda found: places[found[0]], each) for each in arguments])
    assert isinstance(result.exception, ValueError), result.exception
    assert re.search(message, str(result.exception))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("something runs")


@pytest.mark.parametrize(
    "arguments",
    [
        [*ONE, "--first-seed", "-1"],
        [*ONE, "--seeds", "0"],
        ["gradient-error", "--stage", "-5"],
        ["confirm-family", "--budget", "0"],
        ["watch", "CartPole-v1", "--seed", "-1"],
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        "-m",
        "experiments",
        "pack",
        "--results",
        str(tmp_path),
        "--output",
        str(tmp_path / "file"),
    ]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == f"error: cannot write into {tmp_path}/file: {tmp_path}/file is not a folder\n"


@pytest.mark.parametrize("arguments", [[*ONE, "--output"], ["ablations", "--output"], ["fuzz", "--output"]])
def test_a_second_command_is_kept_out_of_the_folder(arguments: list[str], tmp_path: Path) -> None:
    with locked(tmp_path):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path)])
    assert "in use by another process" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["", *(command.name for command in get_command(app).commands.values())])
def test_help_shows_what_stands_in_brackets(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
    found = get_command(app).commands[command] if command else get_command(app)
    written = [found.help or "", *(getattr(parameter, "help", None) or "" for parameter in found.params)]
    for bracket in re.findall(r"\S*\[[^]]*\]", " ".join(written)):
        assert bracket in shown


def test_published_results_are_written_into_only_where_that_is_asked_for(
    store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("storm_plus_pg", "CartPole-v1", 0, 4_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.files.PUBLISHED", tmp_path)
    before = sorted((tmp_path / "study").rglob("*"))
    for command in ("pack", "report"):
        result = CliRunner().invoke(app, [command, "--results", "study"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert sorted((tmp_path / "study").rglob("*")) == before
    assert (tmp_path / "runs/study/packed/runs.json.xz").exists()
    assert (tmp_path / "runs/study/report/index.html").exists()
    monkeypatch.setattr("experiments.files.PUBLISHED", tmp_path / "elsewhere")
    CliRunner().invoke(app, ["pack", "--results", "study"], catch_exceptions=False)
    assert (tmp_path / "study/packed/runs.json.xz").exists()


def test_exit_code_and_list_name_failed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.benchmark.run_all", lambda specs, *_: specs)
    arguments = ["benchmark", "--agent", "ppo_zoo", "--task", "CartPole-v1", "--seeds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "1 of 1 runs failed" in result.output
    assert "ppo_zoo__CartPole-v1__seed0.failed.json" in result.output


def test_command_line_names_an_unknown_agent(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["benchmark", "--agent", "pp", "--output", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "ppo_zoo" in str(result.exception)
