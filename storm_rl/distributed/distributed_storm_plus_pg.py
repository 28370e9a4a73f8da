"""STORM+ policy gradient whose rollouts are collected by actors in other processes, or on other machines."""

import uuid
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from storm_rl.common.checks import check_range
from storm_rl.common.importance_weights import effective_sample_size, per_step_weights
from storm_rl.distributed.actor import Acting, Array, Observations, Recording, Start, chosen, joined
from storm_rl.distributed.ray_vec_env import RayVecEnv, stored
from storm_rl.distributed.recursion import DelayedRecursion
from storm_rl.distributed.window import StretchWindow
from storm_rl.storm_plus_pg import STORMPlusPG
from storm_rl.storm_plus_pg.numpy_actor_critic import Networks
from storm_rl.storm_plus_pg.recursion import PolicyRecursion

MODES = ("synchronous", "asynchronous")
# What the actors' copies of the algorithm take from the learner's.
_ACTING_ARGUMENTS = (
    *("n_steps", "use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs", "policy_kwargs"),
)


class Arrival(NamedTuple):
    """A rollout that has come from an actor.

    Attributes:
        actor: Whose it is.
        recording: The rollout.
        age: Updates since the parameters that it was collected with.
        kl: Its policy's KL to the present one, in nats; estimated from its actions.
        weights: The present policy's importance weights, ``(T * n,)``.
    """

    actor: int
    recording: Recording
    age: int
    kl: float
    weights: Tensor


class DistributedSTORMPlusPG(STORMPlusPG):
    r""":class:`~storm_rl.STORMPlusPG` with actors of a :class:`~storm_rl.distributed.RayVecEnv`.

    Each actor has some of the environments and a copy of the policy with its observation statistics, and collects whole
    rollouts of ``n_steps`` steps. An update learns from as many rollouts as there are actors, a *round*.

    - ``"synchronous"``: all actors begin a round together, with the parameters of the last update, and the update waits
      for all. The run is bit for bit that of :class:`~storm_rl.STORMPlusPG` in one process with the same environments
      in the same order (on the CPU, where callbacks leave policy and random numbers alone during a rollout). For that
      each actor evaluates the policy on as many rows as there are environments in all.
    - ``"asynchronous"``: an actor begins its next rollout as soon as one has arrived, with the parameters of that
      moment. A round is what arrives first, also several rollouts of one actor; actors and learner work at the same
      time. Rollouts are then some updates old, as what STORM+PG learns from is in any case, and four things follow:
      importance weights are those of the policy that acted; a rollout whose policy has a KL of more than
      ``max_rollout_kl`` nats to the present one is dropped; the step is multiplied by the effective sample size of the
      round's weights, as a share of its transitions; and momentum has a floor by the age,
      :class:`~storm_rl.distributed.recursion.DelayedRecursion`.

    ``learn`` and callbacks are as of any algorithm: a round is played to them, step by step with all its environments,
    when it is complete. ``num_timesteps`` counts what has arrived, the dropped too.

    Args:
        policy: As of :class:`~storm_rl.STORMPlusPG`.
        env: A :class:`~storm_rl.distributed.RayVecEnv`; wrappers belong into its ``env_fns``.
        mode: See above.
        max_rollout_kl: In nats; None for no bound. Of asynchronous mode.
        **kwargs: All others of :class:`~storm_rl.STORMPlusPG`. None for ``n_steps`` is by all environments together.

    Attributes:
        arrivals: Of each round the actors whose rollouts it has, in the order of arrival.
        dropped: Number of rollouts that were too far from the present policy.

    Raises:
        TypeError: ``env`` is no ``RayVecEnv``, and as the base class.
        ValueError: An argument out of range.
        RuntimeError: In ``learn``: an actor was lost and all restarts are used up.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
        >>> env = make_vec_env("CartPole-v1", 8, vec_env_cls=RayVecEnv, vec_env_kwargs={"n_actors": 4})
        >>> model = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", seed=0).learn(2_000)
        >>> model.num_timesteps
        2048
        >>> env.close()
    """

    window: StretchWindow
    recursion: DelayedRecursion
    _replay: "Replay | None" = None
    _acting: Any = None
    # Share of the newest round's transitions that its weights leave.
    _effective_share = 1.0

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *args: Any,
        mode: Literal["synchronous", "asynchronous"] = "synchronous",
        max_rollout_kl: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        self.mode = mode
        self.max_rollout_kl = max_rollout_kl
        self.arrivals: list[list[int]] = []
        self.dropped = 0
        super().__init__(policy, env, *args, **kwargs)

    def _check_arguments(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {self.mode!r}.")
        if self.max_rollout_kl is not None:
            check_range("max_rollout_kl (None for no bound)", self.max_rollout_kl, 0.0, low_included=False)
        if self.env is not None:
            _checked(self.env)
        super()._check_arguments()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.window = StretchWindow(self.window.size)
        self._acting = None

    def _make_recursion(self) -> PolicyRecursion:
        return DelayedRecursion(self.step_memory)

    def networks(self) -> Networks:
        """As the base class's; while a round is played, what the actors' policies did."""
        return super().networks() if self._replay is None else self._replay  # type: ignore[return-value]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As the base class's, of a round that actors collect after ``callback.on_rollout_start()``."""
        actors, run_state = _checked(env), self._run_state()
        run_state = {name: run_state[name] for name in ("exploration_noise", "noise_age") if name in run_state}
        start, round_of = Start(torch.get_rng_state(), run_state), getattr(self, f"_{self.mode}_round")

        def gather() -> list[Recording]:
            arrived = round_of(actors, start)
            recordings = [arrival.recording for arrival in arrived]
            self._last_obs = joined([recording.first_observations for recording in recordings])
            self._last_episode_starts = np.concatenate([recording.first_starts for recording in recordings])
            self._record_round(actors, arrived)
            return recordings

        self._replay = Replay(actors, gather, restores_torch=self.mode == "synchronous")
        try:
            finished = super().collect_rollouts(self._replay, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._replay = None
        if not finished:
            # The actors are at the end of a round that is not learned from.
            for index in range(actors.n_actors):
                actors.break_stretch(index)
        return finished

    def _synchronous_round(self, actors: RayVecEnv, start: Start) -> list[Arrival]:
        """A rollout of each actor, all begun where the learner's random numbers stand."""
        for index in range(actors.n_actors):
            self._begin_rollout(actors, index, start)
        found: dict[int, Recording] = {}
        while len(found) < actors.n_actors:
            index, (_, recording) = actors.next_result()
            found[index] = recording
        self.window.next_stretches = tuple(actors.stretches)
        ones = torch.ones(())
        return [Arrival(index, found[index], 0, 0.0, ones) for index in range(actors.n_actors)]

    def _asynchronous_round(self, actors: RayVecEnv, start: Start) -> list[Arrival]:
        """As many rollouts as there are actors, of those that come first and are near enough."""
        accepted: list[Arrival] = []
        stretches: list[int] = []
        for index in set(range(actors.n_actors)) - actors.busy:
            self._begin_rollout(actors, index, None)
        while len(accepted) < actors.n_actors:
            index, (n_updates, recording) = actors.next_result()
            stretch = actors.stretches[index]
            self._begin_rollout(actors, index, None)
            arrival = self._compared(index, recording, self._n_updates - n_updates)
            if self.max_rollout_kl is None or arrival.kl <= self.max_rollout_kl:
                accepted.append(arrival)
                stretches.append(stretch)
            else:
                self.dropped += 1
                self.num_timesteps += recording.dones.size
                for infos, dones in zip(recording.infos, recording.dones, strict=True):
                    self._update_info_buffer(infos, dones)
                actors.break_stretch(index)
        self.window.next_stretches = tuple(stretches)
        return accepted

    def _begin_rollout(self, actors: RayVecEnv, index: int, start: Start | None) -> None:
        """Send an actor the present parameters, for its next rollout."""
        if self._acting is None:
            arguments = {name: getattr(self, name) for name in _ACTING_ARGUMENTS}
            n_envs = self.n_envs if self.mode == "synchronous" else None
            self._acting = stored(Acting(uuid.uuid4().hex, type(self.policy), arguments, n_envs))
            self._sent: tuple[int, Any] = -1, None
        if self._sent[0] != self._n_updates:
            state = {name: part.cpu().numpy() for name, part in self.policy.state_dict().items()}
            self._sent = self._n_updates, stored(state)
        actors.submit(index, "collect", self._acting, self._sent[1], start, self._n_updates)

    def _compared(self, index: int, recording: Recording, age: int) -> Arrival:
        """The rollout with what the present policy says of it."""
        before = joined([_with_time(recording.first_observations), chosen(recording.observations, slice(-1))])
        observations = obs_as_tensor(_flat(before), self.device)
        actions = torch.as_tensor(_flat(recording.actions), device=self.device)
        log_prob = super().networks().actor(observations).distribution().log_prob(actions).cpu()
        behaviour = torch.as_tensor(recording.log_prob.reshape(-1).copy())
        weights = per_step_weights(log_prob, behaviour, self.max_weight)
        return Arrival(index, recording, age, estimated_kl(behaviour, log_prob), weights)

    def _record_round(self, actors: RayVecEnv, arrived: list[Arrival]) -> None:
        self.arrivals.append([arrival.actor for arrival in arrived])
        ages, kls = (
            [float(value) for value in values] for values in zip(*(part[2:4] for part in arrived), strict=True)
        )
        weights = torch.cat([arrival.weights.reshape(-1) for arrival in arrived])
        self._effective_share = float(effective_sample_size(weights)) / weights.numel()
        self.recursion.delay = sum(ages) / len(ages)
        self.logger.record("actors/restarts", actors.restarts)
        if self.mode == "asynchronous":
            for name, values in (("age", ages), ("kl", kls)):
                self.logger.record(f"actors/{name}_mean", sum(values) / len(values))
                self.logger.record(f"actors/{name}_max", max(values))
            self.logger.record("actors/effective_sample_size", self._effective_share)
            self.logger.record("actors/momentum_floor", self.recursion.floor)
            self.logger.record("actors/dropped", self.dropped)

    def _bounded(self, step_size: float, direction_square: float) -> float:
        return super()._bounded(step_size, direction_square) * self._effective_share

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_replay", "_acting", "_sent", "_effective_share"]


class Replay(VecEnvWrapper):
    """Plays the rollouts of actors: environments to step, and networks that act, as they did."""

    def __init__(self, venv: RayVecEnv, gather: Callable[[], list[Recording]], restores_torch: bool) -> None:
        super().__init__(venv)
        self.gather = gather
        self.restores_torch = restores_torch
        self.step_number = -1

    def act(self, observations: Any) -> tuple[Tensor, Tensor]:
        """The actions and log-probabilities of the next step; before the first one the round is gathered."""
        if self.step_number < 0:
            self.recordings = self.gather()
        self.step_number += 1
        step, recordings = self.step_number, self.recordings
        if self.restores_torch and step == len(recordings[0].rewards) - 1:
            # Acting has drawn numbers; what comes next draws the following ones.
            torch.set_rng_state(recordings[0].torch_state)
        actions = np.concatenate([recording.actions[step] for recording in recordings])
        log_prob = np.concatenate([recording.log_prob[step] for recording in recordings])
        return torch.from_numpy(actions), torch.from_numpy(log_prob)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """As the actors'; they are not asked for what SB3 wants of any wrapper, for they may be collecting."""
        if attr_name == "render_mode":
            return [self.venv.render_mode] * self.num_envs
        return self.venv.get_attr(attr_name, indices)

    def reset(self) -> Observations:
        """Reset the actors' environments."""
        return self.venv.reset()

    def step_async(self, actions: Array) -> None:
        """Nothing is left to be done: the actors have."""

    def step_wait(self) -> tuple[Observations, Array, Array, list[dict[str, Any]]]:
        """What followed the actions of the last `act`."""
        step, recordings = self.step_number, self.recordings
        return (
            joined([chosen(recording.observations, step) for recording in recordings]),
            np.concatenate([recording.rewards[step] for recording in recordings]),
            np.concatenate([recording.dones[step] for recording in recordings]),
            [info for recording in recordings for info in recording.infos[step]],
        )


def estimated_kl(behaviour_log_prob: Tensor, target_log_prob: Tensor) -> float:
    r"""KL of the policy that acted to another, from its actions: the mean of :math:`r - 1 - \log r`, in nats.

    :math:`r` is the ratio of the other's probability to its own. Unbiased, as the mean of :math:`-\log r` is, with far
    less variance between near policies, and never negative (Schulman, "Approximating KL divergence", 2020).
    """
    log_ratio = (target_log_prob - behaviour_log_prob).double()
    return float((torch.expm1(log_ratio) - log_ratio).mean())


def _checked(env: Any) -> RayVecEnv:
    if not isinstance(env, RayVecEnv):
        raise TypeError(
            f"DistributedSTORMPlusPG needs a storm_rl.distributed.RayVecEnv, got a {type(env).__name__}; wrappers go "
            "into its env_fns."
        )
    return env


def _with_time(batch: Observations) -> Observations:
    return {key: part[None] for key, part in batch.items()} if isinstance(batch, dict) else batch[None]


def _flat(batch: Any) -> Any:
    """Steps and environments in one dimension; a copy, since Ray's arrays are not to be written to."""
    if isinstance(batch, dict):
        return {key: _flat(part) for key, part in batch.items()}
    return batch.reshape(-1, *batch.shape[2:]).copy()
