"""One measurement: the speed of ``learn()``, where its time goes, and its memory."""

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from experiments.studies.throughput.configurations import Configuration
from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg.actor_critic import ActorCritic
from storm_rl.storm_plus_pg.recursion import equal_parts
from storm_rl.storm_plus_pg.storm_plus_pg import N_PARTS

MIB = 2.0**20
# Of a gradient; the median of so many is stable to a few per cent.
GRADIENTS = 20


@contextmanager
def use_threads(name: str) -> Iterator[None]:
    """Inside the block one torch thread and, where the system allows it, one core for "1"; "default" leaves all."""
    if name == "default":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if allowed:
        # The last: the first cores serve more of the system's interrupts.
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if allowed:
            os.sched_setaffinity(0, allowed)


class Clock:
    """Adds up the seconds inside functions that it wraps, and how often they were called."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def now(self) -> float:
        """Seconds, once the device has done all it was given."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, owner: Any, method: str) -> None:
        """Count the time of ``owner.method`` from now on."""
        inner: Callable[..., Any] = getattr(owner, method)
        # An environment steps on the processor, between transfers that have waited for the device.
        now = time.perf_counter if method == "step" else self.now
        self.seconds[method], self.calls[method] = 0.0, 0

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[method] += now() - begin
                self.calls[method] += 1

        setattr(owner, method, timed)

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds, self.calls = dict.fromkeys(self.seconds, 0.0), dict.fromkeys(self.calls, 0)


def speed(configuration: Configuration, seconds: float, steps: int | None = None) -> dict[str, Any]:
    """Env steps per second of ``learn()``, its split, the raw environments' and the gradients'.

    Args:
        configuration: What to measure.
        seconds: About how long ``learn()`` is measured.
        steps: Env steps of it, in place of ``seconds``; rounded up to whole rollouts.
    """
    model = configuration.build()
    env = model.get_env()
    assert env is not None
    clock = Clock(model.device)
    for owner, method in ((env, "step"), (model, "collect_rollouts"), (model, "train")):
        clock.wrap(owner, method)
    pace = _warm_up(model, clock, seconds if steps is None else 0.0)
    clock.reset()
    before, begin = model.num_timesteps, clock.now()
    model.learn(steps or max(1, round(pace * seconds)), reset_num_timesteps=False)
    total, done = clock.now() - begin, model.num_timesteps - before
    spent = clock.seconds
    row = {
        "steps": done,
        "steps_per_second": done / total,
        "environment_us": 1e6 * spent["step"] / done,
        "policy_us": 1e6 * (spent["collect_rollouts"] - spent["step"]) / done,
        "update_us": 1e6 * spent["train"] / done,
        "other_us": 1e6 * (total - spent["collect_rollouts"] - spent["train"]) / done,
        "update_ms_each": 1e3 * spent["train"] / clock.calls["train"],
        "transitions": model.n_steps * model.n_envs,
        "parameters": sum(values.numel() for values in model.policy.parameters()),
        "raw_steps_per_second": _raw_speed(model, done),
    }
    if isinstance(model, STORMPlusPG):
        row |= _gradients(model, clock)
    env.close()
    return row


def _warm_up(model: OnPolicyAlgorithm, clock: Clock, seconds: float) -> float:
    """Learn until allocations are made and windows of recent rollouts are full; the pace in env steps per second."""
    steps = _rollouts_to_fill(model) * model.n_steps * model.n_envs
    while True:
        before, begin = model.num_timesteps, clock.now()
        model.learn(steps, reset_num_timesteps=before == 0)
        taken = clock.now() - begin
        if taken >= seconds / 5:
            return (model.num_timesteps - before) / taken
        steps *= 2


def _rollouts_to_fill(model: OnPolicyAlgorithm) -> int:
    """Rollouts until every window of recent ones is full, so that updates cost what they cost from then on."""
    kept = model.window.size if isinstance(model, STORMPlusPG) else 1
    return max(kept, int(getattr(model, "fisher_rollouts", 1)))


def _raw_speed(model: OnPolicyAlgorithm, steps: int) -> float:
    """Env steps per second of the same environments and wrappers under random actions, drawn beforehand."""
    env = model.get_env()
    assert env is not None
    count = max(1, steps // env.num_envs)
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(min(count, 64))]
    begin = time.perf_counter()
    for index in range(count):
        env.step(actions[index % len(actions)])
    return count * env.num_envs / (time.perf_counter() - begin)


def _gradients(model: STORMPlusPG, clock: Clock) -> dict[str, float]:
    """Milliseconds of the gradient of weighted log-probabilities from the raw observations on, forward passes included.

    At one parameter vector, at both that the recursion needs, and at one as any policy is differentiated: by autograd,
    in one pass.
    """
    policy, previous = model.policy, model.recursion.previous_parameters
    assert model.reuse_rollouts is not None
    window = model.window.newest_rollouts(model.reuse_rollouts)
    observations = window.observations()
    policy.set_training_mode(False)
    networks = model.networks()
    batch = window.transitions(observations, networks, model.gamma, model.gae_lambda)
    parts = equal_parts(len(batch.advantages), N_PARTS)
    assert previous is not None

    def objective(distribution: Distribution, part: slice) -> torch.Tensor:
        return batch.advantages[part] * distribution.log_prob(batch.actions[part])

    def one() -> None:
        networks.actor(observations).part_gradients(objective, parts)

    def two() -> None:
        actor = networks.actor(observations)
        actor.part_gradients(objective, parts)
        actor.part_gradients(objective, parts, previous)

    def by_autograd() -> None:
        ActorCritic(policy).actor(observations).part_gradients(objective, [slice(0, len(batch.advantages))])

    taken: dict[str, list[float]] = {}
    for _ in range(GRADIENTS):
        for name, take in (("gradient", one), ("two_point_gradient", two), ("autograd_gradient", by_autograd)):
            begin = clock.now()
            take()
            taken.setdefault(name, []).append(clock.now() - begin)
    medians = {f"{name}_ms": 1e3 * float(np.median(seconds)) for name, seconds in taken.items()}
    ratios = {
        f"gradient_ratio{suffix}": float(np.median(np.divide(taken["two_point_gradient"], taken[name])))
        for suffix, name in (("", "gradient"), ("_autograd", "autograd_gradient"))
    }
    return {**medians, **ratios}


def memory(configuration: Configuration) -> dict[str, float]:
    """Peak memory of a fresh process that trains for a few rollouts, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory_in_this_process, (configuration,))


def _memory_in_this_process(configuration: Configuration) -> dict[str, float]:
    if configuration.threads != "default":
        torch.set_num_threads(int(configuration.threads))
    # What the libraries take, once loaded and warm, is not the configuration's.
    small = replace(configuration, n_envs=1, n_steps=64, width=64).build()
    small.learn(64)
    del small
    start = peak_mib()
    model = configuration.build()
    model.learn(_rollouts_to_fill(model) * model.n_steps * model.n_envs)
    found = {"peak_mib": peak_mib(), "peak_above_start_mib": peak_mib() - start}
    if configuration.device == "cuda":
        found["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found


def peak_mib() -> float:
    """Peak resident memory of this process.

    On Linux ``ru_maxrss`` also holds what the parent had when it started this process, hence the kernel's own count.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return (
            float(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
        )
    units = MIB if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def machine(configuration: Configuration) -> str:
    """What a row was measured on, in words; on the CPU with the kernels of numpy's matrix products."""
    if configuration.device == "cuda":
        return torch.cuda.get_device_name()
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    kernels = [f"{library['internal_api']} for {library.get('architecture', 'any')}" for library in libraries]
    used = "one used" if configuration.threads == "1" else "default threads"
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", used, *dict.fromkeys(kernels)])
