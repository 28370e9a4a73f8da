"""PAGE-PG: a coin decides between large and small batches (Gargiani et al., ICML 2022)."""

from typing import Any, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from storm_rl.common.anchored_recursion import AnchoredRecursion
from storm_rl.common.checks import check_range
from storm_rl.common.trajectory_algorithm import Estimator, TrajectoryAlgorithm
from storm_rl.gradients.returns import Baseline


class CoinRecursion(AnchoredRecursion):
    """SARAH's recursion without epochs: the next batch is large with probability ``probability``.

    Args:
        probability: p in the paper, in (0, 1].
    """

    def __init__(self, probability: float) -> None:
        check_range("probability", probability, 0.0, 1.0, low_included=False)
        self.probability = probability
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """Toss the coin, with torch's seeded generator."""
        self.large_batch = bool(torch.rand(()) < self.probability)


class PAGEPG(TrajectoryAlgorithm):
    r"""PAGE-PG (Gargiani, Zanelli, Martinelli, Summers, Lygeros, ICML 2022, arXiv 2202.00308, Algorithm 1).

    .. math::
        v_t = g(\theta_t; N) \text{ with probability } p, \quad
        v_t = v_{t-1} + g(\theta_t; B) - g_w(\theta_{t-1}; B) \text{ otherwise}

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
        self.probability = probability
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
        """See `CoinRecursion`."""
        return CoinRecursion(self.probability)
