"""STORM+ policy gradient: an actor-critic whose actor follows a recursive, importance-weighted gradient."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from storm_rl.common.arguments import check_integer, check_range
from storm_rl.common.dense_policy import DensePolicy
from storm_rl.common.distributions import mean_kl
from storm_rl.common.faults import all_or_nothing, is_finite
from storm_rl.common.on_policy_algorithm import ROLLOUT_TRANSITIONS, CheckedOnPolicyAlgorithm
from storm_rl.common.rollout_window import Transitions
from storm_rl.common.threads import one_thread
from storm_rl.gradients.importance_weights import effective_sample_size, per_step_weights, segment_weights
from storm_rl.storm_plus_pg.actor import ActorOnStates, actor_on_states
from storm_rl.storm_plus_pg.critic import fit_critic
from storm_rl.storm_plus_pg.metric import EuclideanMetric, FisherMetric, Metric
from storm_rl.storm_plus_pg.recursion import Momentum, PolicyRecursion

# Parts of a rollout, each a run of one environment or of a few, whose gradients measure the noise.
N_PARTS = 8
# Nats of a step, by default, for a rollout of `ROLLOUT_TRANSITIONS`.
KL_OF_ROLLOUT = 0.01
# Units of a layer from which two BLAS threads were measured to be faster than one (1.2 times, and 0.8 times at 64).
WIDE_LAYER = 128


class STORMPlusPG(CheckedOnPolicyAlgorithm):
    r"""STORM+ policy gradient (STORM+PG).

    An on-policy actor-critic. The actor follows the STORM+ recursion (Levy, Kavis, Cevher, "STORM+: Fully Adaptive
    SGD with Recursive Momentum for Nonconvex Optimization", NeurIPS 2021, arXiv 2111.01040), whose gradient
    difference is importance-weighted because the data's law moves with the policy. After each rollout, over the
    transitions of the last ``reuse_rollouts`` rollouts, sampled by :math:`\mu` (earlier policies and the present
    one), with advantages :math:`\hat A` under the present policy and critic, standardised:

    .. math::
        g_t &= -\tfrac1N \sum \frac{\pi_{\theta_t}(a|s)}{\mu(a|s)} \hat A(s, a) \nabla \log \pi_{\theta_t}(a|s) \\
        g'_t &= -\tfrac1N \sum \frac{\pi_{\theta_{t-1}}(a|s)}{\mu(a|s)} \hat A(s, a)
            \nabla \log \pi_{\theta_{t-1}}(a|s) \\
        d_t &= g_t + (1 - a_t) (d_{t-1} - g'_t) \\
        \theta_{t+1} &= \theta_t - \eta_t M_t^{-1} d_t

    with :math:`\eta_t = (\sum_i d_i^T M_i^{-1} d_i / a_{i+1})^{-1/3}` and :math:`M = F + \lambda I`, the policy's
    Fisher matrix on states of the last rollouts, which makes :math:`\eta_t` dimensionless. :math:`a_t` is measured:
    it minimises the error of :math:`d_t` as the parts of the rollouts show it. The step is shortened where its
    quadratic KL would pass ``max_kl``. With ``momentum="storm+"``, ``momentum_floor=0``, ``metric="euclidean"``,
    ``max_kl=None`` and ``reuse_rollouts=1`` the actor's step is the paper's to the letter.

    The critic has a network and an optimizer (Adam) of its own and is fitted to V-trace targets, divided by the
    running standard deviation of the discounted return. Observations are standardised inside the policy.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of their classes.
        env: The environment, or the name of a registered one.
        learning_rate: Learning rate of the *critic's* Adam; a number or a schedule. The actor has none.
        n_steps: Steps of each environment per rollout. None: as many as give 512 transitions in all, and 16 at least.
        reuse_rollouts: Number of recent rollouts that each update learns from. None: as many as make 2048 transitions,
            one at least and four at most.
        critic_steps: Steps of the critic's optimizer after each rollout.
        batch_size: Minibatch size of the critic.
        gamma: Discount factor.
        gae_lambda: Trade-off of bias and variance of the advantages (Schulman et al. 2016); 1 is Monte-Carlo.
        normalize_advantage: Whether advantages are standardised over the transitions of an update.
        advantage_floor: Advantages are never divided by less than this share of the discounted return's running
            standard deviation: where all actions are about equally good, as in a solved task, what is left of them
            is noise and stays small. 0: plain standardisation.
        ent_coef: Weight of an entropy bonus in the actor's objective.
        momentum: ``"measured"``; ``"storm+"`` for the paper's schedule; or a constant in (0, 1]; 1 switches the
            recursion off.
        momentum_floor: Lower bound of a scheduled or measured ``a_t``; 0 for none.
        corrected: False leaves the gradient difference :math:`d_{t-1} - g'_t` out, which is plain momentum,
            :math:`d_t = a_t g_t + (1 - a_t) d_{t-1}`; for comparison.
        weights: Importance weights: ``"step"``, the ratio of each action, of low variance and biased;
            ``"decision"``, the product of the ratios up to it since its episode (or the window) began;
            ``"trajectory"``, the product over all of that stretch.
        max_weight: Importance weights are truncated at this value; None for no bound.
        metric: ``"fisher"`` (natural gradient) or ``"euclidean"`` (the paper).
        damping: :math:`\lambda`, added to the Fisher matrix.
        cg_iterations: Conjugate-gradient iterations of one step.
        fisher_rollouts: Number of recent rollouts whose states the Fisher matrix covers.
        fisher_states: Number of states kept for it in all; bounds its memory.
        max_kl: Largest quadratic KL of a step in the Fisher metric, in nats; None for no bound. ``"auto"``: 0.01 for
            every 512 transitions of a rollout, at least 0.01 and at most 0.04: larger rollouts are less noisy.
        use_sde: gSDE exploration (Raffin et al. 2021, arXiv 2005.05719) in place of Gaussian noise, for Box actions.
            None: for every Box action space.
        sde_sample_freq: Sample a new noise matrix every so many steps; -1: once a rollout.
        rollout_buffer_class: Rollout buffer class; None: chosen by the observation space.
        rollout_buffer_kwargs: Its further arguments.
        stats_window_size: Number of episodes in the logged means.
        tensorboard_log: Folder of TensorBoard logs; None for none.
        policy_kwargs: Further arguments of the policy.
        verbose: 0 prints nothing, 1 the training log, 2 debug messages.
        seed: Seed of all random generators.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``.
        _init_setup_model: Whether to build the networks at once.

    Raises:
        TypeError: Unsupported space, or a policy that is not one of this package's.
        ValueError: An argument outside its range.

    Example:
        >>> from storm_rl import STORMPlusPG
        >>> model = STORMPlusPG("MlpPolicy", "CartPole-v1", seed=0).learn(2_000)
        >>> model.num_timesteps
        2048
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        reuse_rollouts: int | None = None,
        critic_steps: int = 160,
        batch_size: int = 128,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        advantage_floor: float = 0.1,
        ent_coef: float = 0.01,
        momentum: Momentum = "measured",
        momentum_floor: float = 0.3,
        corrected: bool = True,
        weights: Literal["step", "decision", "trajectory"] = "step",
        max_weight: float | None = 10.0,
        metric: Literal["fisher", "euclidean"] = "fisher",
        damping: float = 0.1,
        cg_iterations: int = 10,
        fisher_rollouts: int = 8,
        fisher_states: int = 1024,
        max_kl: float | Literal["auto"] | None = "auto",
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
            learning_rate=learning_rate,
            n_steps=n_steps,
            reuse_rollouts=reuse_rollouts,
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
        )
        if use_sde is None and self.env is not None:
            self.use_sde = isinstance(self.action_space, spaces.Box)
        self.critic_steps = critic_steps
        self.batch_size = batch_size
        self.normalize_advantage = normalize_advantage
        self.advantage_floor = advantage_floor
        self.momentum = momentum
        self.momentum_floor = momentum_floor
        self.corrected = corrected
        self.weights = weights
        self.max_weight = max_weight
        self.metric = metric
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.fisher_rollouts = fisher_rollouts
        self.fisher_states = fisher_states
        self.max_kl = max_kl
        self._check_arguments()
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        for name in ("critic_steps", "batch_size", "cg_iterations", "fisher_rollouts"):
            setattr(self, name, check_integer(name, getattr(self, name), 1))
        for name in ("gamma", "gae_lambda", "momentum_floor"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        if not isinstance(self.momentum, str):
            check_range("momentum", self.momentum, 0.0, 1.0, low_included=False)
        if self.reuse_rollouts is not None:
            self.reuse_rollouts = check_integer("reuse_rollouts", self.reuse_rollouts, 1)
        if self.max_weight is not None:
            check_range("max_weight (None for no bound)", self.max_weight, 0.0, low_included=False)
        if self.max_kl is not None and self.max_kl != "auto":
            check_range('max_kl ("auto", or None for no bound)', self.max_kl, 0.0, low_included=False)
            self.max_kl = float(self.max_kl)
        check_range("advantage_floor", self.advantage_floor, 0.0, 1.0)
        check_range("ent_coef", self.ent_coef, -1e6, 1e6)
        check_integer("fisher_states", self.fisher_states, 1)
        check_integer("sde_sample_freq", self.sde_sample_freq, -1)
        if self.weights not in ("step", "decision", "trajectory"):
            raise ValueError(f'weights must be "step", "decision" or "trajectory", got {self.weights!r}.')
        if self.metric not in ("fisher", "euclidean"):
            raise ValueError(f'metric must be "fisher" or "euclidean", got {self.metric!r}.')
        check_range("damping", self.damping, 0.0, 1e6, low_included=False)
        if self.fisher_states < self.fisher_rollouts:
            raise ValueError(
                f"fisher_states must give each of fisher_rollouts={self.fisher_rollouts} rollouts at least one state, "
                f"got {self.fisher_states!r}."
            )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.max_kl == "auto":
            rollouts = self.n_steps * self.n_envs / ROLLOUT_TRANSITIONS
            self.max_kl = KL_OF_ROLLOUT * min(4.0, max(1.0, rollouts))
        self.recursion = PolicyRecursion(self.momentum, self.momentum_floor, self.corrected)
        self.step_metric: Metric = (
            FisherMetric(self.damping, self.cg_iterations, self.fisher_rollouts, self.fisher_states)
            if self.metric == "fisher"
            else EuclideanMetric()
        )

    @all_or_nothing
    def train(self) -> None:
        """Update the actor, then the observation statistics, then the critic, from the collected rollout."""
        # Acting mode: no dropout and no moving batch statistics, as when the actions were sampled.
        self.policy.set_training_mode(False)
        actor = actor_on_states(self.policy, self.window.observations())
        batch = self._transitions(actor)
        self._update_actor(actor, batch)
        # Between the two: the actor's gradients belong to the statistics that acted, and the critic is fitted to
        # the inputs that it will see next.
        self.policy.update_observation_statistics(self.window.newest.observations)
        self._update_critic(batch)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _transitions(self, actor: ActorOnStates) -> Transitions:
        batch = self.window.transitions(
            actor.observations, actor.distribution(), actor.evaluated, self.gamma, self.gae_lambda
        )
        advantages = batch.advantages
        if self.normalize_advantage:
            floor = self.advantage_floor * self.return_statistics.scale
            advantages = (advantages - advantages.mean()) / max(float(advantages.std()), floor, 1e-8)
        return batch._replace(advantages=advantages)

    # ------------------------------------------------------------------ actor

    def _update_actor(self, actor: ActorOnStates, batch: Transitions) -> None:
        parameters = self.policy.actor_parameters()
        theta = parameters_to_vector(parameters).detach()
        recursion = self.recursion

        gradients, _ = self._part_gradients(actor, batch)
        gradients_at_previous = None
        if recursion.needs_previous and recursion.previous_parameters is not None:
            gradients_at_previous, weights = self._part_gradients(actor, batch, recursion.previous_parameters)
            self._record_weights(weights)
            self._record_cosine(recursion.direction, gradients.mean(dim=0))
        overlap = 1.0 - self.window.newest.dones.numel() / len(batch.advantages)
        proposal = recursion.propose(gradients, gradients_at_previous, overlap)

        self.step_metric.remember(self.window.newest.observations)
        natural_direction = self.step_metric.inverse_product(self.policy, proposal.direction)
        direction_square = float(proposal.direction.dot(natural_direction))
        _check_finite("the actor's step", natural_direction)
        step_size = recursion.accept(proposal, direction_square, theta)
        if isinstance(self.max_kl, float) and self.metric == "fisher" and direction_square > 0.0:
            # KL(theta, theta + step) is 1/2 step^T F step to second order, and F <= F + damping I.
            step_size = min(step_size, (2.0 * self.max_kl / direction_square) ** 0.5)

        before = actor.distribution()
        moved = theta - step_size * natural_direction
        vector_to_parameters(moved, parameters)
        after = actor.distribution(moved)
        self.logger.record("train/kl", float(mean_kl(before, after)))
        entropy = after.entropy()
        if entropy is not None:
            self.logger.record("train/entropy", float(entropy.mean()))
        self.logger.record("train/momentum", recursion.momentum)
        self.logger.record("train/step_size", step_size)
        self.logger.record("train/gradient_norm", float(proposal.gradient.norm()))
        self.logger.record("train/direction_norm", float(proposal.direction.norm()))
        self.logger.record("train/direction_metric_norm", max(direction_square, 0.0) ** 0.5)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))

    def _part_gradients(
        self, actor: ActorOnStates, batch: Transitions, at: Tensor | None = None, n_parts: int = N_PARTS
    ) -> tuple[Tensor, Tensor]:
        """Importance-weighted gradients of the surrogate and the weights, at a flat vector or (None) the present.

        One gradient for each part of the transitions, ``(k, n)``, scaled so that their mean is that of all transitions.
        At the present parameters the weights of the newest rollout are 1.
        """
        size = len(batch.advantages)
        products = None if self.weights == "step" else self._product_weights(actor, batch, at)
        weights: list[Tensor] = []

        def objective(distribution: Distribution, part: slice) -> Tensor:
            log_prob = distribution.log_prob(batch.actions[part])
            if products is None:
                weight = per_step_weights(log_prob, batch.behaviour_log_prob[part], truncation=self.max_weight)
            else:
                weight = products[part]
            weights.append(weight)
            gain = weight * batch.advantages[part] * log_prob
            if self.ent_coef:
                entropy = distribution.entropy()
                gain = gain + self.ent_coef * (-log_prob if entropy is None else entropy)
            return gain

        parts = equal_parts(size, min(n_parts, size))
        gradient = actor.part_gradients(objective, parts, at).mul_(-len(parts) / size)
        _check_finite("the policy gradient", gradient)
        return gradient, torch.cat(weights)

    def _product_weights(self, actor: ActorOnStates, batch: Transitions, at: Tensor | None = None) -> Tensor:
        log_prob = actor.distribution(at).log_prob(batch.actions)
        per_decision = self.weights == "decision"
        return segment_weights(log_prob, batch.behaviour_log_prob, batch.segment_ends, per_decision, self.max_weight)

    def _record_weights(self, weights: Tensor) -> None:
        self.logger.record("train/largest_weight", float(weights.max()))
        self.logger.record("train/effective_sample_size", float(effective_sample_size(weights)) / weights.numel())

    def _record_cosine(self, direction: Tensor | None, gradient: Tensor) -> None:
        if direction is not None:
            cosine = functional.cosine_similarity(direction, gradient, dim=0)
            self.logger.record("train/cosine_previous_direction", float(cosine))

    # ----------------------------------------------------------------- critic

    def _update_critic(self, batch: Transitions) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.set_value_scale(self.return_statistics.scale)
        scale = self.policy.value_scale
        loss = fit_critic(self.policy, batch.observations, batch.value_targets / scale, self._passes(len(batch.values)))
        self.logger.record("train/value_loss", loss)
        self.logger.record("train/value_scale", scale)
        self.logger.record(
            "train/explained_variance",
            float(explained_variance(batch.values.cpu().numpy(), batch.value_targets.cpu().numpy())),
        )

    def _passes(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Passes over ``size`` transitions, each in an order of its own, as ``critic_steps`` minibatches in all."""
        left = self.critic_steps
        while left > 0:
            minibatches = torch.split(torch.randperm(size, device=self.device), self.batch_size)[:left]
            left -= len(minibatches)
            yield minibatches

    # ------------------------------------------------------------ learn, save

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
        with self._enough_threads():
            super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        # SB3 dumps before it trains: without this the last update's values would never reach TensorBoard.
        self.logger.dump(step=self.num_timesteps)
        return self

    def _enough_threads(self) -> AbstractContextManager[None]:
        """Threads for networks in closed form: one, and BLAS's own where layers are wide enough to gain by them."""
        dense = DensePolicy.of(self.policy)
        if dense is None:
            return nullcontext()
        widest = max(array.shape[0] for network in (dense.actor, dense.critic) for array in network.arrays)
        return one_thread(blas=widest < WIDE_LAYER)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "recursion", "step_metric"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "recursion", "step_metric"], tensors


def equal_parts(size: int, n_parts: int) -> list[slice]:
    """``n_parts`` slices of a range, of lengths that differ by at most 1."""
    bounds = [size * part // n_parts for part in range(n_parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def _check_finite(name: str, values: Tensor) -> None:
    if not is_finite(values):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{name} has {bad} NaN or infinite entries of {values.numel()}: the parameters stay as they were. "
            "Look at the rewards' and observations' scale, and at train/std for a collapsed noise."
        )
