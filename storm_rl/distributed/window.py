"""The window of recent rollouts where these come from actors, each in its own time."""

from typing import Any

import torch
from torch import Tensor

from storm_rl.common.policies import ObservationBatch, concatenate, select
from storm_rl.storm_plus_pg.numpy_actor_critic import Networks
from storm_rl.storm_plus_pg.rollouts import Rollout, RolloutWindow, Transitions

Stretches = tuple[int, ...]


class StretchWindow(RolloutWindow):
    """Rollouts whose columns belong to stretches: what one actor's environments did without a gap.

    A rollout of this window is a round: what was learned from at a time, in blocks of columns, an equal number of
    environments each. A block is one actor's. Its stretch says which blocks of other rounds it continues: those of the
    same number, in order of rounds and of blocks. Advantages are summed along stretches, each of which ends with last
    observations of its own.

    Attributes:
        next_stretches: Of the blocks of the round that is appended next.
        stretches: Of the blocks of each round.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.next_stretches: Stretches = ()
        self.stretches: list[Stretches] = []

    def append(self, rollout: Rollout) -> None:
        """Add a round, of ``next_stretches``."""
        super().append(rollout)
        self.stretches = [*self.stretches, self.next_stretches][-self.size :]

    def newest_rollouts(self, size: int) -> "StretchWindow":
        """A window of the last ``size`` of these rounds, which are shared."""
        window = StretchWindow(size)
        window.rollouts, window.stretches = self.rollouts[-size:], self.stretches[-size:]
        return window

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self.stretches = []

    def observations(self) -> ObservationBatch:
        """Raw observations of all transitions, one environment of a stretch after the other, in order of time."""
        if self._is_whole():
            return super().observations()
        return concatenate([window.observations() for window in self._windows()])

    @torch.no_grad()
    def transitions(
        self, observations: ObservationBatch, networks: Networks, gamma: float, gae_lambda: float
    ) -> Transitions:
        """All transitions in the order of :meth:`observations`; as the base class's."""
        if self._is_whole():
            return super().transitions(observations, networks, gamma, gae_lambda)
        start, found = 0, []
        for window in self._windows():
            end = start + sum(rollout.dones.numel() for rollout in window.rollouts)
            part = select(observations, slice(start, end))
            found.append(window.transitions(part, networks, gamma, gae_lambda))
            start = end
        tensors: list[Any] = [torch.cat(parts) for parts in zip(*(batch[1:6] for batch in found), strict=True)]
        return Transitions(observations, *tensors)

    def _is_whole(self) -> bool:
        """Whether all rounds are of the same stretches, as in one process."""
        return len(set(self.stretches)) == 1 and len(set(self.stretches[0])) == len(self.stretches[0])

    def _windows(self) -> list[RolloutWindow]:
        """A window for each stretch."""
        found: dict[int, RolloutWindow] = {}
        for rollout, stretches in zip(self.rollouts, self.stretches, strict=True):
            width = rollout.dones.shape[1] // len(stretches)
            for block, stretch in enumerate(stretches):
                window = found.setdefault(stretch, RolloutWindow(len(self.rollouts) * len(stretches)))
                window.append(columns(rollout, block * width, (block + 1) * width))
        return list(found.values())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python only."""
        return {**super().state_dict(), "stretches": [list(stretches) for stretches in self.stretches]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` gave; a smaller window keeps the newest rounds."""
        super().load_state_dict(state, device)
        self.stretches = [tuple(stretches) for stretches in state["stretches"]][-self.size :]


def columns(rollout: Rollout, start: int, end: int) -> Rollout:
    """The rollout of environments ``start`` to ``end`` alone."""
    n_steps, n_envs = rollout.dones.shape
    index = torch.arange(n_steps * n_envs, device=rollout.dones.device).reshape(n_steps, n_envs)[:, start:end]
    place = rollout.truncated_at % n_envs
    own = (place >= start) & (place < end)
    truncated: ObservationBatch | None = None
    if rollout.truncated_observations is not None and bool(own.any()):
        truncated = select(rollout.truncated_observations, own)
    return Rollout(
        observations=select(rollout.observations, index.reshape(-1)),
        actions=rollout.actions[index.reshape(-1)],
        log_prob=rollout.log_prob[:, start:end],
        rewards=rollout.rewards[:, start:end],
        dones=rollout.dones[:, start:end],
        last_observations=select(rollout.last_observations, slice(start, end)),
        truncated_at=_renumbered(rollout.truncated_at[own], n_envs, start, end),
        truncated_observations=truncated,
    )


def _renumbered(places: Tensor, n_envs: int, start: int, end: int) -> Tensor:
    return places // n_envs * (end - start) + places % n_envs - start
