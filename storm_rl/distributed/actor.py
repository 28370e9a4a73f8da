"""What runs in an actor's process: some of the environments, a copy of the policy, and whole rollouts of the two."""

import functools
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from storm_rl.common.checks import own_copy
from storm_rl.common.environment_state import environment_state, restore_environment
from storm_rl.storm_plus_pg import STORMPlusPG

Array = npt.NDArray[Any]
Observations = Any
"""An array ``(n, ...)``, or a dict of such."""


class Acting(NamedTuple):
    """How an actor acts; the same for all rollouts of a learner.

    Attributes:
        learner: Whose this is: another learner's makes the actor build its policy anew.
        policy_class: Of the policy.
        arguments: Of :class:`~storm_rl.STORMPlusPG`, those that acting depends on.
        n_envs: Environments of all actors if an actor acts as one process with all of them would, otherwise None.
    """

    learner: str
    policy_class: type[ActorCriticPolicy]
    arguments: dict[str, Any]
    n_envs: int | None


class Start(NamedTuple):
    """Where the learner's random numbers and gSDE's noise stand as a rollout begins."""

    torch_state: torch.Tensor
    run_state: dict[str, Any]


class Recording(NamedTuple):
    """One rollout of ``n`` environments, ``T`` steps, as the learner needs it; time first.

    Attributes:
        first_observations: ``(n, ...)``.
        first_starts: Whether these begin an episode, ``(n,)``.
        actions: As the policy gave them, ``(T, n, ...)``.
        log_prob: Of the policy that acted, ``(T, n)``.
        observations: Those after each step, ``(T, n, ...)``; at an episode's end the first ones of the next.
        rewards: ``(T, n)``.
        dones: ``(T, n)``.
        infos: ``T`` lists of ``n``; terminal observations and time limits are there, as SB3 has it.
        torch_state: Of torch's generator after the rollout.
    """

    first_observations: Observations
    first_starts: Array
    actions: Array
    log_prob: Array
    observations: Observations
    rewards: Array
    dones: Array
    infos: list[list[dict[str, Any]]]
    torch_state: torch.Tensor


class RolloutActor:
    """Some of the environments in a process of their own. Ray makes an actor of it; it knows nothing of Ray.

    Args:
        env_fns: What makes the environments.
        first: Which of all environments is the first of these.
        seed: For environments that nobody seeds, and for actions where they are the actor's own.
        vec_env_cls: What the environments are in.
        vec_env_kwargs: Its further arguments.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        first: int,
        seed: int,
        vec_env_cls: type[VecEnv] = DummyVecEnv,
        vec_env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        torch.set_num_threads(1)
        made = [functools.partial(_made_with_actor, env_fn, os.getpid()) for env_fn in env_fns]
        # As SB3's make_vec_env: a VecEnv of environments takes their functions first.
        vec_env: VecEnv = vec_env_cls(made, **(vec_env_kwargs or {}))  # type: ignore[arg-type]
        self.env = STORMPlusPG._wrap_env(vec_env, monitor_wrapper=False)
        self.vec_env_cls = vec_env_cls
        self.rows = slice(first, first + self.env.num_envs)
        self.seed = seed
        self.env.seed(seed)
        self._learner: str | None = None
        self._last: tuple[Observations, Array] | None = None

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of observations and of actions."""
        return self.env.observation_space, self.env.action_space

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the vectorised environment."""
        return getattr(self.env, method)(*arguments, **named)

    def reset(self, seed: int | None = None, options: list[dict[str, Any]] | None = None) -> tuple[Observations, Any]:
        """Reset the environments, the first with this seed, the others with the next; gives observations and infos."""
        if seed is not None:
            self.env.seed(seed)
        if options is not None:
            self.env.set_options(options)
        observations = own_copy(self.env.reset())
        self._last = observations, np.ones(self.env.num_envs, dtype=bool)
        return observations, self.env.reset_infos

    def step(self, actions: Array) -> tuple[Observations, Array, Array, Any]:
        """One step with actions from elsewhere, as of any ``VecEnv``."""
        observations, rewards, dones, infos = self.env.step(actions)
        self._last = own_copy(observations), np.array(dones)
        return observations, rewards, dones, infos

    def state(self) -> Any:
        """Where the environments stand, as tensors and plain Python.

        Raises:
            ValueError: Something in them is not plain data, or what they are in does not say how they stand.
        """
        try:
            state = environment_state(self.env)
        except ValueError as error:
            if issubclass(self.vec_env_cls, DummyVecEnv):
                raise
            raise ValueError(
                f"the environments' state cannot be kept: they are in a {self.vec_env_cls.__name__}. Take "
                "vec_env_cls=DummyVecEnv, or do without the exact state."
            ) from error
        return state, None if self._last is None else [self._last[0], self._last[1]]

    def restore(self, state: Any) -> None:
        """Put the environments where those stood whose state this is."""
        environments, last = state
        restore_environment(self.env, environments)
        self._last = None if last is None else (last[0], last[1])

    def collect(
        self, acting: Acting, parameters: dict[str, Array], start: Start | None, n_updates: int
    ) -> tuple[int, Recording]:
        """Collect a rollout by the policy with these parameters and statistics; gives ``n_updates`` with it.

        Args:
            acting: How to act.
            parameters: The policy's ``state_dict``, as arrays.
            start: The learner's random numbers, to act as it would; None: the actor's own go on.
            n_updates: Of the learner, by which the parameters have their age.

        Raises:
            ValueError: A NaN or infinite observation, reward or action.
        """
        if acting.learner != self._learner:
            self._begin(acting)
        if self._last is None:
            self.reset()
            assert self._last is not None
        first_observations, first_starts = self._last
        # Ray's arrays are not to be written to.
        self.model.policy.load_state_dict({name: torch.from_numpy(np.array(part)) for name, part in parameters.items()})
        recorder = Recorder(self.rows if isinstance(self.model.env, Seats) else slice(None))
        self.model.continue_from(*self._placed(first_observations, first_starts), start)
        self.model.collect(recorder)
        self._last = recorder.steps[-1][2], np.array(recorder.steps[-1][4])
        actions, log_prob, observations, rewards, dones, infos = zip(*recorder.steps, strict=True)
        return n_updates, Recording(
            first_observations=first_observations,
            first_starts=first_starts,
            actions=np.stack(actions),
            log_prob=np.stack(log_prob),
            observations=stacked(observations),
            rewards=np.stack(rewards),
            dones=np.stack(dones),
            infos=list(infos),
            torch_state=torch.get_rng_state(),
        )

    def _begin(self, acting: Acting) -> None:
        env = self.env if acting.n_envs is None else Seats(self.env, acting.n_envs, self.rows)
        self.model = ActingModel(acting.policy_class, env, **acting.arguments)
        self._learner = acting.learner
        set_random_seed(self.seed)

    def _placed(self, observations: Observations, starts: Array) -> tuple[Observations, Array]:
        env = self.model.env
        return env.placed(observations, starts) if isinstance(env, Seats) else (observations, starts)


def _made_with_actor(env_fn: Callable[[], gym.Env[Any, Any]], actor: int) -> gym.Env[Any, Any]:
    """The environment; a process of its own ends with the actor's, on Linux whatever it is doing."""
    if os.getpid() != actor and sys.platform == "linux":
        try:
            ended = os.pidfd_open(actor)
        except ProcessLookupError:
            os._exit(1)

        def watch() -> None:
            select.select([ended], [], [])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    return env_fn()


class ActingModel(STORMPlusPG):
    """The learner's algorithm as far as it acts."""

    def __init__(self, policy: type[ActorCriticPolicy], env: VecEnv, **arguments: Any) -> None:
        # What only learning needs is as small as it can be.
        least: dict[str, Any] = {"reuse_rollouts": 1, "critic_steps": 1, "use_action_values": False, "device": "cpu"}
        arguments["policy_kwargs"] = {**arguments["policy_kwargs"], "optimizer_class": NoOptimizer}
        super().__init__(policy, env, **least, **arguments)
        self.set_logger(Logger(None, []))
        self.ep_info_buffer, self.ep_success_buffer = deque(maxlen=1), deque(maxlen=1)

    def continue_from(self, observations: Observations, starts: Array, start: Start | None) -> None:
        """The next rollout begins with these observations, and with the learner's random numbers if given."""
        self._last_obs, self._last_episode_starts = observations, starts
        if start is not None:
            torch.set_rng_state(start.torch_state)
            self._load_run_state(start.run_state, resumes=False)

    def collect(self, callback: BaseCallback) -> None:
        """One rollout; nothing of it is kept but what the callback keeps."""
        assert self.env is not None
        assert self.n_steps is not None
        callback.init_callback(self)
        with self.networks().threads():
            self.collect_rollouts(self.env, callback, self.rollout_buffer, self.n_steps)
        self.window.clear()


class NoOptimizer:
    """In the place of the critic's: torch's import a compiler, which takes as long as the rest of an actor's start."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class Recorder(BaseCallback):
    """Keeps what each vector step has seen, of some rows."""

    def __init__(self, rows: slice) -> None:
        super().__init__()
        self.rows = rows
        self.steps: list[tuple[Array, Array, Observations, Array, Array, list[dict[str, Any]]]] = []

    def _on_step(self) -> bool:
        seen, rows = self.locals, self.rows
        self.steps.append(
            (
                np.array(seen["actions"][rows]),
                seen["log_probs"][rows].cpu().numpy().copy(),
                own_copy(chosen(seen["new_obs"], rows)),
                np.array(seen["rewards"][rows]),
                np.array(seen["dones"][rows]),
                list(seen["infos"][rows]),
            )
        )
        return True


class Seats(VecEnvWrapper):
    """Environments at their places among ``n_envs``, the others of which stand still.

    A policy draws its random numbers, and rounds, by the batch. On a batch of all environments it does for these rows
    what it would do in one process with all of them.
    """

    def __init__(self, venv: VecEnv, n_envs: int, rows: slice) -> None:
        super().__init__(venv)
        self.num_envs = n_envs
        self.rows = rows

    def placed(self, observations: Observations, *others: Array) -> tuple[Any, ...]:
        """Arrays of all environments, zero where these are not."""
        return tuple(self._placed(batch) for batch in (observations, *others))

    def _placed(self, batch: Any) -> Any:
        if isinstance(batch, dict):
            return {key: self._placed(part) for key, part in batch.items()}
        wide = np.zeros((self.num_envs, *batch.shape[1:]), dtype=batch.dtype)
        wide[self.rows] = batch
        return wide

    def reset(self) -> Any:
        """As the environments', at their places."""
        return self._placed(self.venv.reset())

    def step_async(self, actions: Array) -> None:
        """Step these environments by their rows of the actions."""
        self.venv.step_async(actions[self.rows])

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """As the environments', at their places."""
        observations, rewards, dones, own = self.venv.step_wait()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        infos[self.rows] = own
        return *self.placed(observations, rewards, dones), infos


def chosen(observations: Observations, rows: Any) -> Observations:
    """Rows of a batch of observations."""
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


def stacked(batches: Sequence[Observations]) -> Observations:
    """Batches of observations along a new first dimension."""
    if isinstance(batches[0], dict):
        return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    return np.stack(batches)


def joined(batches: Sequence[Observations]) -> Observations:
    """Batches of observations one after the other."""
    if isinstance(batches[0], dict):
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return np.concatenate(batches)
