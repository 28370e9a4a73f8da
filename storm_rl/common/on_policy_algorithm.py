"""The on-policy base: SB3's, with rewards and observations that are checked and whose scale is measured."""

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from storm_rl.common.policies import POLICY_ALIASES, StandardisedActorCriticPolicy, environment_actions
from storm_rl.common.rollout_window import RolloutWindow, rollout_from_buffer
from storm_rl.common.running_statistics import DiscountedReturnStatistics

_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_OBSERVATION_SPACES = (*_ACTION_SPACES, spaces.Dict)


class CheckedOnPolicyAlgorithm(OnPolicyAlgorithm):
    """SB3's :class:`OnPolicyAlgorithm` for standardised policies.

    Adds to the base: clear errors for unsupported spaces and for NaN or infinite rewards and observations, and
    the running scale of the rewards (``return_statistics``), which sets the unit of the critic.
    """

    policy: StandardisedActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICY_ALIASES

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        n_steps: int | None,
        transitions_per_rollout: int,
        reuse_rollouts: int,
        **kwargs: Any,
    ) -> None:
        self.reuse_rollouts = reuse_rollouts
        self.transitions_per_rollout = transitions_per_rollout
        super().__init__(policy, env, n_steps=n_steps, _init_setup_model=False, **kwargs)  # type: ignore[arg-type]
        if not issubclass(self.policy_class, StandardisedActorCriticPolicy):
            raise TypeError(
                f"policy {self.policy_class.__name__} is not a {StandardisedActorCriticPolicy.__name__}: use one of "
                f"{', '.join(self.policy_aliases)} or a subclass of storm_rl.common.policies' classes."
            )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # Every environment comes through here, before SB3 asserts anything about it.
        wrapped = OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        actions, observations = wrapped.action_space, wrapped.observation_space
        if not isinstance(actions, _ACTION_SPACES):
            raise TypeError(f"unsupported action space {actions}: {_names(_ACTION_SPACES)} are supported.")
        if isinstance(actions, spaces.Box) and not np.isfinite([actions.low, actions.high]).all():
            raise ValueError(f"action space {actions} must have finite bounds.")
        if not isinstance(observations, _OBSERVATION_SPACES):
            raise TypeError(
                f"unsupported observation space {observations}: {_names(_OBSERVATION_SPACES)} are supported."
            )
        return wrapped

    def _check_rollout_size(self) -> None:
        if self.n_steps is None:
            # The same number of transitions whatever the number of environments.
            self.n_steps = -(-self.transitions_per_rollout // self.n_envs)
        if isinstance(self.n_steps, bool) or not isinstance(self.n_steps, (int, np.integer)):
            raise TypeError(f"n_steps must be an integer (or None for the default), got {self.n_steps!r}.")
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be positive, got {self.n_steps}.")
        if self.n_steps * self.n_envs < 2:
            raise ValueError(
                f"a rollout of one transition (n_steps={self.n_steps}, n_envs={self.n_envs}) leaves no advantage "
                "after standardisation; n_steps * n_envs must be at least 2."
            )

    def _setup_model(self) -> None:
        self._check_rollout_size()
        super()._setup_model()
        self.window = RolloutWindow(self.reuse_rollouts)
        self._window_end: Any = None
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
            ValueError: A reward or observation is NaN or infinite.
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
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            with torch.no_grad():
                actions_tensor, values, log_probs = self.policy(
                    obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                )
            actions = actions_tensor.cpu().numpy()

            new_obs, rewards, dones, infos = env.step(environment_actions(self.policy, actions))
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._check_finite_step(new_obs, rewards)
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
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

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

    def _check_finite_step(self, new_obs: VecEnvObs, rewards: np.ndarray) -> None:
        if not np.isfinite(rewards).all():
            index = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise ValueError(
                f"environment {index} gave reward {rewards[index]} at env step {self.num_timesteps}; rewards must be "
                "finite. The policy and all statistics are as before this rollout."
            )
        parts = new_obs if isinstance(new_obs, dict) else {"observation": np.asarray(new_obs)}
        for key, batch in parts.items():
            if np.issubdtype(batch.dtype, np.floating) and not np.isfinite(batch).all():
                index = int(np.argwhere(~np.isfinite(batch))[0][0])
                raise ValueError(
                    f"environment {index} gave a NaN or infinite {key} at env step {self.num_timesteps}: "
                    f"{batch[index]}. The policy and all statistics are as before this rollout."
                )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "return_statistics", "window", "_window_end"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "return_statistics"], tensors


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in types)
