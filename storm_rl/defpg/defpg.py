"""DEF-PG: variance reduction with defensive sampling (Papini, Metelli, Restelli, Machine Learning 2024)."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from storm_rl.common.anchored_recursion import AnchoredRecursion
from storm_rl.common.checks import check_range
from storm_rl.common.importance_weights import defensive_weights
from storm_rl.common.trajectory_algorithm import Estimator, TrajectoryAlgorithm
from storm_rl.gradients.returns import Baseline
from storm_rl.pagepg.pagepg import CoinRecursion


class DEFPG(TrajectoryAlgorithm):
    r"""DEF-PG (Papini, Metelli, Restelli, "Sample complexity of variance-reduced policy gradient: weaker assumptions
    and lower bounds", Machine Learning 2024): PAGE-PG whose small batches are sampled by a mixture.

    .. math::
        v_t = v_{t-1} + \frac{1}{B} \sum_i w_t(\tau_i) g(\theta_t; \tau_i) - w_{t-1}(\tau_i) g(\theta_{t-1}; \tau_i),
        \quad \tau_i \sim (1 - b) p_{\theta_t} + b \, p_{\theta_{t-1}}

    Each episode of a small batch is played throughout by the previous policy with probability ``b``, and both
    gradients are weighted against the mixture. The weights are at most ``1 / (1 - b)`` and ``1 / b``, whatever the
    horizon and the step: they cannot overflow. ``b = 0`` is PAGE-PG. The authors' code weights trajectories
    (``weights="trajectory"``); the default here is the per-decision form, which has less variance.

    Departures from the theory: Adam in place of a constant step, the last iterate in place of a random one.

    See `storm_rl.common.trajectory_algorithm.TrajectoryAlgorithm` for batches of episodes, time limits, the discount,
    and for the arguments that all of the family share.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class.
        env: Environment or its id.
        learning_rate: Of Adam.
        batch_size: N, episodes of a large batch.
        mini_batch_size: B, episodes of a small batch.
        probability: p in (0, 1], of a large batch.
        defensive: b in [0, 1), the previous policy's share of a small batch.

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
        probability: float = 0.2,
        defensive: float = 0.5,
        gamma: float = 0.99,
        estimator: Estimator = "gpomdp",
        baseline: Baseline = "leave_one_out",
        weights: Literal["per_decision", "trajectory"] = "per_decision",
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
        check_range("defensive", defensive, 0.0, 1.0)
        if defensive == 1.0:
            raise ValueError(f"defensive must lie in [0, 1) (the previous policy's share), got {defensive}")
        self.probability = probability
        self.defensive = defensive
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
        """See `CoinRecursion`."""
        return CoinRecursion(self.probability)

    def _draw_sources(self, n_episodes: int) -> npt.NDArray[np.int64]:
        if self.recursion.large_batch:
            return super()._draw_sources(n_episodes)
        drawn: npt.NDArray[np.int64] = (torch.rand(n_episodes) < self.defensive).long().numpy()
        return drawn

    def _importance_weights(self, log_prob: Tensor) -> list[Tensor | None]:
        if len(log_prob) == 1:
            return [None]
        per_decision, mask = self.weights == "per_decision", self._batch.mask
        current, previous = log_prob
        return [
            defensive_weights(target, current, previous, self.defensive, mask, per_decision)
            for target in (current, previous)
        ]
