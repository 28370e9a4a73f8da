"""The batched tasks as gymnasium `VectorEnv`s. Same-step autoreset is in gymnasium since 1.1, which this needs.

>>> from envs.batched.gymnasium_vector import make_vector_env
>>> env = make_vector_env("CartPole-v1", n_envs=64)
>>> observations, infos = env.reset(seed=1)
>>> observations, rewards, terminations, truncations, infos = env.step(env.action_space.sample())
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.batched import batched_class
from envs.batched.base import BatchedEnv, Bools, Doubles


def make_vector_env(env_id: str, n_envs: int = 1, render_mode: str | None = None) -> "BatchedVectorEnv":
    """In the place of ``gymnasium.make_vec`` with same-step autoreset; arguments and errors are `make_vec`'s here."""
    return BatchedVectorEnv(batched_class(env_id)(n_envs, render_mode))


class BatchedVectorEnv(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """A `BatchedEnv` behind gymnasium's interface.

    Given the same seeds and actions it returns what gymnasium's `SyncVectorEnv` does in ``AutoresetMode.SAME_STEP``,
    as closely as the task's dynamics agree; rewards are float64. Where an episode ends, the observation returned is the
    next one's first and its last is ``infos["final_obs"][i]``. In this mode gymnasium's vector wrappers of observations
    refuse both; those of rewards, actions and episode statistics work.

    Args:
        batch: The environments, to be stepped and reset from here only. ``batch.get_attr`` and ``batch.env_method``
            reach single ones; ``batch.get_state`` and ``batch.set_state`` are for exact resume.
    """

    def __init__(self, batch: BatchedEnv) -> None:
        self.batch = batch
        self.num_envs, self.spec, self.render_mode = batch.num_envs, batch.spec, batch.render_mode
        self.single_observation_space, self.single_action_space = batch.observation_space, batch.action_space
        self.observation_space = batch_space(batch.observation_space, batch.num_envs)
        self.action_space = batch_space(batch.action_space, batch.num_envs)
        with gym.make(batch.env_id) as single:
            self.metadata = {**single.metadata, "render_modes": ["rgb_array"]}
        self.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every environment; the first observations, and no infos.

        Args:
            seed: Environment i's seed is ``seed + i``, or ``seed[i]`` of a sequence; None continues its stream.
            options: Of the task ("low", "high"; Pendulum-v1's "x_init", "y_init"), the same for all; and "reset_mask",
                bool, shape (n_envs,): which environments to reset. Others are ignored, as gymnasium does.

        Raises:
            ValueError: Not one seed for each environment, or no such mask or bounds.
            RuntimeError: Some environments are left out of the first reset.
        """
        count = self.num_envs
        if not isinstance(seed, Sequence):
            seed = [None if seed is None else seed + index for index in range(count)]
        if len(seed) != count:
            raise ValueError(f"{len(seed)} seeds for {count} environments; give one for each, an int or None")
        mask = np.asarray((options or {}).get("reset_mask", np.ones(count, dtype=np.bool_)))
        if mask.shape != (count,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask is {mask!r}; it must be bool, of shape ({count},), with at least one True")
        if not (self.batch._started or mask.all()):
            raise RuntimeError("the first reset() must be of all environments; leave reset_mask out")
        for index in mask.nonzero()[0].tolist():
            self.batch._reset_one(index, seed[index], options)
        self.batch._started = True
        return self.batch._observations.copy(), {}

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], Doubles, Bools, Bools, dict[str, Any]]:
        """Take a step; see `BatchedEnv.step_async` for actions and errors, and gymnasium for what is returned."""
        batch = self.batch
        batch.step_async(actions)
        rewards, terminations, truncations = batch._step_episodes()
        infos: dict[str, Any] = {}
        for index in (terminations | truncations).nonzero()[0].tolist():
            infos = self._add_info(infos, {"final_obs": batch._observations[index].copy(), "final_info": {}}, index)
            batch._reset_one(index)
        return batch._observations.copy(), rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...]:
        """Each environment's picture, drawn by gymnasium; None without a render mode."""
        return tuple(self.batch.get_images())

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer; `close` calls it."""
        self.batch.close()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]  # as in `SyncVectorEnv`
        """The generators that the environments' resets draw from."""
        return tuple(self.batch._generators)
