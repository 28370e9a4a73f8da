"""The family: variance-reduced policy gradients over whole trajectories, told apart by their recursions.

Arguments, errors and conventions that all of them share are those of
:class:`~storm_rl.episodic.episodic_algorithm.EpisodicAlgorithm`: batches (``batch_size`` is N episodes, large,
``mini_batch_size`` B, small), time limits, the discount. All depart from the theory by Adam in place of a constant
step (as SRVR-PG's own experiments do), and by the last iterate in place of a random one.
"""

from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate
from torch import Tensor

from storm_rl.common.checks import check_range
from storm_rl.common.importance_weights import defensive_weights
from storm_rl.episodic import recursions
from storm_rl.episodic.episodic_algorithm import EpisodicAlgorithm, Estimator
from storm_rl.episodic.returns import Baseline


class EpisodicArguments(TypedDict, total=False):
    """Arguments of `EpisodicAlgorithm` that all of the family share."""

    gamma: float
    estimator: Estimator
    baseline: Baseline
    critic_learning_rate: float
    critic_epochs: int
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: torch.device | str
    _init_setup_model: bool


class WeightedArguments(EpisodicArguments, total=False):
    """And those of importance weights that are free."""

    weights: Literal["per_decision", "trajectory"]
    max_weight: float | None
    self_normalise: bool


class GPOMDP(EpisodicAlgorithm):
    r"""REINFORCE (Williams, 1992) and GPOMDP (Baxter, Bartlett, JAIR 2001) with Adam.

    .. math:: \hat g = \frac{1}{N} \sum_i \sum_k \nabla \log \pi(a_{ik}|s_{ik}) \sum_{h \ge k} \gamma^h r_{ih}

    with a baseline, leave-one-out by default, where the papers' is none or a constant. REINFORCE sums all rewards of
    the episode in place of those to come.

    Args:
        batch_size: Episodes of a batch.
        **kwargs: See `EpisodicAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-2,
        batch_size: int = 20,
        **kwargs: Unpack[EpisodicArguments],
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,
            mini_batch_size=batch_size,
            weights="trajectory",
            # Given here so that Python refuses them from the caller: they would have no effect.
            max_weight=None,
            self_normalise=False,
            **kwargs,
        )

    def make_recursion(self) -> recursions.AnchoredRecursion:
        """See `EpochRecursion`."""
        return recursions.EpochRecursion(epoch_length=1)


class SVRPG(EpisodicAlgorithm):
    r"""SVRPG (Papini, Binaghi, Canonaco, Pirotta, Restelli, ICML 2018, arXiv 1806.05618), practical variant.

    .. math:: v_t = \hat\nabla_N J(\tilde\theta) + g(\theta_t; B) - g_w(\tilde\theta; B)

    As in section 5 and the appendix on practical versions of the paper, and in the authors' code: the snapshot's
    large batch makes a step of its own; snapshots and small batches have an Adam each, the latter at half the
    learning rate; a new snapshot is taken when the effective step of the small batches falls behind (see
    `SnapshotRecursion`), and at the latest after ``max_sub_iterations``; importance weights are per decision,
    self-normalised on demand; a critic is updated at snapshots only.

    Departures: the effective step size is the norm of Adam's step over that of its first moment, as in the authors'
    code, where the paper says no more than "the step size proposed by Adam"; both Adams have the ``beta_2`` of the
    paper's table, .99, where the code has .999 for snapshots and mostly .9 for small batches; the paper's actor-only
    runs have no baseline, here ``leave_one_out`` is the default, which is unbiased too; self-normalisation is by step
    for per-decision weights; the critic, if there is one, is the policy's network and not a linear one. The adaptive
    number of sub-iterations, which the theory does not have, is the paper's own.

    Args:
        max_sub_iterations: Largest number of small batches on one snapshot (cart-pole of the paper: 50, others 20).
        **kwargs: See `EpisodicAlgorithm`.
    """

    fits_critic_to_large_batches_only = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-2,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        max_sub_iterations: int = 50,
        **kwargs: Unpack[WeightedArguments],
    ) -> None:
        self.max_sub_iterations = max_sub_iterations
        super().__init__(policy, env, learning_rate, batch_size=batch_size, mini_batch_size=mini_batch_size, **kwargs)

    def make_recursion(self) -> recursions.AnchoredRecursion:
        """See `SnapshotRecursion`."""
        return recursions.SnapshotRecursion(self.batch_size, self.mini_batch_size, self.max_sub_iterations)

    def _look_up_parameters(self) -> None:
        super()._look_up_parameters()
        self.snapshot_optimizer = self._actor_optimizer()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "snapshot_optimizer"], tensors

    def _optimizer(self, large: bool) -> torch.optim.Optimizer:
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.snapshot_optimizer, learning_rate)
        update_learning_rate(self.actor_optimizer, learning_rate / 2)
        self.logger.record("train/learning_rate", learning_rate)
        return self.snapshot_optimizer if large else self.actor_optimizer


class SRVRPG(EpisodicAlgorithm):
    r"""SRVR-PG (Xu, Gao, Gu, ICLR 2020, arXiv 1909.08610, Algorithm 1).

    .. math:: v_0 = g(\theta_0; N), \quad v_t = v_{t-1} + g(\theta_t; B) - g_w(\theta_{t-1}; B)

    Args:
        epoch_length: Updates between two large batches, the first included.
        **kwargs: See `EpisodicAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 5e-3,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        epoch_length: int = 10,
        **kwargs: Unpack[WeightedArguments],
    ) -> None:
        self.epoch_length = epoch_length
        super().__init__(policy, env, learning_rate, batch_size=batch_size, mini_batch_size=mini_batch_size, **kwargs)

    def make_recursion(self) -> recursions.AnchoredRecursion:
        """See `EpochRecursion`."""
        return recursions.EpochRecursion(self.epoch_length)


class STORMPG(EpisodicAlgorithm):
    r"""STORM-PG (Yuan, Lian, Liu, Zhou, 2020, arXiv 2003.04302, Algorithm 1).

    .. math:: u_t = g(\theta_t; B) + (1 - a) (u_{t-1} - g_w(\theta_{t-1}; B)), \quad u_0 = g(\theta_0; N)

    Args:
        momentum: ``a`` in [0, 1]; 1 is GPOMDP with small batches, 0 never forgets an error.
        **kwargs: See `EpisodicAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 5e-3,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        momentum: float = 0.3,
        **kwargs: Unpack[WeightedArguments],
    ) -> None:
        self.momentum = momentum
        super().__init__(policy, env, learning_rate, batch_size=batch_size, mini_batch_size=mini_batch_size, **kwargs)

    def make_recursion(self) -> recursions.AnchoredRecursion:
        """See `MomentumRecursion`."""
        return recursions.MomentumRecursion(self.momentum)


class PAGEPG(EpisodicAlgorithm):
    r"""PAGE-PG (Gargiani, Zanelli, Martinelli, Summers, Lygeros, ICML 2022, arXiv 2202.00308, Algorithm 1).

    .. math::
        v_t = g(\theta_t; N) \text{ with probability } p, \quad
        v_t = v_{t-1} + g(\theta_t; B) - g_w(\theta_{t-1}; B) \text{ otherwise}

    Args:
        probability: p in (0, 1], of a large batch.
        **kwargs: See `EpisodicAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 5e-3,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        probability: float = 0.2,
        **kwargs: Unpack[WeightedArguments],
    ) -> None:
        self.probability = probability
        super().__init__(policy, env, learning_rate, batch_size=batch_size, mini_batch_size=mini_batch_size, **kwargs)

    def make_recursion(self) -> recursions.AnchoredRecursion:
        """See `CoinRecursion`."""
        return recursions.CoinRecursion(self.probability)


class DEFPG(PAGEPG):
    r"""DEF-PG (Papini, Metelli, Restelli, "Sample complexity of variance-reduced policy gradient: weaker assumptions
    and lower bounds", Machine Learning 2024): PAGE-PG whose small batches are sampled by a mixture.

    .. math::
        v_t = v_{t-1} + \frac{1}{B} \sum_i w_t(\tau_i) g(\theta_t; \tau_i) - w_{t-1}(\tau_i) g(\theta_{t-1}; \tau_i),
        \quad \tau_i \sim (1 - b) p_{\theta_t} + b \, p_{\theta_{t-1}}

    Each episode of a small batch is played throughout by the previous policy with probability ``b``, and both
    gradients are weighted against the mixture, by weights that cannot overflow
    (:func:`~storm_rl.common.importance_weights.defensive_weights`). ``b = 0`` is PAGE-PG. The authors' code weights
    trajectories (``weights="trajectory"``); the default here is the per-decision form, which has less variance.

    Args:
        probability: p in (0, 1], of a large batch.
        defensive: b in [0, 1), the previous policy's share of a small batch.
        **kwargs: See `EpisodicAlgorithm`.
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
        weights: Literal["per_decision", "trajectory"] = "per_decision",
        **kwargs: Unpack[EpisodicArguments],
    ) -> None:
        check_range("defensive", defensive, 0.0, 1.0)
        if defensive == 1.0:
            raise ValueError(f"defensive must lie in [0, 1) (the previous policy's share), got {defensive}")
        self.defensive = defensive
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size,
            mini_batch_size,
            probability,
            weights=weights,
            max_weight=None,
            self_normalise=False,
            **kwargs,
        )

    def _draw_sources(self, n_episodes: int) -> npt.NDArray[np.int64]:
        if self.recursion.large_batch:
            return super()._draw_sources(n_episodes)
        return np.asarray(torch.rand(n_episodes) < self.defensive, dtype=np.int64)

    def _importance_weights(self, log_prob: Tensor) -> list[Tensor | None]:
        if len(log_prob) == 1:
            return [None]
        per_decision, mask = self.weights == "per_decision", self.batch.mask
        current, previous = log_prob
        return [defensive_weights(target, current, previous, self.defensive, mask, per_decision) for target in log_prob]
