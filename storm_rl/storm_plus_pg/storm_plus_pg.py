"""STORM+ policy gradient: an actor-critic whose actor follows a recursive, importance-weighted gradient."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from storm_rl.common.checks import all_or_nothing, check_finite, check_integer, check_learning_rate, check_range
from storm_rl.common.importance_weights import effective_sample_size, per_step_weights
from storm_rl.common.parameters import check_parts
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg import defaults
from storm_rl.storm_plus_pg.action_values import ActionValueCritic, sampled_gain, with_control_variate
from storm_rl.storm_plus_pg.actor_critic import Actor
from storm_rl.storm_plus_pg.metric import FisherMetric, mean_kl
from storm_rl.storm_plus_pg.numpy_actor_critic import Networks, NumpyActor
from storm_rl.storm_plus_pg.recursion import PolicyRecursion, copy_to_parameters, equal_parts
from storm_rl.storm_plus_pg.rollouts import DiscountedReturnStatistics, RolloutAlgorithm, RolloutWindow, Transitions

Weigh = Callable[[Tensor, slice], Tensor]
"""From the log-probabilities of a slice of the transitions: their importance weights."""

# Parts of the transitions, each a run of one environment or of a few, whose gradients measure the noise.
N_PARTS = 8


class STORMPlusPG(RolloutAlgorithm):
    r"""STORM+ policy gradient (STORM+PG).

    An on-policy actor-critic. The actor follows the STORM+ recursion (Levy, Kavis, Cevher, "STORM+: Fully Adaptive
    SGD with Recursive Momentum for Nonconvex Optimization", NeurIPS 2021, arXiv 2111.01040), whose gradient
    difference is importance-weighted because the data's distribution moves with the policy. After each rollout, over
    the transitions of the last ``reuse_rollouts`` rollouts, sampled by :math:`\mu` (earlier policies and the present
    one), with generalised advantages :math:`\hat A` under the present critic, standardised:

    .. math::
        g_t &= -\tfrac1N \sum \frac{\pi_{\theta_t}(a|s)}{\mu(a|s)} \hat A(s, a) \nabla \log \pi_{\theta_t}(a|s) \\
        g'_t &= -\tfrac1N \sum \frac{\pi_{\theta_{t-1}}(a|s)}{\mu(a|s)} \hat A(s, a)
            \nabla \log \pi_{\theta_{t-1}}(a|s) \\
        d_t &= g_t + (1 - a_t) (d_{t-1} - g'_t) \\
        \theta_{t+1} &= \theta_t - \eta_t M_t^{-1} d_t

    with :math:`M = F + \lambda I`, the policy's Fisher matrix on states of the last rollouts. How :math:`a_t` and
    :math:`\eta_t` are set is said, and computed, in :class:`~storm_rl.storm_plus_pg.recursion.PolicyRecursion`. The
    step is shortened where its quadratic KL would pass ``target_kl``, by default a safeguard. With action values both
    gradients have another form, of less noise: :func:`~storm_rl.storm_plus_pg.action_values.with_control_variate`.

    The critic has a network and an optimizer (Adam) of its own and is fitted to lambda-returns, divided by the running
    standard deviation of the discounted return. Observations are standardised inside the policy.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of their classes.
        env: The environment, or the name of a registered one.
        critic_learning_rate: Learning rate of the critics' Adam; a number or a schedule. The actor has none. SB3's
            attribute ``learning_rate`` holds the same.
        n_steps: Steps of each environment per rollout. None: 512 transitions in all, 1024 of images; 16 steps at least.
        reuse_rollouts: Recent rollouts that each update learns from. None: 2048 transitions' worth; one of images.
        critic_steps: Steps of each critic's optimizer after a rollout. None: 160; one pass over images.
        batch_size: Minibatch size of the critics.
        gamma: Discount factor.
        gae_lambda: Trade-off of bias and variance of the advantages (Schulman et al. 2016); 1 is Monte-Carlo.
        ent_coef: Weight of an entropy bonus in the actor's objective, where advantages have unit deviation; where they
            are divided by more than their deviation, so is the bonus. Of Box actions it ends where the noise has twice
            the variance that it began with.
        max_weight: Importance weights are truncated at this value; None for no bound.
        cg_max_steps: Conjugate-gradient iterations of one step.
        cg_damping: :math:`\lambda`, added to the Fisher matrix.
        target_kl: Largest quadratic KL of a step in the Fisher metric, in nats; None for no bound. ``"auto"``: 0.1;
            without action values 0.02 for every 512 transitions of a rollout, at least 0.02 and at most 0.04.
        use_action_values: Whether a second critic, of actions and fitted to the last 16 rollouts, takes noise out of
            the actor's gradient. None: yes, but not where a features extractor is trained, as of images.
        use_sde: gSDE exploration (Raffin et al. 2021, arXiv 2005.05719) for Box actions. None: for all of them.
        sde_sample_freq: Sample a new noise matrix every so many steps; -1: once a rollout.
        rollout_buffer_class: Rollout buffer class; None: by the observation space. Its own returns are refused.
        rollout_buffer_kwargs: Its further arguments. This and what follows is as in SB3.

    Raises:
        TypeError: Unsupported space, or a policy that is not one of this package's.
        ValueError: An argument outside its range.

    Example:
        >>> from storm_rl import STORMPlusPG
        >>> model = STORMPlusPG("MlpPolicy", "CartPole-v1", seed=0).learn(2_000)
        >>> model.num_timesteps
        2048
    """

    attribute_of: ClassVar = {**RolloutAlgorithm.attribute_of, "critic_learning_rate": "learning_rate"}
    # What the repository's variants change as well: rollouts whose states the Fisher matrix covers, and states in all;
    # least divisor of advantages as a share of the return's scale, so that noise stays small where actions are equal;
    # updates that the sum behind the step size remembers, None for all, as in the paper.
    fisher_rollouts = 8
    fisher_states: int | None = None
    advantage_floor = 0.1
    step_memory: float | None = 30.0
    action_values: ActionValueCritic | None = None

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        critic_learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        reuse_rollouts: int | None = None,
        critic_steps: int | None = None,
        batch_size: int = 128,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.01,
        max_weight: float | None = 10.0,
        cg_max_steps: int = 10,
        cg_damping: float = 0.1,
        target_kl: float | Literal["auto"] | None = "auto",
        use_action_values: bool | None = None,
        use_sde: bool | None = None,
        sde_sample_freq: int = 32,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
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
            learning_rate=critic_learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            # Of SB3's base; actor and critic are separate here and no gradient is clipped.
            vf_coef=1.0,
            max_grad_norm=float("inf"),
            use_sde=bool(use_sde),
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        if use_sde is None and self.env is not None:
            self.use_sde = isinstance(self.action_space, spaces.Box)
        self.reuse_rollouts = reuse_rollouts
        self.critic_steps = critic_steps
        self.batch_size = batch_size
        self.max_weight = max_weight
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.target_kl = target_kl
        self.use_action_values = use_action_values
        if _init_setup_model:
            self._setup_model()

    @property
    def critic_learning_rate(self) -> float | Schedule:
        """What SB3 calls ``learning_rate``."""
        return self.learning_rate

    def _check_arguments(self) -> None:
        self.learning_rate = check_learning_rate("critic_learning_rate", self.learning_rate)
        super()._check_arguments()
        if not issubclass(self.policy_class, StandardisedActorCriticPolicy):
            raise TypeError(
                f"policy {self.policy_class.__name__} is not a {StandardisedActorCriticPolicy.__name__}: use one of "
                f"{', '.join(self.policy_aliases)} or a subclass of storm_rl.common.policies' classes."
            )
        for name in ("batch_size", "cg_max_steps"):
            setattr(self, name, check_integer(name, getattr(self, name), 1))
        if self.use_action_values not in (None, True, False):
            raise ValueError(f"use_action_values must be True, False or None, got {self.use_action_values!r}.")
        for name in ("reuse_rollouts", "critic_steps"):
            if getattr(self, name) is not None:
                setattr(self, name, check_integer(name, getattr(self, name), 1))
        for name in ("gamma", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        if self.max_weight is not None:
            check_range("max_weight (None for no bound)", self.max_weight, 0.0, low_included=False)
        if self.target_kl is not None and (not isinstance(self.target_kl, str) or self.target_kl != "auto"):
            check_range('target_kl ("auto", or None for no bound)', self.target_kl, 0.0, low_included=False)
            self.target_kl = float(self.target_kl)
        check_range("ent_coef", self.ent_coef, -1e6, 1e6)
        check_integer("sde_sample_freq", self.sde_sample_freq, -1)
        check_range("cg_damping", self.cg_damping, 0.0, 1e6, low_included=False)

    def _setup_model(self) -> None:
        self._check_arguments()
        self.n_steps = defaults.rollout_steps(self.n_steps, self.n_envs, self.observation_space)
        size = self.n_steps * self.n_envs
        super()._setup_model()
        check_parts(self.policy, self.policy.actor_parameters(), self.policy.critic_parameters())
        reuse, critic_steps, states = defaults.work(size, self.batch_size, self.policy.critic_learns_features)
        self.reuse_rollouts, self.critic_steps = self.reuse_rollouts or reuse, self.critic_steps or critic_steps
        if self.use_action_values is None:  # A file of a version that had none goes on without.
            self.use_action_values = self.num_timesteps == 0 and not self.policy.critic_learns_features
        if self.target_kl == "auto":
            self.target_kl = defaults.target_kl(size, self.use_action_values)
        self.action_values = ActionValueCritic(self.policy) if self.use_action_values else None
        memory = defaults.memory(size, self.reuse_rollouts, self.use_action_values)
        self.window, self._window_end, self._noise_age = RolloutWindow(memory), None, 0
        self.return_statistics = DiscountedReturnStatistics(self.gamma, self.n_envs)
        self.largest_entropy = defaults.largest_entropy(self.policy)
        self.recursion = self._make_recursion()
        covered = self.fisher_rollouts, self.fisher_states or states
        self.fisher_metric = FisherMetric(self.cg_damping, self.cg_max_steps, *covered)

    def _make_recursion(self) -> PolicyRecursion:
        return PolicyRecursion(self.step_memory)

    @all_or_nothing
    def train(self) -> None:
        """Update action values, actor, observation statistics and critic, in this order, from the collected rollout."""
        # Acting mode: no dropout and no moving batch statistics, as when the actions were sampled.
        self.policy.set_training_mode(False)
        self.policy.set_value_offset(self.return_statistics.offset)
        networks = self.networks()
        assert self.reuse_rollouts is not None
        window = self.window.newest_rollouts(self.reuse_rollouts)
        actor = networks.actor(window.observations())
        batch = window.transitions(actor.observations, networks, self.gamma, self.gae_lambda)
        self._update_actor(networks, actor, batch)
        # Between the two: the actor's gradients belong to the statistics that acted, and the critic is fitted to
        # the inputs that it will see next.
        self._update_observation_statistics(networks)
        self._update_critic(networks, batch)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update_actor(self, networks: Networks, actor: Actor | NumpyActor, batch: Transitions) -> None:
        recursion, parameters = self.recursion, self.policy.actor_parameters()
        n_rollouts = len(batch.advantages) // self.window.newest.dones.numel()
        recursion.follow_parameters(parameters)
        if not parameters:
            return  # All are frozen.
        theta, previous = parameters_to_vector(parameters).detach(), recursion.previous_parameters
        batch = batch._replace(advantages=self._standardised(batch.advantages))
        # Of a solved task, whose advantages are small, it would be most of the gradient otherwise.
        ent_coef = self.ent_coef * float(batch.advantages.std())
        if self.action_values is not None:
            self._update_learning_rate(self.action_values.optimizer)
            scale, minibatches = self.return_statistics.scale, self._minibatches
            self.action_values.fit(networks, self.window, self.gamma, scale, minibatches, self.logger)
            gradients_of = functools.partial(self._part_gradients, actor)
            batch = with_control_variate(self.action_values, actor, batch, self.max_weight, gradients_of, self.logger)
        gradients, _ = self._part_gradients(actor, batch, None, ent_coef)
        gradients_at_previous = None
        if recursion.needs_previous:
            gradients_at_previous, weights = self._part_gradients(actor, batch, previous, ent_coef)
            self._record_memory(gradients, weights)
        direction = recursion.next_direction(theta, gradients, gradients_at_previous, n_rollouts)

        self.fisher_metric.remember(self.window.newest.observations)
        recent = networks.actor(self.fisher_metric.states)
        natural_direction = self._natural_direction(recent, direction)
        direction_square = float(direction.dot(natural_direction))
        step_size = self._bounded(recursion.next_step_size(direction_square), direction_square)

        before = recent.distribution()
        moved = theta - step_size * natural_direction
        copy_to_parameters(moved, parameters)
        self._record_step(before, recent.distribution(moved), gradients, direction_square, step_size)

    def _standardised(self, advantages: Tensor) -> Tensor:
        floor = self.advantage_floor * self.return_statistics.scale
        return (advantages - advantages.mean()) / max(float(advantages.std()), floor, 1e-8)

    def _part_gradients(
        self, actor: Actor | NumpyActor, batch: Transitions, parameters: Tensor | None = None, ent_coef: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Importance-weighted gradients of the surrogate and the weights, at a flat vector or (None) the present.

        One gradient for each part of the transitions, ``(k, n)``, scaled so that their mean is that of all transitions.
        At the present parameters the weights of the newest rollout are 1. ``ent_coef``: weight of the entropy.
        """
        size = len(batch.advantages)
        weigh = self._weigh(actor, batch, parameters)
        weights: list[Tensor] = []

        def objective(distribution: Distribution, part: slice) -> Tensor:
            log_prob = distribution.log_prob(batch.actions[part])
            weights.append(weigh(log_prob, part))
            gain = weights[-1] * batch.advantages[part] * log_prob
            if batch.sampled is not None:
                gain = gain + sampled_gain(batch.sampled, distribution, part, self.max_weight)
            if ent_coef:
                entropy = distribution.entropy()
                gain = gain + ent_coef * (-log_prob if entropy is None else entropy.clamp(max=self.largest_entropy))
            return gain

        parts = equal_parts(size, min(N_PARTS, size))
        gradients = actor.part_gradients(objective, parts, parameters).mul_(-len(parts) / size)
        check_finite("the policy gradient", gradients)
        return gradients, torch.cat(weights)

    def _weigh(self, actor: Actor | NumpyActor, batch: Transitions, parameters: Tensor | None) -> Weigh:
        """The importance weights at ``parameters`` (None: the present ones)."""
        return lambda log_prob, part: per_step_weights(log_prob, batch.behaviour_log_prob[part], self.max_weight)

    def _natural_direction(self, recent: Actor | NumpyActor, direction: Tensor) -> Tensor:
        """``M^{-1} d`` at the present parameters, flat; ``recent`` holds the states of the metric."""
        natural_direction = self.fisher_metric.inverse_product(recent.fisher_product(), direction)
        check_finite("the actor's step", natural_direction)
        return natural_direction

    def _bounded(self, step_size: float, direction_square: float) -> float:
        bound = float("inf")
        if isinstance(self.target_kl, float) and direction_square > 0.0:
            # KL(theta, theta + step) is 1/2 step^T F step to second order, and F <= F + damping I.
            bound = float((2.0 * self.target_kl / direction_square) ** 0.5)
        self.logger.record("train/step_bound", int(step_size > bound))
        return min(step_size, bound)

    def _update_observation_statistics(self, networks: Networks) -> None:
        """Move the statistics and not the policy: only the KL bounds its steps."""
        if not self.policy.has_statistics:
            return
        observations = self.window.newest.observations
        before = networks.actor(observations).distribution()
        self.recursion.follow_statistics(self.policy, observations)
        self.logger.record("train/statistics_kl", float(mean_kl(before, networks.actor(observations).distribution())))

    def _update_critic(self, networks: Networks, batch: Transitions) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.set_value_scale(self.return_statistics.scale, preserve=self._n_updates > 0)
        scale, offset = self.policy.value_scale, self.policy.value_offset
        minibatches = self._minibatches(len(batch.values))
        loss = networks.fit_critic(batch.observations, (batch.value_targets - offset) / scale, minibatches)
        self.logger.record("train/value_loss", loss)
        self.logger.record("train/value_scale", scale)
        self.logger.record("train/value_offset", offset)
        explained = explained_variance(batch.values.cpu().numpy(), batch.value_targets.cpu().numpy())
        self.logger.record("train/explained_variance", float(explained))

    def _minibatches(self, size: int) -> Iterator[Tensor]:
        """``critic_steps`` minibatches of passes over ``size`` transitions, each pass in an order of its own."""
        passes = (torch.split(torch.randperm(size, device=self.device), self.batch_size) for _ in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), self.critic_steps)

    def _record_memory(self, gradients: Tensor, weights: Tensor) -> None:
        assert self.recursion.direction is not None
        cosine = functional.cosine_similarity(self.recursion.direction, gradients.mean(dim=0), dim=0)
        self.logger.record("train/cosine_previous_direction", float(cosine))
        self.logger.record("train/largest_weight", float(weights.max()))
        self.logger.record("train/effective_sample_size", float(effective_sample_size(weights)) / weights.numel())

    def _record_step(
        self, before: Distribution, after: Distribution, gradients: Tensor, direction_square: float, step_size: float
    ) -> None:
        assert self.recursion.direction is not None
        self.logger.record("train/kl", float(mean_kl(before, after)))
        if (entropy := after.entropy()) is not None:
            self.logger.record("train/entropy", float(entropy.mean()))
        self.logger.record("train/momentum", self.recursion.momentum)
        self.logger.record("train/step_size", step_size)
        self.logger.record("train/gradient_norm", float(gradients.mean(dim=0).norm()))
        self.logger.record("train/direction_norm", float(self.recursion.direction.norm()))
        self.logger.record("train/direction_metric_norm", max(direction_square, 0.0) ** 0.5)
        if isinstance(self.action_space, spaces.Box):
            self.logger.record("train/std", float(after.distribution.stddev.mean()))  # type: ignore[union-attr]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "STORMPlusPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for ``total_timesteps`` env steps, rounded up to whole rollouts; as SB3's ``learn``."""
        with self.networks().threads():
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        # SB3 dumps before it trains: without this the last update's values would never reach TensorBoard.
        self.logger.dump(step=self.num_timesteps)
        return self

    def _excluded_save_params(self) -> list[str]:
        own = "action_values", "recursion", "fisher_metric", "return_statistics", "window", "_window_end", "_noise_age"
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        values = [] if self.action_values is None else ["action_values", "action_values.optimizer"]
        return [*state_dicts, "recursion", "fisher_metric", "return_statistics", *values], tensors

    def _run_state(self) -> dict[str, Any]:
        state = super()._run_state()
        if self.use_sde:
            state["noise_age"] = self._noise_age
        if not self._in_rollout and self._last_obs is not None and self._last_obs is self._window_end:
            # Otherwise the next rollout does not continue the window, and would clear it.
            state["window"] = self.window.state_dict()
        return state

    def _load_run_state(self, state: dict[str, Any], resumes: bool) -> None:
        super()._load_run_state(state, resumes)
        self._noise_age = state.get("noise_age", 0)
        if resumes and "window" in state and self._last_obs is not None:
            self.window.load_state_dict(state["window"], self.device)
            self._window_end = self._last_obs
