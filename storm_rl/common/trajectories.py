"""Batches of complete episodes, and the rule by which parallel environments fill them without bias."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Observations = Tensor | dict[str, Tensor]


class TrajectoryBatch(NamedTuple):
    """Complete episodes. Steps that exist are stored flat, episode after episode; ``mask`` says where they belong."""

    observations: Observations
    """Shape ``(n_transitions, *shape)``, or a dict of such."""
    actions: Tensor
    """Shape ``(n_transitions, *shape)``, as the policy gave them (not clipped)."""
    rewards: Tensor
    """Shape ``(n_episodes, n_steps)``, float64, 0 in the padding."""
    mask: Tensor
    """Shape ``(n_episodes, n_steps)``, boolean."""


class EpisodeQuota:
    """Which environment plays which of the first ``n_episodes`` episodes to *start*.

    To take the first episodes that *end* would favour short ones: with n environments and a quota of n episodes, an
    environment that plays two short ones keeps another's long one out. Counting starts is free of that: an episode
    is in the batch or not before its first action, so the batch is ``n_episodes`` independent draws of the policy.
    Environments that have no episode left to start idle until the last one ends; their steps cost time, are counted
    as environment steps and enter nothing.

    Args:
        n_envs: Number of parallel environments.
        n_episodes: Size of the batch.

    Attributes:
        playing: For each environment, the number of its episode, or -1 where it idles.
        idle_steps: Environment steps that belonged to no episode of the batch.
    """

    def __init__(self, n_envs: int, n_episodes: int) -> None:
        numbers = np.arange(n_envs)
        self.playing: npt.NDArray[np.int64] = np.where(numbers < n_episodes, numbers, -1)
        self.idle_steps = 0
        self._n_episodes = n_episodes
        self._n_started = min(n_envs, n_episodes)
        self._begun_at = np.zeros(n_envs, dtype=np.int64)
        self._n_steps = 0
        self._n_ended = 0
        self.spans: list[tuple[int, int, int]] = [(-1, 0, 0)] * n_episodes
        """For each episode its environment, its first vector step and the one after its last."""

    @property
    def filled(self) -> bool:
        """Whether every episode of the batch has ended."""
        return self._n_ended == self._n_episodes

    def record(self, dones: npt.NDArray[np.bool_]) -> None:
        """Take note of one vector step and of the episodes that it ended."""
        self._n_steps += 1
        self.idle_steps += int((self.playing < 0).sum())
        for env in np.flatnonzero(dones & (self.playing >= 0)):
            self.spans[self.playing[env]] = (int(env), int(self._begun_at[env]), self._n_steps)
            self._n_ended += 1
            self._begun_at[env] = self._n_steps
            self.playing[env] = self._n_started if self._n_started < self._n_episodes else -1
            self._n_started += int(self.playing[env] >= 0)

    @property
    def longest(self) -> int:
        """Steps so far of the longest episode that still runs."""
        running = self.playing >= 0
        return int((self._n_steps - self._begun_at)[running].max(initial=0))


def assemble(
    spans: list[tuple[int, int, int]],
    observations: list[npt.NDArray[np.generic]] | list[dict[str, npt.NDArray[np.generic]]],
    actions: list[npt.NDArray[np.generic]],
    rewards: list[npt.NDArray[np.float64]],
    device: torch.device,
) -> TrajectoryBatch:
    """Cut the vector steps into episodes.

    Args:
        spans: For each episode its environment, first vector step and the one after its last.
        observations: One array ``(n_envs, *shape)``, or a dict of such, for each vector step.
        actions: One array ``(n_envs, *shape)`` for each vector step.
        rewards: One array ``(n_envs,)`` for each vector step.
        device: Where the tensors go.
    """

    def flat(steps: list[npt.NDArray[np.generic]]) -> Tensor:
        stacked = np.stack(steps)
        return torch.as_tensor(np.concatenate([stacked[a:b, env] for env, a, b in spans]), device=device)

    lengths = torch.tensor([end - begin for _, begin, end in spans], device=device)
    mask = torch.arange(int(lengths.max()), device=device)[None, :] < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.float64, device=device)
    padded[mask] = flat([np.asarray(step, dtype=np.float64) for step in rewards])
    if isinstance(observations[0], dict):
        kept: Observations = {key: flat([step[key] for step in observations]) for key in observations[0]}
    else:
        kept = flat(observations)
    return TrajectoryBatch(kept, flat(actions), padded, mask)
