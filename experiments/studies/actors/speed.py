"""Env steps per second of `learn` where a step takes five milliseconds, and env steps to Pendulum's threshold."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from experiments.evaluations import StopAtThreshold
from experiments.rows import Row
from experiments.runs import EVALUATION_EPISODES
from experiments.studies.actors.environment import pendulum, slow_cartpole
from storm_rl import STORMPlusPG
from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
from storm_rl.distributed.ray_vec_env import start_ray

N_ENVS = 8
# Of actors that step their environments in turn, and of those that step them at the same time.
ACTORS, AT_ONCE = (4, 8), 4
TASK = "Pendulum-v1"
# Env steps: of one measurement of speed, six rounds; between two evaluations; after which a run is given up.
MEASURED_STEPS = 6 * 512
EVALUATE_EVERY = 1024
BUDGET = 40 * EVALUATE_EVERY


def _one_process(kind: type[DummyVecEnv | SubprocVecEnv]) -> Callable[[], STORMPlusPG]:
    return lambda: STORMPlusPG("MlpPolicy", kind([slow_cartpole] * N_ENVS), seed=0, device="cpu")


def _actors(n_actors: int, inside: type[DummyVecEnv | SubprocVecEnv] = DummyVecEnv) -> Callable[[], STORMPlusPG]:
    def model() -> STORMPlusPG:
        env = RayVecEnv([slow_cartpole] * N_ENVS, n_actors, vec_env_cls=inside)
        return DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", seed=0, device="cpu")

    return model


CONFIGURATIONS: dict[str, Callable[[], STORMPlusPG]] = {
    "DummyVecEnv of 8": _one_process(DummyVecEnv),
    "SubprocVecEnv of 8": _one_process(SubprocVecEnv),
    **{f"{n} actors of {N_ENVS // n}, asynchronous": _actors(n) for n in ACTORS},
    f"{AT_ONCE} actors of {N_ENVS // AT_ONCE} in SubprocVecEnv, asynchronous": _actors(AT_ONCE, SubprocVecEnv),
}


def speeds(missing: list[tuple[str, int]], add: Callable[[Row], None]) -> None:
    """Measure each configuration and repeat that is missing, in this order; processes start once."""
    start_ray(None, sum(ACTORS) + AT_ONCE)  # The actors of all configurations are there at a time.
    models = {}
    for name in dict.fromkeys(name for name, _ in missing):
        # The first rollouts import, allocate and compile.
        models[name] = CONFIGURATIONS[name]().learn(1024)
    for name, repeat in missing:
        # Actors have gone on while others were measured: a round takes that in.
        models[name].learn(512, reset_num_timesteps=False)
        before, began = models[name].num_timesteps, time.perf_counter()
        models[name].learn(MEASURED_STEPS, reset_num_timesteps=False)
        seconds = time.perf_counter() - began
        add({"configuration": name, "repeat": repeat, "rate": (models[name].num_timesteps - before) / seconds})
    for model in models.values():
        assert model.env is not None
        model.env.close()


class Evaluations(StopAtThreshold):
    """Evaluates the deterministic policy every so many env steps, and ends the run at the threshold."""

    def __init__(self) -> None:
        super().__init__(TASK, DummyVecEnv([pendulum] * EVALUATION_EPISODES), EVALUATE_EVERY)

    def _on_rollout_end(self) -> None:
        if self.due:
            self.evaluate()


def learned(mode: str, seed: int) -> Row:
    """Env steps to Pendulum's threshold. Synchronous actors do what one process does, and that is what is run."""
    callback, ages = Evaluations(), list[float]()
    arguments: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if mode == "synchronous":
        STORMPlusPG("MlpPolicy", DummyVecEnv([pendulum] * N_ENVS), **arguments).learn(BUDGET, callback)
    else:
        env = RayVecEnv([pendulum] * N_ENVS, 4)
        model = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", **arguments)

        class Ages(BaseCallback):
            def _on_step(self) -> bool:
                return True

            def _on_rollout_end(self) -> None:
                ages.append(self.logger.name_to_value["actors/age_mean"])

        model.learn(BUDGET, [callback, Ages()])
        env.close()
    reached = callback.hit is not None
    steps = callback.hit if reached else BUDGET
    return {"mode": mode, "seed": seed, "reached": reached, "steps": steps, "age": float(np.mean(ages or [0.0]))}
