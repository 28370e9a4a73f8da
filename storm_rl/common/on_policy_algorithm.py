"""The on-policy base: SB3's, with rewards and observations that are checked and whose scale is measured."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Normal

from storm_rl.common.dense_policy import DensePolicy
from storm_rl.common.faults import acting, check_policy_outputs, check_transition
from storm_rl.common.policies import StandardisedActorCriticPolicy, environment_actions
from storm_rl.common.resumable_algorithm import ResumableAlgorithm
from storm_rl.common.rollout_window import RolloutWindow, rollout_from_buffer
from storm_rl.common.running_statistics import DiscountedReturnStatistics

# Transitions of a rollout, over all environments, and vector steps of it at the least, by default.
ROLLOUT_TRANSITIONS = 512
MIN_STEPS = 16
# Rollouts that an update learns from, by default: as many, and fewer of larger ones.
MAX_REUSE = 4


class CheckedOnPolicyAlgorithm(ResumableAlgorithm, OnPolicyAlgorithm):
    """SB3's :class:`OnPolicyAlgorithm` for standardised policies.

    Adds to the base: clear errors for NaN or infinite actions, rewards and observations, a window of recent rollouts,
    and the running scale of the rewards (``return_statistics``), which sets the unit of the critic.
    """

    policy: StandardisedActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        n_steps: int | None,
        reuse_rollouts: int | None,
        **kwargs: Any,
    ) -> None:
        self.reuse_rollouts = reuse_rollouts
        super().__init__(policy, env, n_steps=n_steps, _init_setup_model=False, **kwargs)
        if not issubclass(self.policy_class, StandardisedActorCriticPolicy):
            raise TypeError(
                f"policy {self.policy_class.__name__} is not a {StandardisedActorCriticPolicy.__name__}: use one of "
                f"{', '.join(self.policy_aliases)} or a subclass of storm_rl.common.policies' classes."
            )

    def _check_rollout_size(self) -> None:
        if self.n_steps is None:
            # The same number of transitions whatever the number of environments, until too few steps of each are left.
            self.n_steps = max(MIN_STEPS, -(-ROLLOUT_TRANSITIONS // self.n_envs))
        if isinstance(self.n_steps, bool) or not isinstance(self.n_steps, (int, np.integer)):
            raise TypeError(f"n_steps must be an integer (or None for the default), got {self.n_steps!r}.")
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be positive, got {self.n_steps}.")
        if self.n_steps * self.n_envs < 2:
            raise ValueError(
                f"a rollout of one transition (n_steps={self.n_steps}, n_envs={self.n_envs}) leaves no advantage "
                "after standardisation; n_steps * n_envs must be at least 2."
            )
        if self.reuse_rollouts is None:
            # As many as make the same window, whatever the size of a rollout.
            window = round(MAX_REUSE * ROLLOUT_TRANSITIONS / (self.n_steps * self.n_envs))
            self.reuse_rollouts = min(MAX_REUSE, max(1, window))

    def _setup_model(self) -> None:
        self._check_policy()
        self._check_rollout_size()
        super()._setup_model()
        assert self.reuse_rollouts is not None
        self.window = RolloutWindow(self.reuse_rollouts)
        self._window_end: Any = None
        # Vector steps that gSDE's present noise has served.
        self._noise_age = 0
        self.return_statistics = DiscountedReturnStatistics(self.gamma, self.n_envs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` vector steps of the current policy.

        As SB3's own loop, callbacks included (one ``on_step`` a vector step, with this method's locals), plus the
        checks and the reward statistics. At a time limit the value of the terminal observation is added to the
        reward, as in SB3 (see SB3's issue #633).

        Returns:
            False if a callback ended the training in the middle of the rollout.

        Raises:
            ValueError: An action, reward or observation is NaN or infinite; names environment and env step.
        """
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        raw_rewards = np.zeros((n_rollout_steps, env.num_envs))
        raw_dones = np.zeros((n_rollout_steps, env.num_envs), dtype=bool)
        truncations: dict[int, Any] = {}
        if self._last_obs is not self._window_end:
            self.window.clear()
        if self.use_sde:
            self._continue_noise(env.num_envs)
        callback.on_rollout_start()
        self._in_rollout = True
        act = DensePolicy.of(self.policy) or self.policy

        while n_steps < n_rollout_steps:
            if self.use_sde and self._noise_age >= self.sde_sample_freq > 0:
                self._reset_noise(env.num_envs)
            with torch.no_grad(), acting(self.policy, self.num_timesteps):
                actions_tensor, values, log_probs = act(
                    obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                )
            check_policy_outputs(self.num_timesteps, actions=actions_tensor, values=values, log_probs=log_probs)
            actions = actions_tensor.cpu().numpy()

            new_obs, rewards, dones, infos = env.step(environment_actions(self.policy, actions))
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
            raw_rewards[n_steps], raw_dones[n_steps] = rewards, dones
            for index in self._truncated(dones, infos):
                truncations[n_steps * env.num_envs + index] = infos[index]["terminal_observation"]
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                self._bootstrapped(rewards, dones, infos),
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones

        with torch.no_grad():
            values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))  # type: ignore[arg-type]
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        self.return_statistics.update(raw_rewards, raw_dones)
        self.window.append(
            rollout_from_buffer(rollout_buffer, raw_rewards, raw_dones, truncations, new_obs, self.policy)
        )
        self._window_end = new_obs
        self._in_rollout = False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _reset_noise(self, n_envs: int) -> None:
        self.policy.reset_noise(n_envs)
        self._noise_age = 0

    @torch.no_grad()
    def _continue_noise(self, n_envs: int) -> None:
        """Keep gSDE's noise over an update: with many environments rollouts are short, and it is to last as long.

        Unlike SB3, which draws anew for every rollout. The noise's standard normal numbers stay and its scale is that
        of the policy as it is now, so that actions follow the very law of their log-probabilities.
        """
        noise = self.policy.action_dist
        assert isinstance(noise, StateDependentNoiseDistribution)
        if self.sde_sample_freq < 1 or self._noise_age == 0 or len(noise.exploration_matrices) != n_envs:
            self._reset_noise(n_envs)
            return
        std = noise.get_std(self.policy.log_std)
        ratio = std / noise.weights_dist.scale
        noise.exploration_mat, noise.exploration_matrices = (
            noise.exploration_mat * ratio,
            noise.exploration_matrices * ratio,
        )
        noise.weights_dist = Normal(torch.zeros_like(std), std)

    def _bootstrapped(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """The rewards, plus ``gamma * V(terminal observation)`` where an episode ended at its time limit."""
        truncated = self._truncated(dones, infos)
        if not truncated:
            return rewards
        rewards = rewards.copy()
        for index in truncated:
            observation, _ = self.policy.obs_to_tensor(infos[index]["terminal_observation"])
            with torch.no_grad():
                rewards[index] += self.gamma * float(self.policy.predict_values(observation))
        return rewards

    @staticmethod
    def _truncated(dones: np.ndarray, infos: list[dict[str, Any]]) -> list[int]:
        """The environments whose episode has just ended at its time limit."""
        return [
            int(index)
            for index in np.flatnonzero(dones)
            if infos[index].get("TimeLimit.truncated", False) and infos[index].get("terminal_observation") is not None
        ]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "return_statistics", "window", "_window_end", "_noise_age"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "return_statistics"], tensors

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
