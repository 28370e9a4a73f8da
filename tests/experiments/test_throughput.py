from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from typer.testing import CliRunner

from envs import get_task
from envs.batched import BatchedEnv
from experiments.cli import app
from experiments.studies import throughput as study
from experiments.studies.throughput import report
from experiments.studies.throughput.configurations import PPO_ON_IMAGES, build, configurations, on_images
from experiments.studies.throughput.environments import has_envpool
from experiments.studies.throughput.measure import memory, peak_mib, speed
from storm_rl.vector_env import VectorEnvAdapter

QUICK = ["throughput", "--algorithm", "storm_plus_pg", "--algorithm", "ppo_zoo", "--n-envs", "8", "--n-envs", "64"]
QUICK += ["--width", "64", "--batch", "512", "--steps", "1", "--no-memory", "--no-images", "--output"]


def made_up(repeat: int, run: str, algorithm: str, environments: str, n_envs: int, rate: float) -> dict[str, Any]:
    row = {"run": run, "git": "abc", "length": "1 s", "machine": "made up", "task": "CartPole-v1"}
    row |= {"device": "cpu", "threads": "1"}
    row |= {"algorithm": algorithm, "environments": environments, "n_envs": n_envs, "n_steps": 32, "width": 64}
    row |= {"own_n_envs": n_envs == 8, "own_n_steps": True, "repeat": repeat, "steps_per_second": rate}
    return row | {"update_ms_each": float(n_envs), "transitions": 32 * n_envs, "parameters": 1000}


@pytest.mark.slow
def test_a_study_is_resumed_and_writes_its_rows_its_table_and_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, [*QUICK, str(tmp_path), "--repeats", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "throughput.csv")
    assert not rows.duplicated(["algorithm", "environments", "n_envs", "n_steps", "width", "threads", "repeat"]).any()
    assert set(rows["threads"].astype(str)) == {"1", "default"}
    parts = rows[list(report.PARTS)].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(1e6 / rows["steps_per_second"].to_numpy(), rel=1e-6)
    text = (tmp_path / "throughput.md").read_text()
    assert "| 64 batched | 8 gymnasium |" in text
    assert "| 8 gymnasium | 8 gymnasium |" in text
    for name in ("throughput.png", "cost.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def refuse(*args: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(study, "speed", refuse)
    again = CliRunner().invoke(app, [*QUICK, str(tmp_path), "--repeats", "1"], catch_exceptions=False)
    assert again.exit_code == 0
    with pytest.raises(ValueError, match="measures of 1 steps, not 2 s"):
        study.measure_all([], tmp_path / "throughput.csv", 2.0, None, 1, False)


def test_ratios_are_of_pairs_from_one_repeat_of_one_run() -> None:
    rows = pd.DataFrame(
        [
            made_up(0, "a", "storm_plus_pg", "batched", 64, 300.0),
            made_up(0, "a", "ppo_zoo", "gymnasium", 8, 100.0),
            # A slower machine: both are.
            made_up(1, "a", "storm_plus_pg", "batched", 64, 30.0),
            made_up(1, "a", "ppo_zoo", "gymnasium", 8, 10.0),
            # No partner in its run.
            made_up(2, "b", "storm_plus_pg", "batched", 64, 9999.0),
            # Not PPO's own number of environments.
            made_up(0, "a", "ppo_zoo", "gymnasium", 64, 1.0),
            # Of wide networks and of images only with their like.
            made_up(0, "a", "storm_plus_pg", "gymnasium", 8, 50.0) | {"width": 256},
            made_up(0, "a", "ppo_zoo", "gymnasium", 8, 25.0) | {"width": 256},
            made_up(0, "a", "storm_plus_pg", "frames", 8, 6.0) | {"task": "Frames"},
            made_up(0, "a", PPO_ON_IMAGES, "frames", 8, 4.0) | {"task": "Frames"},
        ]
    )
    table = report.ratios(rows)
    assert table["ratio [lowest, highest]"].tolist() == ["3.00 [3.00, 3.00]", "2.00 [2.00, 2.00]", "1.50 [1.50, 1.50]"]
    assert table["over PPO on"].tolist() == ["8 gymnasium", "8 gymnasium", "8 frames"]
    assert table["width"].tolist() == [64, 256, 64]


def test_growth_finds_the_exponent_of_a_power_law() -> None:
    rows = [made_up(0, "a", "ppo_zoo", "gymnasium", n_envs, 1.0) for n_envs in (1, 8, 64)]
    growth = report.growth(pd.DataFrame(rows)).iloc[0]
    assert growth["environments"] == "1.00"
    assert growth["parameters"] == "-"


def test_time_to_the_threshold_is_the_median_over_seeds_of_stored_runs(tmp_path: Path, store: Any) -> None:
    for seed, hit in enumerate((20_000, 40_000, None)):
        store("storm_plus_pg", "CartPole-v1", seed, hit)
        store("ppo_zoo", "CartPole-v1", seed, 80_000)
        store("ppo_zoo", "Pendulum-v1", seed, 80_000)
    rows = report.to_threshold(study.to_threshold(tmp_path / "study"))
    assert rows["task"].tolist() == ["CartPole-v1"]
    assert rows["STORM+PG"].tolist() == ["24.0 s (3 seeds, 1 never)"]
    assert rows["PPO's over STORM+PG's"].tolist() == ["2.00"]


def test_timed_runs_are_kept_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(get_task("CartPole-v1"), budget=1_000)
    monkeypatch.setattr(study, "TIMED_TASKS", ["CartPole-v1"])
    monkeypatch.setattr(study, "get_task", lambda _: short)
    rows = study.time_all(tmp_path / "timed.csv", 1)
    assert rows["agent"].tolist() == ["storm_plus_pg", "ppo_zoo"]
    assert not rows["reached"].any()
    assert (rows["seconds_to_threshold"] > 0.0).all()
    again = study.time_all(tmp_path / "timed.csv", 1)
    pd.testing.assert_frame_equal(again, rows)
    assert "(1 seeds, 1 never)" in report.to_threshold(again)["PPO (RL Zoo's settings)"].iloc[0]


def test_batched_environments_take_the_place_of_rl_zoos_inside_its_normalisation() -> None:
    model = build("Acrobot-v1", "a2c_zoo", "batched", n_envs=3)
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    assert isinstance(env.venv, BatchedEnv)
    assert env.num_envs == 3
    model.learn(30)


@pytest.mark.parametrize("kind", ["vector", "envpool"])
def test_vector_environments_are_measured_behind_the_adapter(kind: str) -> None:
    if kind == "envpool" and not has_envpool():
        with pytest.raises(ValueError, match=r"pip install \"storm-rl\[envpool\]\""):
            build("CartPole-v1", "storm_plus_pg", kind)
        return
    for task, algorithm in (("CartPole-v1", "a2c_default"), ("Acrobot-v1", "a2c_zoo")):
        env = build(task, algorithm, kind, n_envs=3).get_env()
        inner = env.venv if isinstance(env, VecNormalize) else env
        assert isinstance(inner, VecMonitor)
        assert isinstance(inner.venv, VectorEnvAdapter)
    found = configurations("CartPole-v1", ["storm_plus_pg"], [8, 16], [64, 256], [512], "cpu", ["1"], [kind])
    assert [(c.environments, c.n_envs, c.width) for c in found] == [(kind, 8, 64), (kind, 16, 64)]
    assert report.label("a2c_default") == "A2C (SB3 defaults)"


def test_networks_with_convolutions_are_alike_on_pictures() -> None:
    found = on_images("cpu", ["1"])
    assert [c.n_envs * c.n_steps for c in found] == [1024, 1024, 40]
    sizes = set()
    for configuration in found:
        model = replace(configuration, n_envs=1, n_steps=4).build()
        assert model.observation_space.shape == (4, 84, 84)
        sizes.add(sum(values.numel() for values in model.policy.parameters()))
    assert len(sizes) == 1
    assert sizes.pop() > 2_000_000  # Convolutions for actor and critic each.


def test_one_update_is_measured_and_its_gradients() -> None:
    configuration = configurations("CartPole-v1", ["storm_plus_pg"], [8], [64], [], "cpu")[0]
    row = speed(configuration, 0.0, steps=512)
    assert row["steps"] == row["transitions"] == 512
    # Which is longer is not asked: other processes' load decides over one measure.
    assert min(row["gradient_ms"], row["two_point_gradient_ms"], row["autograd_gradient_ms"]) > 0
    assert row["environment_us"] < 1e6 / row["raw_steps_per_second"] * 100


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    held = b"x" * 300_000_000
    configuration = configurations("CartPole-v1", ["storm_plus_pg"], [8], [64], [], "cpu")[0]
    found = memory(configuration)
    assert 0 < found["peak_above_start_mib"] < found["peak_mib"] < peak_mib() + len(held)


def test_unsuitable_algorithms_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="throughput: 'gpomdp' is not on-policy with rollouts of fixed length"):
        build("CartPole-v1", "gpomdp")
