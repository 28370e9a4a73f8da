"""gymnasium's vector environments, and EnvPool's, as Stable-Baselines3's `VecEnv`.

>>> import gymnasium as gym
>>> from storm_rl.vector_env import VectorEnvAdapter
>>> env = VectorEnvAdapter(gym.make_vec("CartPole-v1", num_envs=8))
>>> env.reset().shape
(8, 4)
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

# Wrappers with a state for each environment, which a reset of some of them would set wrong.
_STATEFUL = (NormalizeObservation, NormalizeReward, RecordEpisodeStatistics)


class VectorEnvAdapter(VecEnv):
    """A gymnasium `VectorEnv` behind Stable-Baselines3's interface.

    What `step` returns is what SB3's `DummyVecEnv` does of the same environments: where an episode ends, the
    observation is the next one's first, ``infos[i]["terminal_observation"]`` the last, and
    ``infos[i]["TimeLimit.truncated"]`` says whether it was cut off without being terminated. How it gets there depends
    on ``env.metadata["autoreset_mode"]``:

    - ``SAME_STEP``: as the environment returns it; the fastest.
    - ``DISABLED``: the environments whose episode ended are reset at once, with gymnasium's ``reset_mask``.
    - ``NEXT_STEP``, gymnasium's default, where an environment spends a step on its reset: likewise, so that this step
      never happens. It needs an environment that can reset some alone: `SyncVectorEnv`, `AsyncVectorEnv`,
      `CartPoleVectorEnv` (not inside a vector wrapper), and EnvPool's. All others are refused, as they would reset all.

    `get_attr`, `set_attr` and `env_method` reach single environments where there are any. Where all are one object (as
    in `CartPoleVectorEnv` and EnvPool) it is asked, and its answer is everyone's. EnvPool takes its seed when it is
    made; it warns of `seed`, and ignores it.

    Args:
        env: Of gymnasium 1.1 or newer, ``gymnasium.make_vec(...)``, or EnvPool, ``envpool.make_gymnasium(...)``, in its
            synchronous mode. The adapter closes it.

    Raises:
        TypeError: ``env`` is no `VectorEnv`.
        ValueError: It does not name its autoreset mode; or its mode is not same-step, and some environments cannot be
            reset alone, or would be behind a wrapper that keeps statistics (SB3's `VecMonitor` and `VecNormalize`, put
            around this, do the same).
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(
                f"env is a {type(env).__name__}, not a gymnasium.vector.VectorEnv, which gymnasium.make_vec makes; "
                "single environments go to SB3's make_vec_env"
            )
        self.env = env
        self.is_envpool = any(kind.__module__.startswith("envpool.") for kind in type(env.unwrapped).__mro__)
        self.same_step = self._check_autoreset() == "SameStep"
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def _check_autoreset(self) -> str:
        """The name of the autoreset mode, if SB3's contract can be kept with it."""
        env, base = self.env, self.env.unwrapped
        mode: str | None = getattr(env.metadata.get("autoreset_mode"), "value", None)
        if mode is None or mode not in ("SameStep", "NextStep", "Disabled"):
            raise ValueError(
                f"{env}: metadata['autoreset_mode'] is {env.metadata.get('autoreset_mode')!r}; it must be one of "
                "gymnasium's AutoresetMode, which is there since gymnasium 1.1"
            )
        if mode == "SameStep":
            return mode
        remedy = "pass make_vec vectorization_mode='sync' and vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP}"
        if self.is_envpool:
            if getattr(base, "is_async", False):
                raise ValueError(f"{env} steps some environments at a time; leave out batch_size")
        elif isinstance(base, CartPoleVectorEnv):
            if env is not base:
                raise ValueError(f"{env}: a CartPoleVectorEnv is adapted without vector wrappers around it")
        elif isinstance(base, AsyncVectorEnv):
            if mode == "NextStep" and not base.shared_memory:
                # gymnasium's worker then keeps in mind that a reset is due, and makes a second one.
                raise ValueError(f"{env}: next-step autoreset without shared memory would reset twice; {remedy}")
        elif mode == "NextStep" and not isinstance(base, SyncVectorEnv):
            raise ValueError(f"{env} resets an environment in the step after its episode, and none alone; {remedy}")
        while isinstance(env, VectorWrapper):
            if isinstance(env, _STATEFUL):
                raise ValueError(
                    f"{env} counts wrongly where some environments are reset alone; use SB3's VecMonitor or "
                    f"VecNormalize, or {remedy}"
                )
            env = env.env
        return mode

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment, with what `seed` and `set_options` left.

        Raises:
            ValueError: The options are not the same for all environments.
        """
        seed, options = self._seeds[0], self._options[0]
        if any(other is not options and other != options for other in self._options):
            raise ValueError(f"options are {self._options}; a VectorEnv takes the same for all its environments")
        # Environment i's seed is seed + i, for gymnasium as for SB3.
        observations: VecEnvObs
        observations, info = self.env.reset(seed=None if seed is None else int(seed), options=options or None)
        self.reset_infos = _split(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        observations = _map(np.array, observations)
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions, as many as environments, for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; rewards are float32, as SB3's are."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        # SB3 keeps what it is given, and some environments write into it again.
        observations, infos = _map(np.array, observations), _split(info, self.num_envs)
        dones = np.logical_or(terminated, truncated)
        if dones.any():
            (self._take_final if self.same_step else self._reset_done)(observations, infos, dones)
        for index, cut in enumerate(np.logical_and(truncated, np.logical_not(terminated)).tolist()):
            infos[index]["TimeLimit.truncated"] = cut
        return observations, np.array(rewards, dtype=np.float32), dones, infos

    def _take_final(self, _: Any, infos: list[dict[str, Any]], dones: NDArray[np.bool_]) -> None:
        """Part what a same-step autoreset has put together: the end of an episode, and the start of the next."""
        for index in dones.nonzero()[0].tolist():
            start = infos[index]
            if "final_obs" not in start:
                raise ValueError(f"{self.env} resets in the same step, but its infos hold no 'final_obs'")
            last, infos[index] = start.pop("final_obs"), start.pop("final_info", {})
            infos[index]["terminal_observation"] = last
            if "episode" in start:  # The old one's: gymnasium's vector RecordEpisodeStatistics puts it there.
                infos[index]["episode"] = start.pop("episode")
            self.reset_infos[index] = start

    def _reset_done(self, observations: Any, infos: list[dict[str, Any]], dones: NDArray[np.bool_]) -> None:
        """Reset where an episode ended, and put the first observations in place of the last."""
        indices = dones.nonzero()[0].tolist()
        for index in indices:
            infos[index]["terminal_observation"] = _row(observations, index)
        if isinstance(self.env, CartPoleVectorEnv):
            first, starts = _reset_cart_poles(self.env, dones), _split({}, len(indices))
        else:
            first, info = self.env.reset(options={"reset_mask": dones.copy()})
            # EnvPool's has a row for each that was reset, gymnasium's for each there is.
            starts = _split(info, len(indices) if self.is_envpool else self.num_envs)
            if not self.is_envpool:
                first, starts = _map(lambda rows: rows[dones], first), [starts[index] for index in indices]
        _map(lambda rows, new: rows.__setitem__(dones, new), observations, first)
        for index, start in zip(indices, starts, strict=True):
            self.reset_infos[index] = start

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Each environment's picture; None where the render mode is not "rgb_array"."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        base: Any = self.env.unwrapped
        # EnvPool draws the first environment unless told which.
        frames: Any = base.render(np.arange(self.num_envs)) if self.is_envpool else self.env.render()
        return list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Each environment's attribute; AttributeError without one."""
        base: Any = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv):
            return [base.envs[index].get_wrapper_attr(attr_name) for index in chosen]
        if isinstance(base, AsyncVectorEnv):
            self._check_workers_have(attr_name)
            values = base.get_attr(attr_name)
            return [values[index] for index in chosen]
        return [getattr(base, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment to the same value, where it is or else in the innermost.

        Raises:
            ValueError: ``indices`` leave some out, and they are no objects of this process.
        """
        base: Any = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            for index in self._get_indices(indices):
                base.envs[index].set_wrapper_attr(attr_name, value)
            return
        self._check_all(indices)
        if isinstance(base, AsyncVectorEnv):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(base, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """What the environments' method returns.

        Raises:
            AttributeError: There is no such method.
            ValueError: ``indices`` leave some out, and they are no objects of this process.
        """
        base: Any = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            found = [base.envs[index].get_wrapper_attr(method_name) for index in self._get_indices(indices)]
            return [method(*method_args, **method_kwargs) for method in found]
        self._check_all(indices)
        if isinstance(base, AsyncVectorEnv):
            self._check_workers_have(method_name)
            return list(base.call(method_name, *method_args, **method_kwargs))
        return [getattr(base, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment is inside such a wrapper; in another process by the wrapper's name."""
        base: Any = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv):
            return [is_wrapped(base.envs[index], wrapper_class) for index in chosen]
        if isinstance(base, AsyncVectorEnv):
            shown = base.call("__str__")
            return [f"<{wrapper_class.__name__}<" in shown[index] for index in chosen]
        return [False] * len(chosen)

    def _check_workers_have(self, name: str) -> None:
        """A worker that fails to find an attribute would be shut down."""
        base: Any = self.env.unwrapped
        if not all(base.call("has_wrapper_attr", name)):
            raise AttributeError(f"the environments of {self.env} have no attribute {name!r}")

    def _check_all(self, indices: VecEnvIndices) -> None:
        chosen = list(self._get_indices(indices))
        if set(chosen) != set(range(self.num_envs)):
            raise ValueError(f"indices are {chosen}; {self.env} reaches its {self.num_envs} environments together only")


def _map(function: Callable[..., Any], observations: Any, *others: Any) -> Any:
    """``function`` of the arrays, in the structure of a batch of observations."""
    if isinstance(observations, dict):
        return {key: _map(function, value, *(other[key] for other in others)) for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_map(function, *values) for values in zip(observations, *others, strict=True))
    return function(observations, *others)


def _row(observations: Any, index: int) -> Any:
    """A copy of one environment's observation."""
    return _map(lambda rows: rows[index].copy(), observations)


def _split(info: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Gymnasium's dict of arrays as a dict for each environment, of what ``_key`` says is its own; without one, all."""
    infos: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, values in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        each = _split(values, count) if isinstance(values, dict) else values
        for index in range(count) if f"_{key}" not in info else np.flatnonzero(info[f"_{key}"]).tolist():
            infos[index][key] = each[index]
    return infos


def _reset_cart_poles(env: CartPoleVectorEnv, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What gymnasium's own step does to those whose episode ended before it, without that step for the others."""
    assert env.state is not None
    env.state[:, mask] = env.np_random.uniform(env.low, env.high, (4, mask.sum()))
    env.steps[mask] = 0
    env.prev_done[mask] = False
    return env.state.T[mask].astype(np.float32)
