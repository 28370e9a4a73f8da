"""STORM+ policy gradient with action masks."""

from typing import Any, ClassVar, Self

import numpy.typing as npt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from storm_rl.maskable.masks import MASKS, MaskableRolloutBuffer, MaskedObservations, choices, split_masks
from storm_rl.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from storm_rl.storm_plus_pg import STORMPlusPG


class MaskableSTORMPlusPG(STORMPlusPG):
    """:class:`~storm_rl.STORMPlusPG` with action masks (Huang, Ontañón 2020, arXiv 2006.14171).

    Takes the place of sb3-contrib's ``MaskablePPO``, in the same environments: those with a method ``action_masks()``,
    of their own or by contrib's wrapper ``ActionMasker``. It gives flat booleans, true where a choice is allowed: one
    for each action (Discrete), for each choice of each dimension (MultiDiscrete), or for 0 and for 1 in each dimension
    (MultiBinary). It is called at the start of a rollout and after each step.

    A mask is stored as one more entry of its observation: in the rollout buffer, the window of earlier rollouts, the
    metric's states and saved models. So importance weights, gradients at the previous parameters and Fisher products
    are those of the masked distributions, in which a forbidden action has probability 0.

    Arguments are those of :class:`~storm_rl.STORMPlusPG`. An own policy is a subclass of one of this package's, an own
    ``rollout_buffer_class`` of ``storm_rl.maskable.MaskableRolloutBuffer``.

    Raises:
        TypeError: Box actions, or a policy or buffer without masks.
        ValueError: As :class:`~storm_rl.STORMPlusPG`. In ``learn``, environments without ``action_masks()``, a mask of
            a wrong size, or one that leaves no choice.

    Example:
        >>> from sb3_contrib.common.envs import InvalidActionEnvDiscrete
        >>> from storm_rl.maskable import MaskableSTORMPlusPG
        >>> env = InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10)
        >>> model = MaskableSTORMPlusPG("MlpPolicy", env, seed=0).learn(2_000)
        >>> observation, _ = env.reset()
        >>> action, _ = model.predict(observation, action_masks=env.action_masks())
        >>> env.action_masks()[action]
        True
    """

    policy: MaskableActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableActorCriticPolicy,
        "CnnPolicy": MaskableActorCriticCnnPolicy,
        "MultiInputPolicy": MaskableMultiInputActorCriticPolicy,
    }
    _use_masking = True

    def _check_arguments(self) -> None:
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = MaskableRolloutBuffer
        super()._check_arguments()
        choices(self.action_space)  # Refuses what has none.
        needed = [(self.policy_class, MaskableActorCriticPolicy), (self.rollout_buffer_class, MaskableRolloutBuffer)]
        for given, right in needed:
            if not issubclass(given, right):
                raise TypeError(
                    f"{given.__module__}.{given.__name__} does not take action masks: it must be a subclass of "
                    f"{right.__module__}.{right.__name__}."
                )

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As the base class's; what callbacks see as ``env`` and ``new_obs`` has the masks."""
        masked = MaskedObservations(env, self._use_masking)
        last: Any = self._last_obs
        plain, stale = split_masks(last)
        if stale is None:
            self._last_obs = masked.with_masks(plain)
        else:
            # The same object, by which the window knows that the rollout goes on. What is allowed may have changed.
            last[MASKS] = masked.with_masks(plain)[MASKS]
        return super().collect_rollouts(masked, callback, rollout_buffer, n_rollout_steps)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableSTORMPlusPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool = True,
    ) -> Self:
        """As the base class's. ``use_masking=False`` allows every action, and does not ask for ``action_masks()``."""
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """The actions for an observation, or for a batch of them.

        Args:
            observation: Of one environment or of several.
            state: Not used: SB3's for recurrent policies, as is the next.
            episode_start: Not used.
            deterministic: The most likely action in place of a sample.
            action_masks: Flat booleans for each observation, true where a choice is allowed; None: all are.

        Raises:
            ValueError: A mask of a wrong size, or that leaves no choice.
        """
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)
