"""The algorithm with Ray's actors: equal to one process where it says so, and whole whatever becomes of an actor."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium.wrappers import OrderEnforcing
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

from storm_rl import STORMPlusPG
from tests.contract.cases import RandomEnv, assert_equal_states

pytest.importorskip("ray")

import ray

from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
from storm_rl.distributed.ray_vec_env import start_ray

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"n_steps": 16, "critic_steps": 4, "cg_max_steps": 2, "policy_kwargs": {"net_arch": [8]}}
SMALL |= {"seed": 0, "device": "cpu"}
N_ENVS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _cluster() -> Iterator[None]:
    ray.shutdown()  # What a test of this process may have left.
    # As many as any test asks for, whatever the machine has.
    start_ray(None, 8)
    yield
    ray.shutdown()


def actors_of(task: str) -> RayVecEnv:
    return make_vec_env(task, N_ENVS, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"n_actors": 2})  # type: ignore[arg-type, return-value]


# To start an actor takes as long as a test: these are shared, and each test resets them.
@pytest.fixture(scope="module")
def pendulum(_cluster: None) -> RayVecEnv:
    return actors_of("Pendulum-v1")


@pytest.fixture(scope="module")
def cartpole(_cluster: None) -> RayVecEnv:
    return actors_of("CartPole-v1")


class Seen(BaseCallback):
    """What callbacks are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.rollouts: list[str] = []

    def _on_step(self) -> bool:
        names = ("rewards", "dones", "new_obs", "actions")
        self.steps.append([self.num_timesteps, *(np.array(self.locals[name]).tolist() for name in names)])
        return True

    def _on_rollout_start(self) -> None:
        self.rollouts.append("start")

    def _on_rollout_end(self) -> None:
        self.rollouts.append("end")


def state_of(model: STORMPlusPG) -> dict[str, Any]:
    return {**model.get_parameters(), "random": torch.get_rng_state(), "noise": model._run_state()["exploration_noise"]}


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_synchronous_run_is_that_of_one_process_bit_for_bit_also_after_a_resume(
    task: str, pendulum: RayVecEnv, cartpole: RayVecEnv, tmp_path: Path
) -> None:
    seen, plainly_seen = Seen(), Seen()
    plain_env, env = make_vec_env(task, N_ENVS, seed=0), cartpole if task == "CartPole-v1" else pendulum
    plain = STORMPlusPG("MlpPolicy", plain_env, **SMALL).learn(400, plainly_seen)
    expected = state_of(plain)
    model = DistributedSTORMPlusPG("MlpPolicy", env, **SMALL).learn(400, seen)
    assert_equal_states(expected, state_of(model))
    assert model.num_timesteps == plain.num_timesteps == 448
    assert seen.steps == plainly_seen.steps
    assert seen.rollouts == plainly_seen.rollouts
    returns, plain_returns = ([one["r"] for one in run.ep_info_buffer or ()] for run in (model, plain))
    assert returns == plain_returns
    assert model.arrivals == [[0, 1]] * 7

    plain.save(tmp_path / "plain", include=["env_state"])
    torch.set_rng_state(expected["random"])
    model.save(tmp_path / "model", include=["env_state"])
    env.reset()  # Elsewhere, with other seeds.
    env.step(np.array([env.action_space.sample()] * N_ENVS))
    resumed = DistributedSTORMPlusPG.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    resumed.learn(128, reset_num_timesteps=False)
    found = state_of(resumed)
    plain = STORMPlusPG.load(tmp_path / "plain", env=plain_env, device="cpu", force_reset=False)
    plain.learn(128, reset_num_timesteps=False)
    assert_equal_states(state_of(plain), found)


def test_asynchronous_run_learns_from_every_step_and_says_how_old_it_was(pendulum: RayVecEnv) -> None:
    model = DistributedSTORMPlusPG("MlpPolicy", pendulum, mode="asynchronous", **SMALL)
    logged: dict[str, list[float]] = {}

    class Logged(Seen):
        def _on_rollout_end(self) -> None:
            for name, value in self.logger.name_to_value.items():
                logged.setdefault(name, []).append(value)

    seen = Logged()
    model.learn(700, seen)
    assert model.num_timesteps == 11 * 64
    assert len(seen.steps) == 11 * 16
    assert len(model.arrivals) == 11
    assert all(len(actors) == 2 and set(actors) <= {0, 1} for actors in model.arrivals)
    ages, shares = logged["actors/age_mean"], logged["actors/effective_sample_size"]
    assert ages[0] == 0.0  # Nothing was there before the first.
    assert max(ages) >= 1.0  # Begun before an update, learned from after it.
    # Weights are against the policy that acted: 1 where it is the present one.
    assert shares[0] == pytest.approx(1.0)
    assert min(shares) < 0.999
    assert logged["actors/kl_mean"][0] == pytest.approx(0.0, abs=1e-6)
    assert max(logged["actors/kl_mean"]) > 1e-3
    assert set(logged["actors/dropped"]) == {0}
    if (page := ROOT / "docs/tensorboard.md").exists():  # Not beside an installed wheel.
        text = page.read_text()
        assert not [name for name in logged if name.startswith("actors/") and f"`{name}`" not in text]
    # What is under way goes on in the next call, and a reset discards it.
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 12 * 64
    with pytest.raises(ValueError, match="actors are collecting"):
        model.save("nowhere", include=["env_state"])
    model.learn(64)
    assert model.num_timesteps == 64


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_actors_are_asked_for_rollouts_and_for_nothing_that_would_wait_for_them(
    mode: Any, pendulum: RayVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DistributedSTORMPlusPG("MlpPolicy", pendulum, mode=mode, **SMALL)
    monkeypatch.setattr(pendulum, "_results", lambda references: pytest.fail("the learner waits for actors"))
    model.learn(128)


def test_rollouts_beyond_the_bound_are_dropped_and_counted(pendulum: RayVecEnv) -> None:
    arguments = {**SMALL, "mode": "asynchronous", "max_rollout_kl": 1e-12}
    model = DistributedSTORMPlusPG("MlpPolicy", pendulum, **arguments)
    model.learn(256)
    # Each update moves the policy, so that what was begun before it is too far away; what is begun after it is not.
    assert model.dropped > 0
    learned_from = 16 * N_ENVS * len(model.arrivals)
    assert model.num_timesteps == learned_from + 16 * (N_ENVS // 2) * model.dropped
    # No rollout goes on where one was dropped: each that arrived before an update is alone.
    assert len(set(model.window.stretches)) == len(model.window.stretches)


def test_step_shrinks_with_the_effective_sample_size(pendulum: RayVecEnv) -> None:
    model = DistributedSTORMPlusPG("MlpPolicy", pendulum, mode="asynchronous", target_kl=0.02, **SMALL)
    model._setup_learn(1)
    model._effective_share = 0.25
    assert model._bounded(0.5, 0.01) == 0.125
    assert model._bounded(100.0, 1.0) == pytest.approx(0.25 * 0.04**0.5)


def test_callback_that_ends_a_round_leaves_no_gap_in_what_follows(pendulum: RayVecEnv) -> None:
    class Stops(Seen):
        def _on_step(self) -> bool:
            return super()._on_step() and self.n_calls != 20

    model = DistributedSTORMPlusPG("MlpPolicy", pendulum, **SMALL)
    before = set(pendulum.stretches)
    model.learn(1_000, Stops())
    assert model.num_timesteps == 20 * N_ENVS
    # The actors are further on: nothing of the window goes on there.
    assert not before & set(pendulum.stretches)
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 20 * N_ENVS + 128
    assert len(model.window.rollouts) == 2


FAULTS = {"dies": "died", "raises": "of the simulator", "hangs": "has not answered", "NaN": "gave reward nan"}


def faulty(faults: list[str], folder: Path) -> Callable[[], gym.Env[Any, Any]]:
    """Makes environments that do, at their tenth step, what none has done yet. By value: workers have no tests."""

    class Faulty(gym.Wrapper):  # type: ignore[type-arg]
        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            observation, reward, *rest = self.env.step(action)
            left = [fault for fault in faults if not (folder / fault).exists()]
            if self.steps == 10 and left:
                (folder / left[0]).touch()
                if left[0] == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                while left[0] == "hangs":
                    time.sleep(0.1)
                if left[0] == "raises":
                    raise ZeroDivisionError("of the simulator")
                reward = float("nan")
            return observation, reward, *rest

    return lambda: Faulty(gym.make("Pendulum-v1"))


@pytest.mark.parametrize(("mode", "first"), [("synchronous", ["dies"]), ("asynchronous", ["dies", "raises"])])
def test_lost_actors_are_named_and_cost_their_unfinished_rollout(mode: str, first: list[str], tmp_path: Path) -> None:
    second = [] if mode == "synchronous" else ["hangs", "NaN"]
    end = time.monotonic() + 300.0
    # Under load one that is well may seem to hang: more restarts than faults.
    env = RayVecEnv([faulty(first, tmp_path), faulty(second, tmp_path)], 2, max_restarts=50, timeout=5.0)
    model: Any = DistributedSTORMPlusPG("MlpPolicy", env, **SMALL, mode=mode)
    expected = [(0, fault) for fault in first] + [(1, fault) for fault in second]

    def reported(index: int, fault: str) -> bool:
        begin = f"actor {index} (environments {index} to {index})"
        return any(
            report.startswith(begin) and FAULTS[fault] in report and "started anew with fresh environments" in report
            for report in reports
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(2 * 16 * 8)
        # One actor may have collected all of it while the other hung.
        while time.monotonic() < end:
            reports = [str(warning.message) for warning in caught if "is lost" in str(warning.message)]
            if all(reported(*each) for each in expected):
                break
            model.learn(2 * 16, reset_num_timesteps=False)
    env.close()
    assert len(reports) == env.restarts
    assert [each for each in expected if not reported(*each)] == [], reports
    if "raises" in first:
        assert any("in step" in report and "ZeroDivisionError" in report for report in reports)  # The traceback.
    # Nothing else is lost, and nothing is learned from twice.
    assert model.num_timesteps == 2 * 16 * len(model.arrivals) >= 2 * 16 * 8


def test_restarts_end_where_it_was_said() -> None:
    env = RayVecEnv([lambda: RandomEnv(fault=("reward", float("inf"), 3))], 1, max_restarts=1)
    model = DistributedSTORMPlusPG("MlpPolicy", env, **SMALL)
    error = r"(?s)actor 0 \(environments .*gave reward inf.*No restart is left of max_restarts=1"
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=error):
        model.learn(64)
    env.close()


def test_environments_behave_as_those_of_one_process(cartpole: RayVecEnv) -> None:
    env, plain = cartpole, make_vec_env("CartPole-v1", N_ENVS, seed=3)
    env.seed(3)
    np.testing.assert_array_equal(env.reset(), plain.reset())
    for _ in range(60):
        actions = np.array([1, 0, 1, 1])
        for one, other in zip(env.step(actions)[:3], plain.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    env.set_attr("mark", 7, indices=[1, 2])
    assert env.get_attr("mark", indices=2) == [7]
    assert env.get_attr("mark", indices=[1, 2]) == [7, 7]
    # Not TimeLimit: where a test of this process has imported the RL Zoo, its own stands in its place, in this process.
    assert env.env_is_wrapped(OrderEnforcing) == plain.env_is_wrapped(OrderEnforcing) == [True] * N_ENVS
    assert env.env_method("get_wrapper_attr", "spec", indices=[3])[0].id == "CartPole-v1"
    A2C("MlpPolicy", env, n_steps=2, device="cpu").learn(16)


def test_arguments_are_checked(cartpole: RayVecEnv) -> None:
    with pytest.raises(ValueError, match="n_actors=2 and 3 env_fns"):
        RayVecEnv([broken] * 3, 2)
    with pytest.raises(ValueError, match="timeout must be greater than 0, got 0"):
        RayVecEnv([broken] * 2, 2, timeout=0)
    with pytest.raises(TypeError, match=r"needs a storm_rl.distributed.RayVecEnv, got a DummyVecEnv"):
        DistributedSTORMPlusPG("MlpPolicy", "CartPole-v1")
    with pytest.raises(TypeError, match="got a VecMonitor; wrappers go"):
        DistributedSTORMPlusPG("MlpPolicy", VecMonitor(cartpole))
    with pytest.raises(ValueError, match="mode must be one of 'synchronous', 'asynchronous', got 'fast'"):
        DistributedSTORMPlusPG("MlpPolicy", cartpole, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_rollout_kl"):
        DistributedSTORMPlusPG("MlpPolicy", cartpole, max_rollout_kl=0.0)
    with pytest.raises(RuntimeError, match=r"(?s)actor 0 \(environments 0 to 1\) did not start.*no such simulator"):
        RayVecEnv([broken] * 2, 1)


def broken() -> gym.Env[Any, Any]:
    raise ValueError("no such simulator")


SCRIPT = """
import sys, torch
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
from storm_rl.distributed.ray_vec_env import start_ray
if __name__ == "__main__":
    env = make_vec_env("Pendulum-v1", 2, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"n_actors": 1})
    arguments = dict(n_steps=16, critic_steps=4, policy_kwargs={"net_arch": [8]}, device="cpu")
    model = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", **arguments)
    model.learn(10**9, CheckpointCallback(50, sys.argv[1], name_prefix="learner"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_learner_that_is_ended_leaves_no_process_and_goes_on_from_its_checkpoint(
    number: signal.Signals, pendulum: RayVecEnv, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=heed, stderr=subprocess.PIPE, text=True
    )
    until(lambda: process.poll() is not None or any(tmp_path.glob("learner_*.zip")))
    assert process.poll() is None, process.stderr and process.stderr.read()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 2  # Ray's own and the actor.
    os.killpg(process.pid, number)
    process.communicate(timeout=600)
    until(lambda: not any(alive(one) for one in family))

    newest = max(tmp_path.glob("learner_*.zip"), key=lambda path: path.stat().st_mtime)
    model = DistributedSTORMPlusPG.load(newest, env=pendulum, device="cpu")
    steps = model.num_timesteps
    assert steps > 0
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == steps + 64
    assert not list(tmp_path.glob(".*.part"))


def until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
