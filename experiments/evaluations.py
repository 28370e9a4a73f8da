"""Evaluations while a study's agent learns, which end the run at the task's threshold."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from envs import get_task
from experiments.measures import steps_to_threshold
from experiments.runs import EVALUATION_EPISODES, EVALUATION_SEED


class StopAtThreshold(BaseCallback):
    """Keeps evaluations of the deterministic policy, and ends the run at the threshold; when they are is a sub-class's.

    Args:
        task_id: Whose threshold it is.
        env: To evaluate in.
        evaluate_every: Env steps between two evaluations.
    """

    def __init__(self, task_id: str, env: VecEnv, evaluate_every: int) -> None:
        super().__init__()
        self.threshold = get_task(task_id).threshold
        self.env = env
        self.evaluate_every = evaluate_every
        self.steps: list[float] = []
        self.returns: list[float] = []

    @property
    def hit(self) -> float | None:
        """Env steps to the threshold, in two evaluations in a row."""
        return steps_to_threshold(self.steps, self.returns, self.threshold)

    @property
    def due(self) -> bool:
        """Whether it is time for the next evaluation."""
        return self.num_timesteps >= self.evaluate_every * (len(self.steps) + 1)

    def _on_step(self) -> bool:
        return self.hit is None

    def evaluate(self, seed: int = EVALUATION_SEED) -> None:
        """Evaluate the policy in episodes of this seed."""
        self.env.seed(seed)
        returns, _ = evaluate_policy(self.model, self.env, EVALUATION_EPISODES, return_episode_rewards=True, warn=False)
        self.steps.append(float(self.num_timesteps))
        self.returns.append(float(np.mean(returns)))
