"""The last rollouts as one stretch of time, with advantages under the present policy and critic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from storm_rl.common.dense_policy import Evaluated
from storm_rl.common.observations import ObservationBatch, concatenate, select
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.gradients.importance_weights import per_step_weights
from storm_rl.gradients.traces import traced_advantages


@dataclass
class Rollout:
    """One rollout of ``n_steps`` vector steps of ``n_envs`` environments, time first.

    Attributes:
        observations: Flat, ``(n_steps * n_envs, ...)``, raw.
        actions: Flat, as the policy's distribution takes them.
        log_prob: Of the policy that acted, ``(n_steps, n_envs)``.
        rewards: As the environments gave them, ``(n_steps, n_envs)``.
        dones: Whether an episode ended with that step, ``(n_steps, n_envs)``.
        last_observations: Those after the last step, ``(n_envs, ...)``.
        truncated_at: Flat indices of the steps that ended an episode at a time limit.
        truncated_observations: The observations at which those episodes ended; None if there are none.
    """

    observations: ObservationBatch
    actions: Tensor
    log_prob: Tensor
    rewards: Tensor
    dones: Tensor
    last_observations: ObservationBatch
    truncated_at: Tensor
    truncated_observations: ObservationBatch | None


def rollout_from_buffer(
    buffer: RolloutBuffer,
    rewards: np.ndarray,
    dones: np.ndarray,
    truncations: dict[int, Any],
    last_observations: Any,
    policy: StandardisedActorCriticPolicy,
) -> Rollout:
    """The rollout in a full SB3 buffer, with what such a buffer does not hold.

    Args:
        buffer: Full and not yet flattened.
        rewards: Raw rewards, ``(n_steps, n_envs)``; the buffer's have values of truncated episodes added.
        dones: Ends of episodes, ``(n_steps, n_envs)``.
        truncations: From flat index of a step to the observation at which its episode was cut off.
        last_observations: Observations after the last step.
        policy: Turns observations into tensors.
    """

    def flat(array: Any) -> Any:
        if isinstance(array, dict):
            return {key: flat(part) for key, part in array.items()}
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=policy.device)

    def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=policy.device)

    actions = flat(buffer.actions).float()  # As SB3's buffer gives them.
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    ends = [policy.obs_to_tensor(observation)[0] for observation in truncations.values()]
    return Rollout(
        observations=flat(buffer.observations),
        actions=actions,
        log_prob=tensor(buffer.log_probs, torch.float32),
        rewards=tensor(rewards, torch.float32),
        dones=tensor(dones, torch.bool),
        last_observations=policy.obs_to_tensor(last_observations)[0],
        truncated_at=torch.tensor(list(truncations), dtype=torch.long, device=policy.device),
        truncated_observations=concatenate(ends) if ends else None,
    )


class Transitions(NamedTuple):
    """Flat transitions, one environment after the other and each in order of time; ``n`` in all."""

    observations: ObservationBatch
    actions: Tensor
    behaviour_log_prob: Tensor
    values: Tensor
    advantages: Tensor
    value_targets: Tensor
    segment_ends: Tensor
    """Boolean: the last transition of an episode, or of its environment's stretch in the window."""


class RolloutWindow:
    """The last ``size`` rollouts of the same environments, each beginning where the one before it ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rollouts: list[Rollout] = []

    @property
    def newest(self) -> Rollout:
        """The rollout that was collected last."""
        return self.rollouts[-1]

    def append(self, rollout: Rollout) -> None:
        """Add a rollout and drop the oldest beyond ``size``."""
        self.rollouts = [*self.rollouts, rollout][-self.size :]

    def clear(self) -> None:
        """Forget all: the next rollout does not begin where the last one ended."""
        self.rollouts = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python only."""
        return {"rollouts": [dict(vars(rollout)) for rollout in self.rollouts]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` gave; a smaller window keeps the newest rollouts."""

        def placed(part: Any) -> Any:
            if isinstance(part, dict):
                return {key: placed(entry) for key, entry in part.items()}
            return part.to(device) if isinstance(part, Tensor) else part

        self.rollouts = [Rollout(**placed(rollout)) for rollout in state["rollouts"]][-self.size :]

    def observations(self) -> ObservationBatch:
        """Raw observations of all transitions, one environment after the other and each in order of time."""
        return select(concatenate([rollout.observations for rollout in self.rollouts]), self._order())

    @torch.no_grad()
    def transitions(
        self, observations: ObservationBatch, distribution: Distribution, policy: Evaluated, gamma: float, lam: float
    ) -> Transitions:
        """All transitions, with advantages and value targets under the policy as it is now.

        See :func:`storm_rl.gradients.traces.traced_advantages`.

        Args:
            observations: Of :meth:`observations`.
            distribution: The policy's on them.
            policy: Gives values.
            gamma: Discount factor.
            lam: Trace parameter.
        """

        def joined(part: Callable[[Rollout], Tensor]) -> Tensor:
            return torch.cat([part(rollout) for rollout in self.rollouts])

        def by_environment(tensor: Tensor) -> Tensor:
            return tensor.to(device).T.reshape(-1)

        def by_time(tensor: Tensor) -> Tensor:
            return tensor.reshape(shape[1], shape[0]).T

        dones = joined(lambda rollout: rollout.dones)
        shape, device = dones.shape, dones.device
        actions = joined(lambda rollout: rollout.actions)[self._order()]
        behaviour_log_prob = by_environment(joined(lambda rollout: rollout.log_prob))
        values = policy.predict_values(observations).flatten()
        ratios = per_step_weights(distribution.log_prob(actions), behaviour_log_prob, 1.0)
        # The recursion over steps is many small operations: fast on the CPU whatever the device.
        advantages, targets = traced_advantages(
            joined(lambda rollout: rollout.rewards).cpu(),
            by_time(values).cpu(),
            self._next_values(policy, by_time(values), dones).cpu(),
            dones.cpu(),
            by_time(ratios).cpu(),
            gamma,
            lam,
        )
        ends = dones.clone()
        ends[-1] = True
        return Transitions(
            observations=observations,
            actions=actions,
            behaviour_log_prob=behaviour_log_prob,
            values=values,
            advantages=by_environment(advantages),
            value_targets=by_environment(targets),
            segment_ends=by_environment(ends),
        )

    def _order(self) -> Tensor:
        """From the order of collection, time first, to that of :class:`Transitions`."""
        n_envs = self.newest.dones.shape[1]
        n_steps = sum(len(rollout.dones) for rollout in self.rollouts)
        return torch.arange(n_steps * n_envs, device=self.newest.dones.device).reshape(n_steps, n_envs).T.reshape(-1)

    def _next_values(self, policy: Evaluated, values: Tensor, dones: Tensor) -> Tensor:
        last = policy.predict_values(self.newest.last_observations).reshape(1, -1)
        # 0 after a terminal step; at a time limit the episode would have gone on from its last observation.
        next_values = torch.where(dones, 0.0, torch.cat([values[1:], last])).reshape(-1)
        start = 0
        for rollout in self.rollouts:
            if rollout.truncated_observations is not None:
                ends = policy.predict_values(rollout.truncated_observations).flatten()
                next_values[start + rollout.truncated_at] = ends
            start += rollout.dones.numel()
        return next_values.reshape(dones.shape)
