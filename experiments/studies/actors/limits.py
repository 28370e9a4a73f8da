"""What the learner can take, measured, and what follows for many actors, simulated."""

import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from experiments.rows import Row
from experiments.studies.actors.environment import cartpole, slow_cartpole
from storm_rl.distributed import DistributedSTORMPlusPG, RayVecEnv
from storm_rl.distributed.actor import RolloutActor

# Of an actor; 128 transitions a rollout, a quarter of what one process with eight environments learns from at a time.
N_STEPS, WIDTH = 64, 2
# Actors of the rounds that are timed, and of the simulation.
MEASURED_ACTORS = (1, 4, 16, 64, 256)
SIMULATED_ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500, 1000)
ROUNDS = 5
SIMULATED_ROUNDS = 60
# How many times as slow the slowest actor is, in one of the simulations.
SPREAD = 4.0
ENVIRONMENTS = {"CartPole": cartpole, "CartPole, 5 ms a step": slow_cartpole}


class Recorded(RayVecEnv):
    """Actors whose rollouts are in Ray's store already, many times the same: the learner never waits."""

    def __init__(self, n_actors: int, actor: RolloutActor) -> None:
        self.n_actors, self.envs_per_actor, self.restarts = n_actors, WIDTH, 0
        self.stretches, self.actor = list(range(n_actors)), actor
        self.waiting: list[int] = []
        self.num_envs, (self.observation_space, self.action_space) = n_actors * WIDTH, actor.spaces()
        self.reference: Any = None
        self.reset_infos, self.render_mode, self._jobs = [{}] * self.num_envs, None, {}
        self.metadata: dict[str, Any] = {"render_modes": []}

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Nothing to seed."""
        return [None] * self.num_envs

    def reset(self) -> Any:
        """Those that the recorded rollout begins with."""
        return np.tile(self.actor.reset()[0], (self.n_actors, 1))

    @property
    def busy(self) -> set[int]:
        """All but at the start."""
        return set(self.waiting)

    def submit(self, index: int, method: str, *arguments: Any) -> None:
        """Answered at once."""
        if self.reference is None:
            acting, parameters = (ray.get(part) for part in arguments[:2])
            self.reference = ray.put(self.actor.collect(acting, parameters, None, 0))
        self.waiting.append(index)

    def next_result(self) -> tuple[int, Any]:
        """The recorded rollout, as an actor's from the store."""
        return self.waiting.pop(0), ray.get(self.reference)


def learner_times(n_actors: int) -> list[Row]:
    """Processor seconds of a round: taking its rollouts in, and learning from them."""
    env = Recorded(n_actors, RolloutActor([cartpole] * WIDTH, 0, 0))
    arguments: dict[str, Any] = {"n_steps": N_STEPS, "max_rollout_kl": None, "seed": 0, "device": "cpu"}
    state, times = torch.get_rng_state(), Times()
    model = DistributedSTORMPlusPG("MlpPolicy", env, mode="asynchronous", **arguments)
    torch.set_rng_state(state)
    for name in ("collect_rollouts", "train"):
        setattr(model, name, times.around(name, getattr(model, name)))
    model.learn((ROUNDS + 1) * N_STEPS * model.n_envs)
    # Without the first, in which the rollout is made.
    pairs = zip(times.seconds["collect_rollouts"][1:], times.seconds["train"][1:], strict=True)
    size = N_STEPS * model.n_envs
    return [
        {"actors": n_actors, "repeat": repeat, "transitions": size, "taking": taking, "learning": learning}
        for repeat, (taking, learning) in enumerate(pairs)
    ]


class Times:
    """Seconds of the calls of some functions, of this process alone: what else the machine does is not in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            result = function(*arguments, **named)
            self.seconds.setdefault(name, []).append(time.process_time() - began)
            return result

        return timed


def actor_times(environment: str, n_rollouts: int) -> list[Row]:
    """Seconds of rollouts of one actor, as its learner sees them: with the way there and back."""
    env = RayVecEnv([ENVIRONMENTS[environment]] * WIDTH, 1)
    model = DistributedSTORMPlusPG("MlpPolicy", env, n_steps=N_STEPS, critic_steps=1, seed=0, device="cpu")
    model.learn(N_STEPS * WIDTH)
    seconds = []
    for _ in range(n_rollouts):
        began = time.perf_counter()
        model._begin_rollout(env, 0, None)
        env.next_result()
        seconds.append(time.perf_counter() - began)
    env.close()
    return [{"environment": environment, "repeat": number, "seconds": taken} for number, taken in enumerate(seconds)]


class Learner(NamedTuple):
    """Seconds of a round: ``base + slope * n_actors`` for taking it in, and for learning from it."""

    taking: tuple[float, float]
    learning: tuple[float, float]

    @classmethod
    def fitted(cls, actors: Sequence[float], taking: Sequence[float], learning: Sequence[float]) -> "Learner":
        """Least squares of relative errors, so that short rounds count as much as long ones."""

        def line(seconds: Sequence[float]) -> tuple[float, float]:
            scaled = np.stack([np.ones(len(actors)), np.asarray(actors, dtype=float)], axis=1)
            scaled = scaled / np.asarray(seconds)[:, None]
            base, slope = np.linalg.lstsq(scaled, np.ones(len(actors)), rcond=None)[0]
            return max(0.0, float(base)), float(slope)

        return cls(line(taking), line(learning))


def simulate(
    n_actors: int, learner: Learner, rollout_seconds: Sequence[float], spread: float = 1.0, seed: int = 0
) -> Row:
    """Asynchronous actors and their learner as a queue: rates and ages, without the first half of the rounds.

    An actor begins its next rollout when the learner takes its last one in, and the learner takes none in while it
    learns. Times of rollouts are drawn from the measured ones. The mean age is near 1 whatever these are, by Little's
    law: as many rollouts are under way as an update learns from. `oldest` is the 99th percentile. With a ``spread``
    actors are up to so many times as slow, by a factor of their own, uniform in its logarithm.
    """
    generator = np.random.default_rng(seed)
    # What a single arrival costs, and what is paid once a round.
    per_arrival = learner.taking[1]
    per_round = learner.taking[0] + learner.learning[0] + learner.learning[1] * n_actors

    factors = spread ** generator.random(n_actors)

    def drawn(index: int) -> float:
        return float(generator.choice(rollout_seconds) * factors[index])

    # When each actor's rollout is there, and the update that it was begun after.
    ready = [(drawn(index), index, 0) for index in range(n_actors)]
    heapq.heapify(ready)
    now, busy, counted_from = 0.0, 0.0, 0.0
    ages: list[int] = []
    for update in range(SIMULATED_ROUNDS):
        if update == SIMULATED_ROUNDS // 2:
            busy, ages, counted_from = 0.0, [], now
        for _ in range(n_actors):
            when, index, begun = heapq.heappop(ready)
            now = max(now, when) + per_arrival
            busy += per_arrival
            ages.append(update - begun)
            heapq.heappush(ready, (now + drawn(index), index, update))
        now += per_round
        busy += per_round
    seconds = now - counted_from
    steps = (SIMULATED_ROUNDS - SIMULATED_ROUNDS // 2) * n_actors * N_STEPS * WIDTH
    ages_found = {"age": float(np.mean(ages)), "oldest": float(np.quantile(ages, 0.99))}
    return {"actors": n_actors, "rate": steps / seconds, **ages_found, "busy": busy / seconds}
