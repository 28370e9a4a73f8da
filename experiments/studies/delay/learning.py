"""STORM+PG in one process that learns from the rollouts of an old policy, and what each floor of momentum makes of it.

Asynchronous mode's delays are what they happen to be. Here every rollout is of the policy of ``delay`` updates ago.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.build import N_ENVS
from envs import get_task
from envs.batched import make_vec
from experiments.evaluations import StopAtThreshold
from experiments.rows import Row
from experiments.runs import EVALUATION_EPISODES, EVALUATION_SEED
from experiments.studies.delay.plan import ARGUMENTS, BUDGETS, Setting
from experiments.studies.delay.stability import lag_floor, loop_gain
from storm_rl import STORMPlusPG
from storm_rl.common.importance_weights import effective_sample_size, per_step_weights
from storm_rl.distributed.recursion import DelayedRecursion
from storm_rl.storm_plus_pg.recursion import PolicyRecursion


class Update(NamedTuple):
    """What a floor may depend on.

    Attributes:
        delay: In updates, of what the update learns from.
        gain: The loop gain.
        rule: The floor of `DelayedRecursion`.
    """

    delay: float
    gain: float
    rule: float


# By their names in the plan.
RULES: dict[str, Callable[[Update], float]] = {
    "none": lambda _: 0.0,
    "rule": lambda update: update.rule,
    "lag": lambda update: lag_floor(update.gain, update.delay),
    "0.1": lambda _: 0.1,
    "0.5": lambda _: 0.5,
    "no memory": lambda _: 1.0,
}


class FlooredRecursion(DelayedRecursion):
    """The recursion with a floor of ``RULES``; keeps what each update measured.

    Args:
        name: Of the floor.
        step_memory: As of the base.

    Attributes:
        measured: ``a_t`` of each update, before the floor.
        updates: What the floor of each may depend on.
    """

    def __init__(self, name: str, step_memory: float | None = None) -> None:
        super().__init__(step_memory)
        self.name = name
        self.measured: list[float] = []
        self.updates: list[Update] = []

    def next_momentum(self, parameters: Tensor, gradients: Tensor, at_previous: Tensor, used: float) -> float:
        """That of the base without a floor, and not below this one's."""
        assert self.direction is not None
        self.measured.append(PolicyRecursion.next_momentum(self, parameters, gradients, at_previous, used))
        gain = loop_gain(self.direction, (gradients - at_previous).mean(dim=0))
        self.updates.append(Update(self.delay, gain, self.floor))
        return max(RULES[self.name](self.updates[-1]), self.measured[-1])


class DelayedSTORMPlusPG(STORMPlusPG):
    """STORM+PG whose rollouts are of the policy of ``delay`` updates ago; of the first one, until there are so many.

    As in asynchronous mode importance weights are those of the policy that acted, and the step is multiplied by the
    effective sample size of the newest rollout, as a share of its transitions. No rollout is dropped. With a delay of
    0 the run is bit for bit that of the base class.

    Args:
        policy: As of the base class.
        env: Likewise.
        delay: In updates.
        floor: The least ``a_t``, by its name among ``RULES``.
        **kwargs: All others of the base class.
    """

    recursion: FlooredRecursion
    _effective_share = 1.0

    def __init__(self, policy: Any, env: Any, *, delay: int, floor: str = "none", **kwargs: Any) -> None:
        if delay < 0:
            raise ValueError(f"delay must be 0 or more updates, got {delay}")
        self.delay = delay
        self.floor = floor
        # Of the last updates, oldest first: what acts is the first of them.
        self._policies: deque[dict[str, Tensor]] = deque(maxlen=delay + 1)
        super().__init__(policy, env, **kwargs)

    def _make_recursion(self) -> PolicyRecursion:
        return FlooredRecursion(self.floor, self.step_memory)

    @contextmanager
    def acting_as(self, state: dict[str, Tensor]) -> Iterator[None]:
        """In the block the policy, its observation statistics included, is the one with this state."""
        present = copy.deepcopy(self.policy.state_dict())
        self.policy.load_state_dict(state)
        try:
            yield
        finally:
            self.policy.load_state_dict(present)

    @property
    def newest(self) -> dict[str, Tensor]:
        """The state of the policy after the last update, also while an older one acts."""
        return self._policies[-1]

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As the base class's, by the old policy."""
        if not self._policies:
            self._policies.append(copy.deepcopy(self.policy.state_dict()))
        with self.acting_as(self._policies[0]):
            return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """As the base class's, with the age of the newest rollout known."""
        self.recursion.delay = float(len(self._policies) - 1)
        self._effective_share = self._newest_share()
        super().train()
        self._policies.append(copy.deepcopy(self.policy.state_dict()))

    @torch.no_grad()
    def _newest_share(self) -> float:
        if not self.recursion.delay:
            return 1.0
        rollout = self.window.newest
        distribution = self.networks().actor(rollout.observations).distribution()
        log_prob = distribution.log_prob(rollout.actions)
        weights = per_step_weights(log_prob, rollout.log_prob.reshape(-1), self.max_weight)
        return float(effective_sample_size(weights)) / weights.numel()

    def _bounded(self, step_size: float, direction_square: float) -> float:
        return super()._bounded(step_size, direction_square) * self._effective_share


class Evaluations(StopAtThreshold):
    """Evaluates the newest policy at the task's interval, and ends the run at the threshold."""

    model: DelayedSTORMPlusPG

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id, make_vec(task_id, EVALUATION_EPISODES), get_task(task_id).evaluate_every)

    def _on_rollout_start(self) -> None:
        if self.due:
            with self.model.acting_as(self.model.newest):
                self.evaluate(EVALUATION_SEED + EVALUATION_EPISODES * len(self.steps))


def learned(setting: str, task_id: str, delay: int, floor: str, seed: int) -> list[Row]:
    """Env steps to the task's threshold, and what momentum did on the way.

    Further rows are of the floors with which every ``a_t`` would have been the same: theirs is this run, bit for bit.
    """
    callback, env = Evaluations(task_id), make_vec(task_id, N_ENVS, seed=seed)
    arguments = {"seed": seed, "device": "cpu", **ARGUMENTS[Setting(setting)]}
    model = DelayedSTORMPlusPG("MlpPolicy", env, delay=delay, floor=floor, **arguments)
    model.learn(BUDGETS[task_id], callback)
    measured, rows = np.array(model.recursion.measured), list[Row]()
    used = np.maximum([RULES[floor](update) for update in model.recursion.updates], measured)
    for name, rule in RULES.items():
        floors = np.array([rule(update) for update in model.recursion.updates])
        if (np.maximum(floors, measured) != used).any():
            continue
        row: Row = {"setting": setting, "task": task_id, "delay": delay, "floor": name, "seed": seed}
        row |= {"reached": callback.hit is not None, "steps": callback.hit or BUDGETS[task_id]}
        row |= {"updates": len(measured), "binds": float((floors > measured).mean())}
        row |= {"measured": float(np.median(measured)), "used": float(np.median(used))}
        gain = float(np.median([update.gain for update in model.recursion.updates]))
        row |= {"median_floor": float(np.median(floors)), "gain": gain}
        rows.append({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    return rows
