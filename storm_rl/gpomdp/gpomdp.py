"""REINFORCE and GPOMDP: the plain policy gradient over whole trajectories."""

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from storm_rl.common.anchored_recursion import AnchoredRecursion
from storm_rl.common.trajectory_algorithm import Estimator, TrajectoryAlgorithm
from storm_rl.gradients.returns import Baseline


class PlainGradient(AnchoredRecursion):
    """No memory: every batch is a large one and its gradient is the direction."""

    def schedule(self, step_size: float) -> None:
        """Another batch of the same kind."""


class GPOMDP(TrajectoryAlgorithm):
    r"""REINFORCE (Williams, 1992) and GPOMDP (Baxter, Bartlett, JAIR 2001) with Adam.

    .. math:: \hat g = \frac{1}{N} \sum_i \sum_k \nabla \log \pi(a_{ik}|s_{ik}) \sum_{h \ge k} \gamma^h r_{ih}

    with a baseline; REINFORCE sums all rewards of the episode in place of those to come.

    Departures from the papers: Adam in place of a constant step; a leave-one-out baseline by default, where theirs is
    none or a constant.

    See `storm_rl.common.trajectory_algorithm.TrajectoryAlgorithm` for batches of episodes, time limits, the discount,
    and for the arguments that all of the family share.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class.
        env: Environment or its id.
        learning_rate: Of Adam.
        batch_size: Episodes of a batch.

    The remaining arguments are those of the base class.

    Raises:
        ValueError: If an argument is outside its range, or options exclude each other.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-2,
        batch_size: int = 20,
        gamma: float = 0.99,
        estimator: Estimator = "gpomdp",
        baseline: Baseline = "leave_one_out",
        critic_learning_rate: float = 1e-3,
        critic_epochs: int = 10,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,
            mini_batch_size=batch_size,
            gamma=gamma,
            estimator=estimator,
            baseline=baseline,
            weights="trajectory",
            weight_truncation=None,
            self_normalise=False,
            critic_learning_rate=critic_learning_rate,
            critic_epochs=critic_epochs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def make_recursion(self) -> AnchoredRecursion:
        """See `PlainGradient`."""
        return PlainGradient()
