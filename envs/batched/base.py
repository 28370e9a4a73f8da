"""What the batched tasks share: Stable-Baselines3's `VecEnv` contract over one array of states."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]


class BatchedEnv(VecEnv):
    """``n_envs`` copies of one gymnasium task, stepped together by numpy.

    Given the same seed it returns what ``stable_baselines3.common.env_util.make_vec_env(env_id, n_envs, seed=seed)``
    returns: the same first states, the same states after every autoreset, the same episode statistics (`Monitor`'s
    ``info["episode"]``, returns in reward units and lengths in env steps), and `terminal_observation` and
    ``TimeLimit.truncated`` where an episode ends. A sub-class gives the dynamics; each states how closely they agree.

    Autoreset is in the same step. gymnasium's `VectorEnv`, whose ``step`` and ``reset`` have the same names and other
    results, is `envs.batched.gymnasium_vector`'s.

    Args:
        n_envs: Number of environments.
        render_mode: None, or "rgb_array"; ``render("human")`` then shows the tiled picture through OpenCV.

    Attributes:
        state: float64, shape (state size, n_envs): the physical state, one environment a column.
        spec: The task's gymnasium spec.

    Raises:
        ValueError: No environments, or a render mode that is not offered.
    """

    env_id: ClassVar[str]
    state_size: ClassVar[int]
    # The dtype of the state that a reset leaves behind in gymnasium, and so of the first observation's arithmetic.
    reset_dtype: ClassVar[type[np.floating[Any]]] = np.float64

    def __init__(self, n_envs: int = 1, render_mode: str | None = None) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; a batched environment offers None and 'rgb_array'")
        self.spec = gym.spec(self.env_id)
        self.render_mode = render_mode
        self.state: Doubles = np.zeros((self.state_size, n_envs))
        self._sub_envs = [SubEnv(self, index) for index in range(n_envs)]
        # What is random when nobody seeds; `reset()` replaces those whose seed is set.
        self._generators = [np_random()[0] for _ in range(n_envs)]
        single = gym.make(self.env_id)
        super().__init__(n_envs, single.observation_space, single.action_space)
        single.close()
        assert self.spec.max_episode_steps is not None
        self._time_limit = self.spec.max_episode_steps
        self._renderer: gym.Env[Any, Any] | None = None
        self._observations = np.zeros((n_envs, *(self.observation_space.shape or ())), dtype=np.float32)
        self._actions = np.zeros((n_envs, *(self.action_space.shape or ())), dtype=self.action_space.dtype)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._returns = np.zeros(n_envs)
        self._started = False
        self._start_time = time.time()

    # THE TASK

    @abstractmethod
    def _initial_state(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Sequence[float]:
        """One environment's first state, drawn by the very calls of gymnasium's ``reset`` so that streams agree."""

    @abstractmethod
    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        """Advance ``self.state`` by one step; the rewards before rounding to float32 and which episodes terminated.

        ``actions`` are valid: int64 of shape (n_envs,), or float32 of shape (n_envs, 1), not clipped.
        """

    @abstractmethod
    def _observe(self, state: Floats) -> NDArray[np.float32]:
        """The observations, shape (k, observation size), of ``state``, shape (state size, k)."""

    # STEP AND RESET

    def reset(self) -> NDArray[np.float32]:
        """Start an episode in every environment, with the seeds and options given since the last reset.

        Returns:
            The first observations, float32, shape (n_envs, observation size).
        """
        for index in range(self.num_envs):
            self._reset_one(index, self._seeds[index], self._options[index] or None)
        self._reset_seeds()
        self._reset_options()
        self._started = True
        return self._observations.copy()

    def _reset_one(self, index: int, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if seed is not None:
            self._generators[index] = np_random(seed)[0]
        self.state[:, index] = self._initial_state(self._generators[index], options)
        self._lengths[index] = 0
        self._returns[index] = 0.0
        self._observations[index] = self._observe(self.state[:, index : index + 1].astype(self.reset_dtype))[0]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions of the next step.

        Args:
            actions: Integers of shape (n_envs,) for a `Discrete` task, numbers of shape (n_envs, 1) for a `Box` one,
                which are cast to float32, the action space's dtype. As in gymnasium, numbers out of bounds are the
                dynamics' affair.

        Raises:
            ValueError: Wrong shape or dtype, an action that does not exist, or one that is not finite.
        """
        self._actions = self._valid(np.asarray(actions))

    def _valid(self, actions: NDArray[Any]) -> NDArray[Any]:
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if actions.shape != expected:
            raise ValueError(f"actions have shape {actions.shape}; {self.env_id} expects {expected}")
        if isinstance(self.action_space, spaces.Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(f"actions have dtype {actions.dtype}; {self.env_id} expects integers")
            actions = actions.astype(np.int64, copy=False)
            # Seen as unsigned, a negative number is a huge one: one comparison for both ends of the range.
            if actions.view(np.uint64).max() >= self.action_space.n:
                raise ValueError(f"actions are {actions.tolist()}; {self.env_id}'s are 0 to {self.action_space.n - 1}")
            return actions
        if actions.dtype.kind not in "fiu":
            raise ValueError(f"actions have dtype {actions.dtype}; {self.env_id} expects floating-point numbers")
        actions = actions.astype(np.float32, copy=False)
        if not np.isfinite(actions).all():
            raise ValueError(f"actions are {actions.ravel().tolist()}; {self.env_id} expects finite numbers")
        return actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; environments whose episode ends start the next one at once.

        Returns:
            Observations (float32, shape (n_envs, observation size)), rewards (float32), dones (bool) and infos, a new
            dict for each environment and step.

        Raises:
            RuntimeError: Never reset.
        """
        rewards, terminated, truncated = self._step_episodes()
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for index in dones.nonzero()[0].tolist():
            infos[index] = {
                "TimeLimit.truncated": not terminated[index],
                "terminal_observation": self._observations[index].copy(),
                "episode": {
                    "r": round(float(self._returns[index]), 6),
                    "l": int(self._lengths[index]),
                    "t": round(time.time() - self._start_time, 6),
                },
            }
            self._reset_one(index)
        return self._observations.copy(), rewards.astype(np.float32), dones, infos

    def _step_episodes(self) -> tuple[Doubles, Bools, Bools]:
        """Take the stored actions without autoreset: rewards, which episodes terminated, which reached the time limit.

        As in gymnasium, one may have done both.
        """
        if not self._started:
            raise RuntimeError("step() before reset(): call reset() first")
        rewards, terminated = self._advance(self._actions)
        self._lengths += 1
        self._returns += rewards
        self._observations[:] = self._observe(self.state)
        return rewards, terminated, self._lengths >= self._time_limit

    def close(self) -> None:
        """Release the renderer; nothing else is held."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # EXACT RESUME

    def get_state(self) -> dict[str, Any]:
        """All that the future depends on: numpy arrays, numbers and the generators' states, none of them shared.

        The wall clock of the episode statistics is left out.
        """
        return {
            "env_id": self.env_id,
            "state": self.state.copy(),
            "observations": self._observations.copy(),
            "actions": self._actions.copy(),
            "lengths": self._lengths.copy(),
            "returns": self._returns.copy(),
            "generators": [generator.bit_generator.state for generator in self._generators],
            "seeds": list(self._seeds),
            "options": deepcopy(self._options),
            "started": self._started,
        }

    def set_state(self, state: dict[str, Any]) -> NDArray[np.float32]:
        """Continue from what ``get_state()`` returned, here or in another process.

        Returns:
            The observations at that point, which an algorithm needs for its next action.

        Raises:
            ValueError: The state is another task's, or of another number of environments.
        """
        if state["env_id"] != self.env_id:
            raise ValueError(f"the state is of {state['env_id']!r}; this is {self.env_id!r}")
        if len(state["generators"]) != self.num_envs:
            raise ValueError(f"the state is of {len(state['generators'])} environments; these are {self.num_envs}")
        self.state[:] = state["state"]
        self._observations[:] = state["observations"]
        self._actions = state["actions"].copy()
        self._lengths[:] = state["lengths"]
        self._returns[:] = state["returns"]
        for generator, generator_state in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = generator_state
        self._seeds = list(state["seeds"])
        self._options = deepcopy(state["options"])
        self._started = state["started"]
        return self._observations.copy()

    # ONE ENVIRONMENT OF THE BATCH

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each environment; see `SubEnv` for what there is."""
        return [getattr(env, attr_name) for env in self._targets(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment; see `SubEnv` for what can be set."""
        for env in self._targets(indices):
            setattr(env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment; see `SubEnv` for which there are."""
        return [getattr(env, method_name)(*method_args, **method_kwargs) for env in self._targets(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor` and `TimeLimit`, whose work is done here: nobody should wrap in them again."""
        return [wrapper_class in (Monitor, TimeLimit) for _ in self._targets(indices)]

    def _targets(self, indices: VecEnvIndices) -> list["SubEnv"]:
        return [self._sub_envs[index] for index in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Each environment's picture, drawn by gymnasium."""
        return [env.render() for env in self._sub_envs]

    def _picture(self, index: int) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = gym.make(self.env_id, render_mode="rgb_array").unwrapped
        self._prepare_renderer(self._renderer, index)
        return np.asarray(self._renderer.render(), dtype=np.uint8)

    def _prepare_renderer(self, renderer: Any, index: int) -> None:
        renderer.state = self.state[:, index].copy()


class SubEnv:
    """One environment of a batch seen alone: what `get_attr`, `set_attr` and `env_method` reach.

    Methods: ``reset``, ``render`` and ``get_wrapper_attr``; no ``step``, for the batch steps as one.
    Readable: ``state``, ``np_random``, ``unwrapped``, and the batch's own constants and spaces, such as ``gravity``,
    ``spec`` or ``render_mode``. Settable: ``state``, and names of the caller's own, kept for each environment apart.
    The batch's constants are not: all environments share them.
    """

    def __init__(self, batch: BatchedEnv, index: int) -> None:
        self._batch = batch
        self._index = index

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are not here. Private names and the batch's methods stay out of reach: `step`
        # takes all environments' actions, and a copy being unpickled has no batch yet.
        value = None if name.startswith("_") else getattr(self._batch, name, None)
        if callable(value) or (value is None and name != "render_mode"):
            raise AttributeError(f"a sub-environment has no attribute {name!r}")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "state" and not name.startswith("_") and (hasattr(type(self), name) or hasattr(self._batch, name)):
            raise AttributeError(f"{name!r} cannot be set: it is the same for all environments of a batch")
        super().__setattr__(name, value)

    @property
    def unwrapped(self) -> "SubEnv":
        """Itself."""
        return self

    @property
    def state(self) -> Doubles:
        """The physical state, a copy."""
        return self._batch.state[:, self._index].copy()

    @state.setter
    def state(self, value: Sequence[float]) -> None:
        self._batch.state[:, self._index] = value

    @property
    def np_random(self) -> np.random.Generator:
        """The generator that its resets draw from."""
        return self._batch._generators[self._index]

    def get_wrapper_attr(self, name: str) -> Any:
        """The attribute, as gymnasium's wrappers look it up."""
        return getattr(self, name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in this environment alone; its first observation and an empty info."""
        self._batch._reset_one(self._index, seed, options)
        return self._batch._observations[self._index].copy(), {}

    def render(self) -> NDArray[np.uint8] | None:
        """Its picture, drawn by gymnasium; None without a render mode."""
        return None if self._batch.render_mode is None else self._batch._picture(self._index)
