"""SVRPG: stochastic variance-reduced policy gradient (Papini et al., ICML 2018), practical variant."""

from typing import Any, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate

from storm_rl.common.anchored_recursion import AnchoredRecursion
from storm_rl.common.checks import check_integer
from storm_rl.common.trajectory_algorithm import Estimator, TrajectoryAlgorithm
from storm_rl.gradients.returns import Baseline


class SnapshotRecursion(AnchoredRecursion):
    r"""The anchor is the last snapshot and stays there until a new one pays.

    A snapshot is due when :math:`\alpha_{FG} / N > \alpha_{SI} / B`: the step of the last large batch was longer,
    for each trajectory that it took, than the step of the last small one (section 5.2 of the paper); and at the
    latest after ``max_sub_iterations`` small batches.

    Args:
        batch_size: N.
        mini_batch_size: B.
        max_sub_iterations: Largest number of small batches on one snapshot.
    """

    moves_anchor = False

    def __init__(self, batch_size: int, mini_batch_size: int, max_sub_iterations: int) -> None:
        check_integer("max_sub_iterations", max_sub_iterations, 1)
        self.batch_size = batch_size
        self.mini_batch_size = mini_batch_size
        self.max_sub_iterations = max_sub_iterations
        self.snapshot_step_size = 0.0
        super().__init__(momentum=0.0)

    def schedule(self, step_size: float) -> None:
        """Compare the two Adams' effective step sizes."""
        if self.large_batch:
            self.snapshot_step_size, self.large_batch = step_size, False
            return
        exhausted = self.small_batches >= self.max_sub_iterations
        better = self.snapshot_step_size / self.batch_size > step_size / self.mini_batch_size
        self.large_batch = exhausted or better

    def state_dict(self) -> dict[str, Any]:
        """As the base's, and the step size to compare with."""
        return {**super().state_dict(), "snapshot_step_size": self.snapshot_step_size}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state_dict, strict)
        self.snapshot_step_size = float(state_dict["snapshot_step_size"])


class SVRPG(TrajectoryAlgorithm):
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
    for per-decision weights; the critic, if there is one, is the policy's network and not a linear one. Departures
    from the theory are the paper's own: Adam, an adaptive number of sub-iterations, the last iterate.

    See `storm_rl.common.trajectory_algorithm.TrajectoryAlgorithm` for batches of episodes, time limits, the discount,
    and for the arguments that all of the family share.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class.
        env: Environment or its id.
        learning_rate: Of Adam.
        batch_size: N, episodes of a large batch.
        mini_batch_size: B, episodes of a small batch.
        max_sub_iterations: Largest number of small batches on one snapshot (cart-pole of the paper: 50, others 20).

    The remaining arguments are those of the base class.

    Raises:
        ValueError: If an argument is outside its range, or options exclude each other.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-2,
        batch_size: int = 100,
        mini_batch_size: int = 10,
        max_sub_iterations: int = 50,
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
        self.max_sub_iterations = max_sub_iterations
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
        """See `SnapshotRecursion`."""
        return SnapshotRecursion(self.batch_size, self.mini_batch_size, self.max_sub_iterations)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.snapshot_optimizer = self._make_actor_optimizer()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "snapshot_optimizer"], tensors

    def _optimizer(self, large: bool) -> torch.optim.Optimizer:
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.snapshot_optimizer, learning_rate)
        update_learning_rate(self.actor_optimizer, learning_rate / 2)
        self.logger.record("train/learning_rate", learning_rate)
        return self.snapshot_optimizer if large else self.actor_optimizer

    def _fits_critic(self, large: bool) -> bool:
        return large
