"""Environments that are in processes of their own inside an actor: equal to one process, and gone with the actor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

pytest.importorskip("ray")

import ray

from storm_rl import STORMPlusPG
from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
from storm_rl.distributed.ray_vec_env import start_ray
from tests.contract.cases import assert_equal_states
from tests.distributed.test_distributed_storm_plus_pg import SMALL, alive, faulty, state_of, until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _cluster() -> Iterator[None]:
    ray.shutdown()  # What a test of this process may have left.
    start_ray(None, 4)
    yield
    ray.shutdown()


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_synchronous_run_is_that_of_one_process_bit_for_bit(task: str, tmp_path: Path) -> None:
    inside = {"n_actors": 2, "vec_env_cls": SubprocVecEnv}
    env: Any = make_vec_env(task, 4, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs=inside)  # type: ignore[arg-type]
    plain = STORMPlusPG("MlpPolicy", make_vec_env(task, 4, seed=0), **SMALL).learn(400)
    expected = state_of(plain)
    model = DistributedSTORMPlusPG("MlpPolicy", env, **SMALL).learn(400)
    assert_equal_states(expected, state_of(model))
    returns, plain_returns = ([one["r"] for one in run.ep_info_buffer or ()] for run in (model, plain))
    assert returns == plain_returns
    with pytest.raises(ValueError, match=r"^the environments' state cannot be kept: they are in a SubprocVecEnv"):
        model.save(tmp_path / "model", include=["env_state"])
    assert len(set(env.env_method("get_wrapper_attr", "_max_episode_steps"))) == 1
    env.close()


def hanging() -> Callable[[], gym.Env[Any, Any]]:
    """Makes environments whose step never ends. By value: workers have no tests."""

    class Hanging(gym.Wrapper):  # type: ignore[type-arg]
        @property
        def process(self) -> int:
            return os.getpid()

        def step(self, action: Any) -> Any:
            while True:
                time.sleep(0.1)

    return lambda: Hanging(gym.make("CartPole-v1"))


def family_of(env: RayVecEnv) -> tuple[psutil.Process, list[psutil.Process]]:
    """The only actor's process, and all that it has started; each environment is in one of its own."""
    of_environments = env.get_attr("process")
    assert len(set(of_environments)) == env.num_envs
    (actor,) = {ancestor for process in of_environments for ancestor in psutil.Process(process).parents()[1:2]}
    assert "RolloutActor" in "".join(actor.cmdline())
    family = actor.children(recursive=True)
    assert {*of_environments} < {process.pid for process in family}  # And multiprocessing's own.
    return actor, family


@pytest.mark.parametrize("end", ["close", "SIGKILL"])
def test_processes_of_environments_end_with_their_actor_whatever_they_are_doing(end: str) -> None:
    env = RayVecEnv([hanging()] * 2, 1, vec_env_cls=SubprocVecEnv)
    env.reset()
    actor, family = family_of(env)
    env.step_async(np.zeros(2, dtype=int))
    if end == "close":
        env.close()
    else:
        actor.kill()
    until(lambda: not any(alive(process) for process in family), 120.0)
    env.close()


SCRIPT = """
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from storm_rl.distributed import RayVecEnv
from tests.distributed.test_vec_env_cls import family_of, hanging
if __name__ == "__main__":
    env = RayVecEnv([hanging()] * 2, 1, vec_env_cls=SubprocVecEnv)
    env.reset()
    actor, family = family_of(env)
    env.step_async(np.zeros(2, dtype=int))
    print(*(process.pid for process in [actor, *family]), flush=True)
    input()
"""


def test_processes_of_environments_end_with_the_learner() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, **pipes) as learner:
        assert learner.stdout is not None
        family = [psutil.Process(int(number)) for number in learner.stdout.readline().split()]
        assert len(family) > 3
        learner.send_signal(signal.SIGKILL)
    until(lambda: not any(alive(process) for process in family), 120.0)


def test_environment_that_dies_costs_its_actors_unfinished_rollout(tmp_path: Path) -> None:
    env = RayVecEnv([faulty(["dies"], tmp_path)] * 2, 1, max_restarts=50, vec_env_cls=SubprocVecEnv)
    model: Any = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", **SMALL)
    with pytest.warns(
        RuntimeWarning, match=r"actor 0 \(environments 0 to 1\) is lost: (?s:.*)(EOF|Connection)\w*Error"
    ):
        model.learn(2 * 16 * 4)
    assert env.restarts >= 1
    assert model.num_timesteps == 2 * 16 * len(model.arrivals) == 2 * 16 * 4
    env.close()


def test_arguments_are_checked() -> None:
    for wrong in ("SubprocVecEnv", gym.Env, None, VecMonitor, RayVecEnv):
        with pytest.raises(TypeError, match=r"vec_env_cls must be a class of VecEnv .* or SubprocVecEnv, got "):
            RayVecEnv([hanging()], 1, vec_env_cls=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"vec_env_kwargs must be a dict of arguments or None, got 'fork'"):
        RayVecEnv([hanging()], 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs="fork")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"(?s)actor 0 .* did not start.*unexpected keyword argument 'start'"):
        RayVecEnv([hanging()], 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start": "fork"})
