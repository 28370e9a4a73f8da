"""SRVR-PG: recursive variance reduction by epochs (Xu, Gao, Gu, ICLR 2020)."""

from typing import Any, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from storm_rl.common.anchored_recursion import AnchoredRecursion
from storm_rl.common.checks import check_integer
from storm_rl.common.trajectory_algorithm import Estimator, TrajectoryAlgorithm
from storm_rl.gradients.returns import Baseline


class EpochRecursion(AnchoredRecursion):
    """SARAH's recursion: a large batch, then ``epoch_length - 1`` small ones, each corrected at the step before.

    Args:
        epoch_length: Updates of an epoch, m in the paper.
    """

    def __init__(self, epoch_length: int) -> None:
        check_integer("epoch_length", epoch_length, 1)
        self.epoch_length = epoch_length
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """A new epoch after ``epoch_length`` updates."""
        self.large_batch = self.small_batches >= self.epoch_length - 1


class SRVRPG(TrajectoryAlgorithm):
    r"""SRVR-PG (Xu, Gao, Gu, ICLR 2020, arXiv 1909.08610, Algorithm 1).

    .. math:: v_0 = g(\theta_0; N), \quad v_t = v_{t-1} + g(\theta_t; B) - g_w(\theta_{t-1}; B)

    Departures from the theory: Adam in place of a constant step (as in the paper's experiments), and the last iterate
    in place of a random one.

    See `storm_rl.common.trajectory_algorithm.TrajectoryAlgorithm` for batches of episodes, time limits, the discount,
    and for the arguments that all of the family share.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class.
        env: Environment or its id.
        learning_rate: Of Adam.
        batch_size: N, episodes of a large batch.
        mini_batch_size: B, episodes of a small batch.
        epoch_length: Updates between two large batches, the first included.

    The remaining arguments are those of the base class.

    Raises:
        ValueError: If an argument is outside its range, or options exclude each other.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 5e-3,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        epoch_length: int = 10,
        gamma: float = 0.99,
        estimator: Estimator = "gpomdp",
        baseline: Baseline = "leave_one_out",
        weights: Literal["per_decision", "trajectory"] = "per_decision",
        weight_truncation: float | None = None,
        self_normalise: bool = False,
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
        self.epoch_length = epoch_length
        self.make_recursion()  # Refuses a value out of range before anything is built.
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,
            mini_batch_size=mini_batch_size,
            gamma=gamma,
            estimator=estimator,
            baseline=baseline,
            weights=weights,
            weight_truncation=weight_truncation,
            self_normalise=self_normalise,
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
        """See `EpochRecursion`."""
        return EpochRecursion(self.epoch_length)
