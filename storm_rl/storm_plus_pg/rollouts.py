"""Rollouts: collected step by step, kept for some updates, and turned into advantages under the present policy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.distributions import Normal

from storm_rl.common.checks import acting, check_buffer, check_finite, check_policy_outputs, check_transition, own_copy
from storm_rl.common.policies import (
    ObservationBatch,
    RunningMeanStd,
    StandardisedActorCriticPolicy,
    concatenate,
    environment_actions,
    map_observations,
    select,
)
from storm_rl.common.resumable_algorithm import ResumableAlgorithm
from storm_rl.storm_plus_pg.actor_critic import ActorCritic, SampledActions
from storm_rl.storm_plus_pg.numpy_actor_critic import Networks, NumpyActorCritic


class RolloutAlgorithm(ResumableAlgorithm, OnPolicyAlgorithm):
    """SB3's :class:`OnPolicyAlgorithm` with checked data and a window of recent rollouts."""

    policy: StandardisedActorCriticPolicy
    window: "RolloutWindow"
    return_statistics: "DiscountedReturnStatistics"
    # The last observations in the window: it goes on only from there.
    _window_end: Any = None
    # Vector steps that gSDE's present noise has served.
    _noise_age = 0

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_buffer(self.rollout_buffer_class, self.rollout_buffer_kwargs, self.observation_space)

    def networks(self) -> Networks:
        """The policy's networks in numpy where they have that form, otherwise by autograd."""
        return NumpyActorCritic.from_policy(self.policy) or ActorCritic(self.policy)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` vector steps of the current policy.

        As SB3's own loop, callbacks included (one ``on_step`` a vector step, with this method's locals), plus the
        checks. The buffer holds observations, actions, log-probabilities, episode starts and the environments' own
        rewards, and what a callback changes there in ``on_rollout_end`` is learned from. Its values, returns and
        advantages stay 0: `RolloutWindow.transitions` computes them for all rollouts of an update at once. Gives False
        if a callback ended the training in the middle of the rollout.

        Raises:
            ValueError: An action, reward or observation is NaN or infinite; names environment and env step.
        """
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        truncations: dict[int, ObservationBatch] = {}
        values = torch.zeros(env.num_envs)  # By SB3's name, for callbacks; they are computed in `train`.
        if self._last_obs is not self._window_end:
            self.window.clear()
            self._last_obs = own_copy(self._last_obs)
        if self.use_sde:
            self._continue_noise(env.num_envs)
        callback.update_locals(locals())
        callback.on_rollout_start()
        self._in_rollout = True
        networks = self.networks()

        while n_steps < n_rollout_steps:
            if self.use_sde and self._noise_age >= self.sde_sample_freq > 0:
                self._reset_noise(env.num_envs)
            obs_tensor = obs_as_tensor(self._last_obs, self.device)
            with acting(self.policy, self.num_timesteps):
                actions_tensor, log_probs = networks.act(obs_tensor)
            check_policy_outputs(self.num_timesteps, actions=actions_tensor, log_probs=log_probs)
            actions = actions_tensor.cpu().numpy()

            clipped_actions = environment_actions(self.policy, actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            self._noise_age += 1

            callback.update_locals(locals())
            if not callback.on_step():
                # Unlike SB3: the next rollout begins where the environments are, not one step behind.
                self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
                self._in_rollout = False
                return False

            check_transition(new_obs, rewards, dones, infos, self.num_timesteps)
            self._update_info_buffer(infos, dones)
            for index in np.flatnonzero(dones):
                # Only where the time limit ended the episode does a value follow (see SB3's issue #633).
                terminal_obs = infos[index].get("terminal_observation")
                if terminal_obs is not None and infos[index].get("TimeLimit.truncated", False):
                    place = n_steps * env.num_envs + int(index)
                    truncations[place] = self.policy.obs_to_tensor(own_copy(terminal_obs))[0]
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
            )
            self._last_obs, self._last_episode_starts = own_copy(new_obs), np.array(dones)

        callback.update_locals(locals())
        callback.on_rollout_end()
        last_observations = obs_as_tensor(self._last_obs, self.device)
        rollout = rollout_from_buffer(rollout_buffer, dones, truncations, last_observations, self.policy)
        check_finite("the rollout buffer's rewards, changed by a callback,", rollout.rewards)
        self.window.append(rollout)
        self._window_end = self._last_obs
        self.return_statistics.add_rollout(rollout.rewards, rollout.dones, rollout.terminated)
        self._in_rollout = False
        return True

    def _reset_noise(self, n_envs: int) -> None:
        self.policy.reset_noise(n_envs)
        self._noise_age = 0

    @torch.no_grad()
    def _continue_noise(self, n_envs: int) -> None:
        """Keep gSDE's noise over an update: with many environments rollouts are short, and it is to last as long.

        Unlike SB3, which draws anew for every rollout. The noise's standard normal numbers stay and its scale is that
        of the policy as it is now, so that actions follow the very distribution of their log-probabilities.
        """
        noise = self.policy.action_dist
        assert isinstance(noise, StateDependentNoiseDistribution)
        if self.sde_sample_freq < 1 or self._noise_age == 0 or len(noise.exploration_matrices) != n_envs:
            self._reset_noise(n_envs)
            return
        std = noise.get_std(self.policy.log_std_of_actions(self.policy.log_std))
        ratio = std / noise.weights_dist.scale
        noise.exploration_mat = noise.exploration_mat * ratio
        noise.exploration_matrices = noise.exploration_matrices * ratio
        noise.weights_dist = Normal(torch.zeros_like(std), std)


@dataclass
class Rollout:
    """One rollout of ``n_steps`` vector steps of ``n_envs`` environments, time first.

    Attributes:
        observations: Flat, ``(n_steps * n_envs, ...)``, raw.
        actions: Flat, as the policy's distribution takes them.
        log_prob: Of the policy that acted, ``(n_steps, n_envs)``.
        rewards: As the environments gave them, ``(n_steps, n_envs)``.
        dones: Whether an episode ended with that step, ``(n_steps, n_envs)``.
        last_observations: Those after the last step, ``(n_envs, ...)``.
        truncated_at: Flat indices of the steps that ended an episode at a time limit.
        truncated_observations: The observations at which those episodes ended; None if there are none.
    """

    observations: ObservationBatch
    actions: Tensor
    log_prob: Tensor
    rewards: Tensor
    dones: Tensor
    last_observations: ObservationBatch
    truncated_at: Tensor
    truncated_observations: ObservationBatch | None

    @property
    def terminated(self) -> Tensor:
        """Whether an episode ended with that step, and not at a time limit, ``(n_steps, n_envs)``."""
        return self.dones.flatten().index_fill(0, self.truncated_at, False).view_as(self.dones)

    def next_observations(self) -> ObservationBatch:
        """Those after each step, flat; after the last step of an episode they are the next episode's first."""

        def shifted(batch: Tensor, further: Tensor) -> Tensor:
            # SB3's buffer keeps a Discrete observation as (n, 1), environments give (n,).
            return torch.cat([batch[len(further) :], further.reshape(-1, *batch.shape[1:])])

        return map_observations(shifted, self.observations, self.last_observations)  # type: ignore[no-any-return]


def rollout_from_buffer(
    buffer: RolloutBuffer,
    last_dones: np.ndarray,
    truncations: dict[int, ObservationBatch],
    last_observations: ObservationBatch,
    policy: StandardisedActorCriticPolicy,
) -> Rollout:
    """The rollout in a full SB3 buffer; ``truncations`` leads from flat indices to where episodes were cut off."""

    def flat(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=policy.device)

    actions = flat(buffer.actions).float()  # As SB3's buffer gives them.
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    return Rollout(
        observations=map_observations(flat, buffer.observations),
        actions=actions,
        log_prob=torch.tensor(buffer.log_probs, device=policy.device),
        rewards=torch.tensor(buffer.rewards, device=policy.device),
        dones=torch.tensor(np.concatenate([buffer.episode_starts[1:], last_dones[None]]) > 0, device=policy.device),
        last_observations=last_observations,
        truncated_at=torch.tensor(list(truncations), dtype=torch.long, device=policy.device),
        truncated_observations=concatenate(list(truncations.values())) if truncations else None,
    )


class Transitions(NamedTuple):
    """Flat transitions, one environment after the other and each in order of time; ``n`` in all."""

    observations: ObservationBatch
    actions: Tensor
    behaviour_log_prob: Tensor
    values: Tensor
    advantages: Tensor
    value_targets: Tensor
    sampled: SampledActions | None = None
    """Further actions in these states, with what the action values say of them."""


class RolloutWindow:
    """The last ``size`` rollouts of the same environments, each beginning where the one before it ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rollouts: list[Rollout] = []

    @property
    def newest(self) -> Rollout:
        """The rollout that was collected last."""
        return self.rollouts[-1]

    def append(self, rollout: Rollout) -> None:
        """Add a rollout and drop the oldest beyond ``size``."""
        self.rollouts = [*self.rollouts, rollout][-self.size :]

    def newest_rollouts(self, size: int) -> "RolloutWindow":
        """A window of the last ``size`` of these rollouts, which are shared."""
        window = RolloutWindow(size)
        window.rollouts = self.rollouts[-size:]
        return window

    def clear(self) -> None:
        """Forget all: the next rollout does not begin where the last one ended."""
        self.rollouts = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python only."""
        return {"rollouts": [dict(vars(rollout)) for rollout in self.rollouts]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` gave; a smaller window keeps the newest rollouts."""

        def placed(part: ObservationBatch | None) -> Any:
            return None if part is None else map_observations(lambda tensor: tensor.to(device), part)

        rollouts = [{name: placed(part) for name, part in rollout.items()} for rollout in state["rollouts"]]
        self.rollouts = [Rollout(**rollout) for rollout in rollouts[-self.size :]]

    def observations(self) -> ObservationBatch:
        """Raw observations of all transitions, one environment after the other and each in order of time."""
        return select(concatenate([rollout.observations for rollout in self.rollouts]), self._order())

    @torch.no_grad()
    def transitions(
        self, observations: ObservationBatch, networks: Networks, gamma: float, gae_lambda: float
    ) -> Transitions:
        """All transitions, with advantages and value targets under the present critic.

        Takes what :meth:`observations` gave, and the networks for the values.
        """

        def joined(part: Callable[[Rollout], Tensor]) -> Tensor:
            return torch.cat([part(rollout) for rollout in self.rollouts])

        dones, order = joined(lambda rollout: rollout.dones), self._order()
        actions = joined(lambda rollout: rollout.actions)[order]
        behaviour_log_prob = joined(lambda rollout: rollout.log_prob).flatten()[order]
        values = networks.values(observations)
        by_time = values.reshape(dones.shape[::-1]).T
        # The recursion over steps is many small operations: fast on the CPU whatever the device.
        advantages = generalised_advantages(
            joined(lambda rollout: rollout.rewards).cpu(),
            by_time.cpu(),
            self._next_values(networks, by_time, dones).cpu(),
            dones.cpu(),
            gamma,
            gae_lambda,
        )
        advantages = advantages.to(dones.device).flatten()[order]
        return Transitions(observations, actions, behaviour_log_prob, values, advantages, values + advantages)

    def _order(self) -> Tensor:
        """From the order of collection, time first, to that of :class:`Transitions`."""
        n_envs = self.newest.dones.shape[1]
        n_steps = sum(len(rollout.dones) for rollout in self.rollouts)
        return torch.arange(n_steps * n_envs, device=self.newest.dones.device).reshape(n_steps, n_envs).T.reshape(-1)

    def _next_values(self, networks: Networks, values: Tensor, dones: Tensor) -> Tensor:
        last = networks.values(self.newest.last_observations).reshape(1, -1)
        # 0 after a terminal step; at a time limit the episode would have gone on from its last observation.
        next_values = torch.where(dones, 0.0, torch.cat([values[1:], last])).reshape(-1)
        start = 0
        for rollout in self.rollouts:
            if rollout.truncated_observations is not None:
                next_values[start + rollout.truncated_at] = networks.values(rollout.truncated_observations)
            start += rollout.dones.numel()
        return next_values.reshape(dones.shape)


def generalised_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, dones: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    r"""Generalised advantage estimates of consecutive steps (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    With :math:`\delta_h = r_h + \gamma V(s_{h+1}) - V(s_h)`,

    .. math:: A_h = \delta_h + \gamma \lambda A_{h+1},

    restarted at the end of an episode; biased unless ``gae_lambda`` is 1 or ``V`` exact. They are not cut where the
    policy has moved away, as by V-trace, on purpose: ``docs/storm_plus_pg.md`` says why.

    All tensors are on the CPU, without graph and of the same shape (or ``ValueError``), ``(n_steps, n_envs)``, time
    first. ``next_values`` are 0 where an episode terminated, of its last observation where it was truncated.
    """
    shapes = {tuple(tensor.shape) for tensor in (rewards, values, next_values, dones)}
    if len(shapes) != 1:
        raise ValueError(f"rewards, values, next_values and dones must agree in shape, got {sorted(shapes)}")
    advantages = rewards + gamma * next_values - values
    factors = (~dones[:-1]).to(advantages.dtype) * (gamma * gae_lambda)
    # As arrays: of so few numbers a step, numpy's operations cost a fraction of torch's.
    summed, weights = advantages.numpy(), factors.numpy()
    for step in reversed(range(len(weights))):
        summed[step] += weights[step] * summed[step + 1]
    return advantages


class DiscountedReturnStatistics(RunningMeanStd):
    r"""The unit of the critics' values, and what these have in common.

    The unit is the deviation of each environment's running discounted return, :math:`R_h = \gamma R_{h-1} + r_h`,
    restarted at 0 with each episode, as that of SB3's ``VecNormalize``; here of :func:`shaped_rewards`.
    """

    returns: Tensor
    large_constant = 3.0  # Standard deviations from which on a constant in the rewards is large.

    def __init__(self, gamma: float, n_envs: int) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("returns", torch.zeros(n_envs, dtype=torch.float64))
        self.steps = RunningMeanStd((2,))  # Of the reward, and of whether the episode terminated.

    def add_rollout(self, rewards: Tensor, dones: Tensor, terminated: Tensor) -> None:
        """Add one rollout, all ``(n_steps, n_envs)``, in order of time; ``terminated``: ended, not at a time limit."""
        self.steps.update(torch.stack([rewards.flatten(), terminated.flatten()], dim=1))
        rewards = shaped_rewards(rewards, terminated, self.offset, self.gamma)
        returns, history = self.returns.numpy(), []
        for reward, done in zip(rewards.cpu().numpy(), dones.cpu().numpy(), strict=True):
            history.append(returns * self.gamma + reward)
            returns = np.where(done, 0.0, history[-1])
        self.returns = torch.from_numpy(returns)
        self.update(torch.from_numpy(np.concatenate(history)))

    @property
    def scale(self) -> float:
        """The standard deviation, in units of return; 1 before the first reward and where all are equal."""
        std = float(self.var.sqrt())
        return std if std > 1e-8 else 1.0

    @property
    def offset(self) -> float:
        r"""What a large constant in the rewards adds to all values, in units of return.

        With :math:`p` terminations a step the best constant value is :math:`b = \bar r / (1 - \gamma + \gamma p)`: its
        temporal differences have mean 0 and, if reward and termination are independent, the variance
        :math:`s^2 = \sigma_r^2 + (\gamma b \sigma_T)^2`. The offset is what :math:`(1 - \gamma) b` adds up to beyond
        :math:`3 s`; 0 while :math:`s` is, as at -1 a step before any goal is met: values above the true ones explore.
        """
        (reward, ends), variance, gamma = self.steps.mean.tolist(), self.steps.var.tolist(), self.gamma
        best = 0.0 if gamma == 1.0 else reward / (1.0 - gamma + gamma * ends)
        deviation = math.hypot(variance[0] ** 0.5, gamma * best * variance[1] ** 0.5)
        excess = (1.0 - gamma) * abs(best) - self.large_constant * deviation
        large = excess > 0.0 and deviation > 1e-6 * abs(reward)
        return math.copysign(excess / (1.0 - gamma), best) if large else 0.0

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; another number of environments starts its episodes afresh, and a file may lack ``steps``."""
        state = {**self.state_dict(), **state}
        if state["returns"].shape != self.returns.shape:
            state["returns"] = torch.zeros_like(self.returns)
        return super().load_state_dict(state, strict, assign)


def shaped_rewards(rewards: Tensor, terminated: Tensor, offset: float, gamma: float) -> Tensor:
    r""":math:`r + \gamma \Phi(s') - \Phi(s)`, where the potential is ``offset`` in all states, and 0 after termination.

    Its values are those of ``rewards`` less the offset, and the best policies are the same (Ng, Harada, Russell 1999).
    That critics do better without a common constant is reward centering (Naik et al. 2024, arXiv 2405.09999).
    """
    return rewards - offset * torch.where(terminated, 1.0, 1.0 - gamma) if offset else rewards
