"""The base of the algorithms that learn from whole trajectories: collection, two-point gradients, steps, critic."""

import copy
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, obs_as_tensor, update_learning_rate
from torch import Tensor, nn

from storm_rl.common.checks import (
    acting,
    all_or_nothing,
    check_choice,
    check_integer,
    check_policy_outputs,
    check_range,
    check_transition,
    own_copy,
)
from storm_rl.common.importance_weights import effective_sample_size, per_decision_weights, trajectory_weights
from storm_rl.common.parameters import check_parts
from storm_rl.common.policies import ObservationBatch, StandardisedActorCriticPolicy, environment_actions, select
from storm_rl.common.resumable_algorithm import ResumableAlgorithm
from storm_rl.episodic import returns
from storm_rl.episodic.episodes import EpisodeRecorder, TrajectoryBatch, pad
from storm_rl.episodic.recursions import AnchoredRecursion, Vector, vector_norm
from storm_rl.episodic.two_point import ActionDistribution, LogProbAtPoints

Estimator = Literal["gpomdp", "reinforce"]

# Steps after which an episode is taken to be one without end; far above the time limits in use.
ENDLESS_EPISODE = 100_000


class EpisodicAlgorithm(ResumableAlgorithm):
    r"""Base class: ascend :math:`J(\theta) = E[\sum_h \gamma^h r_h]` along an `AnchoredRecursion` of gradients.

    Each iteration collects a batch of complete episodes (large or small, as the recursion asks), takes the gradient
    there at the current parameters and, importance-weighted, at the anchor, mixes them, and makes a step of an Adam.
    Subclasses say which recursion it is. What is decided here, for all of them:

    - *Batches* are the first episodes to start (see `EpisodeQuota`): none is favoured for being short. Environments
      that idle meanwhile cost env steps; one environment, or a batch of many episodes for each, wastes the least.
      Each batch begins with fresh episodes.
    - *Time limits* end an episode like any other end: the objective is the return up to the limit, and nothing is
      bootstrapped there, because the estimators are unbiased for this objective only. An environment without an end
      needs a time limit.
    - *Baseline*: by default the mean over the batch's other episodes, unbiased; the papers have none or a constant.
      The estimates keep the factor ``gamma^h`` that the gradient of ``J`` has.
    - *Observations* are standardised by running statistics inside the policy (``policy_kwargs=
      dict(normalize_observations=False)`` turns that off). They move between batches only, and the second batch is
      a large one in any case, because the first statistics change the policy at a leap.
    - *Another task*: ``set_env`` restarts the recursion; ``load(path, env=...)`` goes on as in the saved run's.
    - gSDE is not offered: its noise is shared by the steps of an episode, whose weights would not be products.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a class derived from SB3's ``ActorCriticPolicy``.
        env: Environment, its id, or None if the model is to be loaded.
        learning_rate: Of the actor's Adam; a float or a function of the remaining progress.
        batch_size: Episodes of a large batch, N in the papers.
        mini_batch_size: Episodes of a small batch, B.
        gamma: Discount in [0, 1].
        estimator: "gpomdp" or "reinforce".
        baseline: See `storm_rl.episodic.returns.Baseline`. "state_value" trains the policy's critic.
        weights: "per_decision" (GPOMDP only) or "trajectory" importance weights of the gradient at the anchor.
        max_weight: Largest importance weight. None: no bound; weights that overflow are then an error.
        self_normalise: Divide the weights by their mean over the batch. Biased, of less variance.
        critic_learning_rate: Of the critic's Adam.
        critic_epochs: Passes over a batch to fit the critic.
        policy_kwargs: Keyword arguments of the policy. ``optimizer_class`` and ``optimizer_kwargs`` are the actor's.

    Raises:
        ValueError: If an argument is outside its range, or options exclude each other.
    """

    policy: ActorCriticPolicy
    dump_logs = OnPolicyAlgorithm.dump_logs
    fits_critic_to_large_batches_only = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        *,
        batch_size: int,
        mini_batch_size: int,
        gamma: float = 0.99,
        estimator: Estimator = "gpomdp",
        baseline: returns.Baseline = "leave_one_out",
        weights: Literal["per_decision", "trajectory"] = "per_decision",
        max_weight: float | None = None,
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
        policy_kwargs = {} if policy_kwargs is None else copy.copy(policy_kwargs)
        if isinstance(policy_kwargs, dict) and "optimizer_class" not in policy_kwargs:
            # Adam with beta_2 = .99 is what SVRPG and GPOMDP were run with (Papini et al. 2018, table of appendix).
            policy_kwargs.setdefault("optimizer_kwargs", {"betas": (0.9, 0.99)})
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            support_multi_env=True,
        )
        self.batch_size = batch_size
        self.mini_batch_size = mini_batch_size
        self.gamma = gamma
        self.estimator = estimator
        self.baseline = baseline
        self.weights = weights
        self.max_weight = max_weight
        self.self_normalise = self_normalise
        self.critic_learning_rate = critic_learning_rate
        self.critic_epochs = critic_epochs
        self._n_updates = self.n_episodes = 0
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("batch_size", "mini_batch_size", "critic_epochs"):
            setattr(self, name, check_integer(name, getattr(self, name), 1))
        check_range("gamma", self.gamma, 0.0, 1.0)
        check_range("critic_learning_rate", self.critic_learning_rate, 0.0, 1e6)
        check_choice("estimator", self.estimator, get_args(Estimator))
        check_choice("weights", self.weights, ("per_decision", "trajectory"))
        check_choice("baseline", self.baseline, get_args(returns.Baseline))
        if self.estimator == "reinforce" and (self.baseline == "state_value" or self.weights == "per_decision"):
            raise ValueError("estimator='reinforce' needs weights='trajectory' and no state_value baseline")
        if self.max_weight is not None:
            check_range("max_weight (None for no bound)", self.max_weight, 0.0, low_included=False)
        self.make_recursion()  # Refuses what is its own out of range.

    def make_recursion(self) -> AnchoredRecursion:
        """A fresh recursion; what makes one algorithm of the family another."""
        raise NotImplementedError

    def _setup_model(self) -> None:
        self._check_arguments()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        self.recursion = self.make_recursion()
        self._look_up_parameters()
        check_parts(self.policy, self.action_distribution.actor, self.action_distribution.critic)

    def _look_up_parameters(self) -> None:
        self.action_distribution = ActionDistribution(self.policy)
        self.actor_optimizer = self._actor_optimizer()
        self.critic_optimizer = torch.optim.Adam(self.action_distribution.critic, lr=self.critic_learning_rate)

    def _follow_parameters(self) -> None:
        """Begin anew where others are trained than before: pruned, frozen, of a new layer, or not as in the file."""
        if not self.action_distribution.is_current(self.recursion.memory or {}):
            self._look_up_parameters()
            self.recursion.restart()

    def _actor_optimizer(self) -> torch.optim.Optimizer:
        actor, kwargs = self.action_distribution.actor, self.policy.optimizer_kwargs
        return self.policy.optimizer_class(actor, lr=self.lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "action_distribution", "batch"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor_optimizer", "critic_optimizer", "recursion"], []

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Exchange the environment. The recursion restarts: its anchor's gradient belongs to the old one."""
        super().set_env(env, force_reset)
        if hasattr(self, "recursion"):
            self.recursion.restart()

    def collect_trajectories(self, callback: BaseCallback, n_episodes: int) -> bool:
        """Collect a batch of ``n_episodes`` complete episodes; False if a callback ended training, and it is lost.

        Raises:
            ValueError: If an action, reward or observation is not finite, or an episode does not end.
        """
        env = self.env
        assert env is not None
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        if self._last_episode_starts is None or not np.all(self._last_episode_starts):
            # Some environment is in an episode that no batch counts, or that an earlier policy began.
            self._last_obs = env.reset()  # type: ignore[assignment]
        self._last_obs = own_copy(self._last_obs)
        recorder = EpisodeRecorder(env.num_envs, n_episodes)
        quota, sources = recorder.quota, self._draw_sources(n_episodes)
        callback.update_locals(locals())
        callback.on_rollout_start()
        self._in_rollout = True
        while not quota.filled:
            obs_tensor = obs_as_tensor(self._last_obs, self.device)
            with torch.no_grad(), acting(self.policy, self.num_timesteps):
                sampled = self._act(obs_tensor, sources[quota.playing])
            check_policy_outputs(self.num_timesteps, actions=sampled)
            actions = sampled.cpu().numpy()
            clipped_actions = environment_actions(self.policy, actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                # Mid-episode: the next batch must begin with a reset.
                self._last_episode_starts = np.zeros(env.num_envs, dtype=bool)
                self._in_rollout = False
                return False

            check_transition(new_obs, rewards, dones, infos, self.num_timesteps)
            counted = [info if playing >= 0 else {} for info, playing in zip(infos, quota.playing, strict=True)]
            self._update_info_buffer(counted, dones)
            recorder.record(self._last_obs, actions, rewards, dones)
            if quota.longest > ENDLESS_EPISODE:
                raise ValueError(
                    f"an episode has run for {quota.longest} steps without an end. Whole trajectories are needed: "
                    "wrap the environment in gymnasium.wrappers.TimeLimit, or make it with max_episode_steps"
                )
            self._last_obs, self._last_episode_starts = own_copy(new_obs), np.array(dones)
        self._in_rollout = False
        self.batch = recorder.batch(self.device)
        self.n_episodes += n_episodes
        self.logger.record("rollout/idle_fraction", recorder.idle_fraction)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _draw_sources(self, n_episodes: int) -> npt.NDArray[np.int64]:
        """Which policy plays each episode of the batch: 0 the current one, 1 the anchor."""
        return np.zeros(n_episodes, dtype=np.int64)

    def _act(self, observations: ObservationBatch, sources: npt.NDArray[np.int64]) -> Tensor:
        """Sample an action for each environment from the policy that plays there."""
        actions: Tensor = self.action_distribution(observations)
        if self.recursion.anchor is not None and (sources == 1).any():
            check_policy_outputs(self.num_timesteps, actions=actions)  # Also where none of them is taken.
            from_anchor = self.action_distribution.with_parameters(self.recursion.anchor, observations)
            chosen = torch.as_tensor(sources == 1, device=actions.device).reshape(-1, *[1] * (actions.dim() - 1))
            actions = torch.where(chosen, from_anchor, actions)
        return actions

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for at least ``total_timesteps`` env steps, those of idling environments included; as SB3's ``learn``.

        The last batch is completed. ``tb_log_name=None`` is the name of the class.
        """
        iteration = 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            self._follow_parameters()
            n_episodes = self.batch_size if self.recursion.large_batch else self.mini_batch_size
            if not self.collect_trajectories(callback, n_episodes):
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self.train()
            # After training, unlike SB3's loop, where the values of the last update would be lost.
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)  # type: ignore[misc]  # It needs of the class only what this one has.
        callback.on_training_end()
        return self

    @all_or_nothing
    def train(self) -> None:
        """One step along the recursion's direction, from the batch collected last."""
        self._follow_parameters()
        batch, large = self.batch, self.recursion.large_batch
        self._n_updates += 1
        if self.action_distribution.actor_names:
            self._update_actor(batch)
        if self.baseline == "state_value" and (large or not self.fits_critic_to_large_batches_only):
            self._fit_critic(batch)
        self._update_statistics(batch)

    def _update_actor(self, batch: TrajectoryBatch) -> None:
        recursion, point = self.recursion, self.action_distribution.point()
        anchored = not recursion.large_batch
        points = [point, recursion.anchor] if anchored and recursion.anchor is not None else [point]
        at_points = LogProbAtPoints(self.action_distribution, points, batch.observations, batch.actions)
        weights = self._importance_weights(pad(at_points.values.double(), batch.mask))
        advantages = torch.stack([self._advantages(batch, each) for each in weights])
        gradients = at_points.gradients(advantages[:, batch.mask] / len(batch.mask))
        direction = recursion.direction(point, *gradients)
        step_size = self._ascend(direction, large=not anchored)
        recursion.schedule(step_size)
        self._log_update(gradients[0], direction, step_size, weights[-1])

    def _importance_weights(self, log_prob: Tensor) -> list[Tensor | None]:
        """Weights of the estimate at each point: the current parameters and, for a small batch, the anchor.

        ``log_prob`` has the shape ``(n_points, n_episodes, n_steps)``.
        """
        if len(log_prob) == 1:
            return [None]
        weigh = per_decision_weights if self.weights == "per_decision" else trajectory_weights
        return [None, weigh(log_prob[1], log_prob[0], self.batch.mask, self.max_weight, self.self_normalise)]

    def _advantages(self, batch: TrajectoryBatch, weights: Tensor | None) -> Tensor:
        if self.estimator == "reinforce":
            return returns.reinforce_advantages(batch.rewards, batch.mask, self.gamma, self.baseline, weights)
        values = None
        if self.baseline == "state_value":
            with torch.no_grad():
                values = pad(self.policy.predict_values(batch.observations).flatten().double(), batch.mask)
        return returns.gpomdp_advantages(batch.rewards, batch.mask, self.gamma, self.baseline, weights, values)

    def _optimizer(self, large: bool) -> torch.optim.Optimizer:
        """The optimizer of this step, with its learning rate set."""
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.actor_optimizer, learning_rate)
        self.logger.record("train/learning_rate", learning_rate)
        return self.actor_optimizer

    def _ascend(self, direction: Vector, large: bool) -> float:
        """Step along ``direction``; its effective size, the norm of the step over that of Adam's first moment."""
        if not np.isfinite(norm := vector_norm(direction)):
            raise ValueError(f"the direction's norm is {norm}; smaller steps or a max_weight may help")
        optimizer, parameters = self._optimizer(large), self.action_distribution.named(list(direction))
        before = {name: values.detach().clone() for name, values in parameters.items()}
        for name, values in parameters.items():
            values.grad = -direction[name].to(values.dtype)
        optimizer.step()
        optimizer.zero_grad()
        step = {name: values.detach() - before[name] for name, values in parameters.items()}
        moments = {name: optimizer.state[p].get("exp_avg", direction[name]) for name, p in parameters.items()}
        length = vector_norm(moments)
        return vector_norm(step) / length if length > 0 else 0.0

    def _update_statistics(self, batch: TrajectoryBatch) -> None:
        """Let the batch's observations into the statistics: part of every point, so an anchor stays what it was."""
        if isinstance(self.policy, StandardisedActorCriticPolicy):
            self.policy.update_observation_statistics(batch.observations)
            if self._n_updates == 1 and self.policy.normalize_observations:
                # From no statistics to the first ones is a leap, and an anchor on its other side is of no use.
                self.recursion.restart()

    def _fit_critic(self, batch: TrajectoryBatch) -> None:
        """Regress values on Monte-Carlo returns, after the actor: the baseline stays independent of its batch."""
        targets = returns.monte_carlo_returns(batch.rewards, batch.mask, self.gamma)[batch.mask].float()
        scale = 1.0
        if isinstance(self.policy, StandardisedActorCriticPolicy):
            scale = max(float(targets.std(unbiased=False)), 1e-6)
            self.policy.set_value_scale(scale)
        for _ in range(self.critic_epochs):
            for rows in torch.split(torch.randperm(len(targets), device=targets.device), 256):
                values = self.policy.predict_values(select(batch.observations, rows)).flatten()
                loss = nn.functional.mse_loss(values / scale, targets[rows] / scale)
                self.critic_optimizer.zero_grad()
                if loss.requires_grad:  # Not where all are frozen.
                    loss.backward()  # type: ignore[no-untyped-call]
                    self.critic_optimizer.step()
        self.actor_optimizer.zero_grad()
        with torch.no_grad():
            fitted = self.policy.predict_values(batch.observations).flatten()
        self.logger.record("train/value_loss", float(loss.detach()))
        self.logger.record("train/explained_variance", explained_variance(fitted.cpu().numpy(), targets.cpu().numpy()))

    def _log_update(self, gradient: Vector, direction: Vector, step_size: float, weights: Tensor | None) -> None:
        record = self.logger.record
        record("train/gradient_norm", vector_norm(gradient))
        record("train/direction_norm", vector_norm(direction))
        record("train/step_size", step_size)
        record("train/momentum", 1.0 if weights is None else self.recursion.momentum)
        record("train/large_batch", int(weights is None))
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/n_episodes", self.n_episodes)
        if weights is not None:
            # The weight of an episode's last step is that of the whole trajectory.
            ends = self.batch.mask.sum(dim=1, keepdim=True) - 1
            last = weights if weights.dim() == 1 else weights.gather(1, ends).squeeze(1)
            record("train/largest_weight", float(weights.max()))
            record("train/effective_sample_size", float(effective_sample_size(last)) / len(last))
        if isinstance(self.action_space, spaces.Box):
            # Of the distribution that was evaluated last, in units of the actions.
            record("train/std", float(self.policy.action_dist.distribution.stddev.detach().mean()))  # type: ignore[union-attr]
