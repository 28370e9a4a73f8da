"""The environments of the study, in a file of their own: an actor's process imports little else."""

import time
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor

# Seconds of a step: a simulator's, in which the processor is free.
STEP_SECONDS = 0.005


class Slow(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose ``step`` takes ``seconds`` more."""

    def __init__(self, env: gym.Env[Any, Any], seconds: float) -> None:
        super().__init__(env)
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        """As the environment's, later."""
        time.sleep(self.seconds)
        return self.env.step(action)


def slow_cartpole() -> gym.Env[Any, Any]:
    """CartPole with steps of `STEP_SECONDS`."""
    return Monitor(Slow(gym.make("CartPole-v1"), STEP_SECONDS))


def slow_pendulum() -> gym.Env[Any, Any]:
    """Pendulum with steps of two milliseconds: long enough for a fault to come in the middle of a rollout."""
    return Monitor(Slow(gym.make("Pendulum-v1"), 0.002))


def cartpole() -> gym.Env[Any, Any]:
    """CartPole."""
    return Monitor(gym.make("CartPole-v1"))


def pendulum() -> gym.Env[Any, Any]:
    """Pendulum."""
    return Monitor(gym.make("Pendulum-v1"))
