"""Batches of complete episodes, and the rule by which parallel environments fill them without bias."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storm_rl.common.checks import own_copy
from storm_rl.common.policies import ObservationBatch, map_observations


class TrajectoryBatch(NamedTuple):
    """Complete episodes. Steps that exist are stored flat, episode after episode; ``mask`` says where they belong."""

    observations: ObservationBatch
    """Shape ``(n_transitions, *shape)``, or a dict of such."""
    actions: Tensor
    """Shape ``(n_transitions, *shape)``, as the policy gave them (not clipped)."""
    rewards: Tensor
    """Shape ``(n_episodes, n_steps)``, float64, 0 in the padding."""
    mask: Tensor
    """Shape ``(n_episodes, n_steps)``, boolean."""


def pad(values: Tensor, mask: Tensor) -> Tensor:
    """Place ``values``, ``(*leading, n_true)``, at the true entries of ``mask``, in order; zeros elsewhere.

    Gives the shape ``(*leading, n_episodes, n_steps)``; gradients flow through. ``ValueError`` for too few or many.
    """
    if values.shape[-1] != int(mask.sum()):
        raise ValueError(f"{values.shape[-1]} values for a mask with {int(mask.sum())} true entries")
    padded = values.new_zeros(*values.shape[:-1], *mask.shape)
    padded[..., mask] = values
    return padded


class EpisodeQuota:
    """Which environment plays which of the first ``n_episodes`` episodes to *start*.

    To take the first episodes that *end* would favour short ones: an environment that plays two short ones would keep
    another's long one out. An episode that counts by its start is in the batch or not before its first action, so the
    batch is ``n_episodes`` independent draws of the policy. Environments that have no episode left to start idle until
    the last one ends; their steps are counted as environment steps and enter nothing.

    Attributes:
        playing: For each environment, the number of its episode, or -1 where it idles.
        idle_steps: Environment steps that belonged to no episode of the batch.
    """

    def __init__(self, n_envs: int, n_episodes: int) -> None:
        numbers = np.arange(n_envs)
        self.playing: npt.NDArray[np.int64] = np.where(numbers < n_episodes, numbers, -1)
        self.idle_steps = 0
        self._to_start = iter(range(n_envs, n_episodes))
        self._begun_at = np.zeros(n_envs, dtype=np.int64)
        self._n_steps = 0
        self.spans: list[tuple[int, int, int]] = [(-1, 0, 0)] * n_episodes
        """For each episode its environment, its first vector step and the one after its last."""

    @property
    def filled(self) -> bool:
        """Whether every episode of the batch has ended."""
        return not (self.playing >= 0).any()

    def record(self, dones: npt.NDArray[np.bool_]) -> None:
        """Take note of one vector step and of the episodes that it ended."""
        self._n_steps += 1
        self.idle_steps += int((self.playing < 0).sum())
        for env in np.flatnonzero(dones & (self.playing >= 0)):
            self.spans[self.playing[env]] = (int(env), int(self._begun_at[env]), self._n_steps)
            self._begun_at[env] = self._n_steps
            self.playing[env] = next(self._to_start, -1)

    @property
    def longest(self) -> int:
        """Steps so far of the longest episode that still runs."""
        running = self.playing >= 0
        return int((self._n_steps - self._begun_at)[running].max(initial=0))


class EpisodeRecorder:
    """The vector steps of a batch, from which its episodes are cut when all have ended."""

    def __init__(self, n_envs: int, n_episodes: int) -> None:
        self.quota = EpisodeQuota(n_envs, n_episodes)
        self._observations: list[Any] = []
        self._actions: list[npt.NDArray[Any]] = []
        self._rewards: list[npt.NDArray[np.float64]] = []

    def record(
        self, observations: Any, actions: npt.NDArray[Any], rewards: npt.NDArray[Any], dones: npt.NDArray[np.bool_]
    ) -> None:
        """Keep one vector step: arrays ``(n_envs, *shape)``, observations also as a dict of such."""
        self._observations.append(own_copy(observations))
        self._actions.append(np.array(actions))
        self._rewards.append(np.array(rewards, dtype=np.float64))
        self.quota.record(dones)

    @property
    def idle_fraction(self) -> float:
        """Share of the environment steps that belonged to no episode of the batch."""
        return self.quota.idle_steps / max(1, sum(len(rewards) for rewards in self._rewards))

    def batch(self, device: torch.device) -> TrajectoryBatch:
        """The episodes in the order in which they started, as tensors on ``device``."""
        spans = self.quota.spans

        def flat(*steps: npt.NDArray[Any]) -> Tensor:
            stacked = np.stack(steps)
            return torch.as_tensor(np.concatenate([stacked[a:b, env] for env, a, b in spans]), device=device)

        lengths = torch.tensor([end - begin for _, begin, end in spans], device=device)
        mask = torch.arange(int(lengths.max()), device=device)[None, :] < lengths[:, None]
        observations = map_observations(flat, *self._observations)
        return TrajectoryBatch(observations, flat(*self._actions), pad(flat(*self._rewards), mask), mask)
