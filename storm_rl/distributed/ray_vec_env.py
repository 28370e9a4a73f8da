"""Environments in Ray's actors: started, asked, watched, and started anew where one is lost."""

import copy
import itertools
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from storm_rl.common.checks import check_integer, check_range
from storm_rl.distributed.actor import Array, Observations, RolloutActor, joined

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise ImportError("storm_rl.distributed needs Ray: pip install 'storm-rl[ray]'") from error


# Seconds for anything but a reset or a rollout. To start, an actor imports torch, and may wait for a machine.
TIMEOUT = 600.0
STARTS = 5


class Job(NamedTuple):
    """What an actor was asked to do, so that its successor can be asked again."""

    actor: int
    method: str
    arguments: tuple[Any, ...]
    deadline: float


class RayVecEnv(VecEnv):
    """Environments in ``n_actors`` Ray actors, an equal part in each and in this order.

    Made like SB3's ``SubprocVecEnv``, also by its ``make_vec_env``, and a ``VecEnv`` for every algorithm. Stepping it
    costs a message to each actor and back for each step; :class:`~storm_rl.distributed.DistributedSTORMPlusPG` has
    whole rollouts collected in the actors in its place.

    Ray starts on this machine by itself unless there is an address, and stays until the program ends. An actor takes
    one CPU of a cluster.

    An actor that dies, raises an error or does not answer in time is reported with a warning that names its
    environments and holds its traceback. It is started anew, with fresh environments that have seeds of their own, and
    asked again for what it was asked for.

    Args:
        env_fns: What makes the environments, as of SB3's ``SubprocVecEnv``.
        n_actors: Number of actors; it divides that of the environments.
        address: Of a Ray cluster: ``"auto"`` for that which this machine belongs to. None: this machine alone.
        max_restarts: Restarts in all before a fault is an error.
        timeout: Seconds that an actor may take for a reset or a rollout; for anything else it has ten minutes.
        vec_env_cls: What an actor has its environments in. ``DummyVecEnv`` steps them one after the other. SB3's
            ``SubprocVecEnv``, a process each, steps them at the same time, which pays where a step takes milliseconds
            and there are fewer actors than environments; their exact state cannot be kept then. Any class that is
            made of ``env_fns``. Its processes end with the actor, if they are started by making environments.
        vec_env_kwargs: Its further arguments.

    Raises:
        TypeError: ``vec_env_cls`` is no such class, or ``vec_env_kwargs`` no dict.
        ValueError: ``n_actors`` does not divide the number of environments, or another argument out of range.
        RuntimeError: An actor does not start, or one is lost after ``max_restarts``.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from storm_rl.distributed import RayVecEnv
        >>> env = make_vec_env("CartPole-v1", 8, vec_env_cls=RayVecEnv, vec_env_kwargs={"n_actors": 4})
        >>> env.reset().shape
        (8, 4)
        >>> env.close()
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_actors: int,
        address: str | None = None,
        max_restarts: int = 10,
        timeout: float = 600.0,
        vec_env_cls: type[VecEnv] = DummyVecEnv,
        vec_env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.n_actors = check_integer("n_actors", n_actors, 1)
        self.max_restarts = check_integer("max_restarts", max_restarts, 0)
        check_range("timeout", timeout, 0.0, low_included=False)
        self.timeout = float(timeout)
        self._in_actors = _checked_class(vec_env_cls), _checked_kwargs(vec_env_kwargs)
        if len(env_fns) == 0 or len(env_fns) % self.n_actors:
            raise ValueError(
                f"n_actors must divide the number of environments, got n_actors={n_actors} and {len(env_fns)} env_fns."
            )
        self.envs_per_actor = len(env_fns) // self.n_actors
        self.restarts = 0
        self._env_fns = list(env_fns)
        self._ids = itertools.count()
        self._closed = False
        self._seed_sequence = np.random.SeedSequence()
        self._jobs: dict[Any, Job] = {}
        self._step_jobs: list[Any] = []
        start_ray(address, self.n_actors)
        self._actor_class = ray.remote(RolloutActor).options(num_cpus=1)
        # One after the other would take as many times as long.
        self._actors = [self._create(index) for index in range(self.n_actors)]
        self.stretches = [next(self._ids) for _ in self._actors]
        spaces = [self._started(index) for index in range(self.n_actors)]
        super().__init__(len(env_fns), *spaces[0])

    # ACTORS AND THEIR FAULTS

    def _create(self, index: int) -> Any:
        first = index * self.envs_per_actor
        seed = int(self._seed_sequence.spawn(1)[0].generate_state(1)[0])
        env_fns = self._env_fns[first : first + self.envs_per_actor]
        return self._actor_class.remote(env_fns, first, seed, *self._in_actors)

    def _started(self, index: int) -> Any:
        """The actor's spaces, as soon as it has some."""
        try:
            # Ray's arrays are not to be written to, and torch warns of them.
            return copy.deepcopy(ray.get(self._actors[index].spaces.remote(), timeout=TIMEOUT))
        except RayError as error:
            raise RuntimeError(f"{self.actor_name(index)} did not start: {error}") from error

    def actor_name(self, index: int) -> str:
        """The actor and its environments, for messages."""
        first = index * self.envs_per_actor
        return f"actor {index} (environments {first} to {first + self.envs_per_actor - 1})"

    def submit(self, index: int, method: str, *arguments: Any) -> None:
        """Ask an actor for something, after what it was asked for before; `next_result` gives it."""
        job = Job(index, method, arguments, time.monotonic() + self.timeout)
        self._jobs[getattr(self._actors[index], method).remote(*arguments)] = job

    @property
    def busy(self) -> set[int]:
        """The actors whose results have not been taken."""
        return {job.actor for job in self._jobs.values()}

    def next_result(self) -> tuple[int, Any]:
        """The actor whose result has come first, and the result. Where several are there: who was asked first.

        Raises:
            RuntimeError: An actor was lost and all restarts are used up; its own error is in the text.
        """
        while True:
            left = min(job.deadline for job in self._jobs.values()) - time.monotonic()
            ready, _ = ray.wait(list(self._jobs), num_returns=1, timeout=max(0.0, left))
            if ready:
                job = self._jobs.pop(ready[0])
                try:
                    return job.actor, ray.get(ready[0])
                except RayError as error:
                    self._replace(job, str(error), error)
            else:
                now = time.monotonic()
                for reference in [reference for reference, job in self._jobs.items() if job.deadline <= now]:
                    job = self._jobs.pop(reference)
                    self._replace(job, f"it has not answered {job.method}() for {self.timeout:g} seconds")

    def _replace(self, job: Job, reason: str, error: Exception | None = None) -> None:
        """Put another actor in the place of one that was lost, and ask it for the same."""
        index = job.actor
        while True:
            what = f"{self.actor_name(index)} is lost: {reason}"
            if self.restarts >= self.max_restarts:
                raise RuntimeError(f"{what}\nNo restart is left of max_restarts={self.max_restarts}.") from error
            self.restarts += 1
            ray.kill(self._actors[index])
            self._actors[index] = self._create(index)
            self.break_stretch(index)
            warnings.warn(
                f"{what}\nIt is started anew with fresh environments, restart {self.restarts} of {self.max_restarts}.",
                RuntimeWarning,
                stacklevel=2,
            )
            try:
                self._started(index)
                return self.submit(index, job.method, *job.arguments)
            except RuntimeError as again:
                reason, error = str(again), again

    def break_stretch(self, index: int) -> None:
        """The actor's next rollout does not go on where the last one that was learned from has ended."""
        self.stretches[index] = next(self._ids)

    # AS ANY VECENV

    def reset(self) -> Observations:
        """Reset all environments; rollouts under way are lost. Gives observations ``(n_envs, ...)``."""
        self._jobs.clear()
        if (seed := self._seeds[0]) is not None:
            # For what is not seeded by number: fresh environments, and the actors' own actions.
            self._seed_sequence = np.random.SeedSequence(seed)
        for index in range(self.n_actors):
            first = index * self.envs_per_actor
            self.submit(index, "reset", self._seeds[first], self._options[first : first + self.envs_per_actor])
            self.break_stretch(index)
        found = dict(self.next_result() for _ in range(self.n_actors))
        self._reset_seeds()
        self._reset_options()
        results = [found[index] for index in range(self.n_actors)]
        self.reset_infos = [info for _, infos in results for info in infos]
        return joined([observations for observations, _ in results])

    def step_async(self, actions: Array) -> None:
        """Ask all actors for a step."""
        parts = np.split(actions, self.n_actors)
        self._step_jobs = [actor.step.remote(part) for actor, part in zip(self._actors, parts, strict=True)]

    def step_wait(self) -> tuple[Observations, Array, Array, list[dict[str, Any]]]:
        """The actors' steps. Here a lost actor is an error, for its environments' episodes are gone."""
        observations, rewards, dones, infos = zip(*self._results(self._step_jobs), strict=True)
        return joined(observations), np.concatenate(rewards), np.concatenate(dones), [*itertools.chain(*infos)]

    def get_state(self) -> dict[str, Any]:
        """Where all environments stand, for `storm_rl.common.environment_state.environment_state`.

        Raises:
            ValueError: An actor is in the middle of a rollout, as all are in asynchronous mode; or something in the
                environments, or in what they are in, is not plain data.
        """
        if self._jobs:
            raise ValueError(
                "actors are collecting: the state of their environments cannot be kept; only of "
                'mode="synchronous", between calls of learn().'
            )
        try:
            # In turn: what one cannot, none can, and Ray complains of errors that nobody fetches.
            states = [self._results([actor.state.remote()])[0] for actor in self._actors]
        except RuntimeError as error:
            reason = getattr(error.__cause__, "cause", None)
            if isinstance(reason, ValueError):
                raise ValueError(str(reason)) from error
            raise
        return {"actors": states, "stretches": list(self.stretches)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put the environments where those stood whose `get_state` this is.

        Raises:
            ValueError: Another number of actors.
        """
        if len(state["actors"]) != self.n_actors:
            raise ValueError(f"the state is of {len(state['actors'])} actors; these are {self.n_actors}")
        pairs = zip(self._actors, state["actors"], strict=True)
        self._results([actor.restore.remote(part) for actor, part in pairs])
        self.stretches = list(state["stretches"])
        self._ids = itertools.count(max(self.stretches) + 1)

    def close(self) -> None:
        """End the actors' processes."""
        if not self._closed and ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
        self._closed = True
        self._jobs.clear()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of environments."""
        return self._of_each("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of environments."""
        self._of_each("set_attr", indices, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of environments."""
        return self._of_each("env_method", indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Whether environments are wrapped in it."""
        return self._of_each("env_is_wrapped", indices, wrapper_class)

    def _of_each(self, method: str, indices: Any, *arguments: Any, **named: Any) -> list[Any]:
        """The method's results of some environments, asked in the actors that have them."""
        results: list[Any] = []
        for place in self._get_indices(indices):
            actor, own = divmod(int(place), self.envs_per_actor)
            results.append(self._actors[actor].call.remote(method, *arguments, indices=[own], **named))
        return [found[0] if found else None for found in self._results(results)]

    def _results(self, references: list[Any]) -> list[Any]:
        try:
            found: list[Any] = ray.get(references, timeout=TIMEOUT)
            return found
        except RayError as error:
            raise RuntimeError(f"one of the actors failed: {error}") from error


def _checked_class(vec_env_cls: Any) -> type[VecEnv]:
    right = isinstance(vec_env_cls, type) and issubclass(vec_env_cls, VecEnv)
    if not right or issubclass(vec_env_cls, (VecEnvWrapper, RayVecEnv)):
        raise TypeError(
            "vec_env_cls must be a class of VecEnv that is made of functions for environments, as DummyVecEnv or "
            f"SubprocVecEnv, got {vec_env_cls!r}."
        )
    return vec_env_cls  # type: ignore[no-any-return]


def _checked_kwargs(vec_env_kwargs: Any) -> dict[str, Any]:
    if not isinstance(vec_env_kwargs, dict | None):
        raise TypeError(f"vec_env_kwargs must be a dict of arguments or None, got {vec_env_kwargs!r}.")
    return dict(vec_env_kwargs or {})


def start_ray(address: str | None, n_cpus: int) -> None:
    """Connect to the Ray at the address; None: start it on this machine, for ``n_cpus`` actors. Once in a process."""
    here: dict[str, Any] = {"num_cpus": max(n_cpus, os.cpu_count() or 1), "include_dashboard": False}
    # Ray's workers are nice to all else on the machine, by 15. The learner waits for these.
    here["_system_config"] = {"worker_niceness": 0}
    options = {"address": address} if address is not None else {"address": "local", **here}
    for attempt in range(1, STARTS + 1):
        if ray.is_initialized():
            return
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as error:
            # Ray gives itself half a minute, which is too little on a busy machine.
            if attempt == STARTS or "timed out during startup" not in str(error):
                raise


def stored(value: Any) -> Any:
    """The value in Ray's store, where many calls find it; sent in its place."""
    return ray.put(value)
