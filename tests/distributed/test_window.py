"""Blocks of rollouts are put together by stretch: each as one process's window would have it."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("ray")

from storm_rl.distributed.recursion import DelayedRecursion
from storm_rl.distributed.window import StretchWindow, columns
from storm_rl.storm_plus_pg.recursion import PolicyRecursion
from storm_rl.storm_plus_pg.rollouts import Rollout, RolloutWindow

N_STEPS, WIDTH = 5, 2


class Values:
    """A critic whose values do not depend on the batch."""

    def values(self, observations: Tensor) -> Tensor:
        return observations[:, 0] * 3.0 - observations[:, 1]


def block(seed: int) -> Rollout:
    """A rollout of one actor: ``WIDTH`` environments."""
    generator = torch.Generator().manual_seed(seed)
    shape, size = (N_STEPS, WIDTH), N_STEPS * WIDTH
    dones = torch.rand(shape, generator=generator) < 0.4
    ends = dones.flatten().nonzero().flatten()
    truncated_at = ends[torch.rand(len(ends), generator=generator) < 0.5]
    return Rollout(
        observations=torch.randn(size, 2, generator=generator),
        actions=torch.randint(3, (size,), generator=generator),
        log_prob=torch.randn(shape, generator=generator),
        rewards=torch.randn(shape, generator=generator),
        dones=dones,
        last_observations=torch.randn(WIDTH, 2, generator=generator),
        truncated_at=truncated_at,
        truncated_observations=torch.randn(len(truncated_at), 2, generator=generator) if len(truncated_at) else None,
    )


def round_of(blocks: list[Rollout]) -> Rollout:
    """Blocks beside each other, as a rollout of all their environments."""

    def beside(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.cat([getattr(one, name).reshape(N_STEPS, WIDTH, *shape) for one in blocks], dim=1)

    cut = [
        (int(place) // WIDTH * WIDTH * len(blocks) + index * WIDTH + int(place) % WIDTH, observation)
        for index, one in enumerate(blocks)
        if one.truncated_observations is not None
        for place, observation in zip(one.truncated_at, one.truncated_observations, strict=True)
    ]
    cut.sort(key=lambda pair: pair[0])
    return Rollout(
        observations=beside("observations", (2,)).reshape(-1, 2),
        actions=beside("actions", ()).reshape(-1),
        log_prob=beside("log_prob", ()),
        rewards=beside("rewards", ()),
        dones=beside("dones", ()),
        last_observations=torch.cat([one.last_observations for one in blocks]),
        truncated_at=torch.tensor([place for place, _ in cut], dtype=torch.long),
        truncated_observations=torch.stack([observation for _, observation in cut]) if cut else None,
    )


def assert_same_rollout(actual: Rollout, expected: Rollout) -> None:
    for name, value in vars(expected).items():
        found = getattr(actual, name)
        assert (value is None and found is None) or torch.equal(found, value), name


def test_columns_take_a_round_apart_into_its_blocks() -> None:
    blocks = [block(seed) for seed in range(4)]
    assert any(one.truncated_observations is None for one in blocks) or len(blocks) == 4
    whole = round_of(blocks)
    for index, one in enumerate(blocks):
        assert_same_rollout(columns(whole, index * WIDTH, (index + 1) * WIDTH), one)


# Blocks of the rounds by stretch: one that is twice in a round, one that ends, one that begins, one that pauses.
LAYOUTS = {
    "in turn": [(0, 1, 2), (0, 1, 2), (0, 1, 2)],
    "another order": [(0, 1, 2), (2, 0, 1), (1, 2, 0)],
    "one twice as fast": [(0, 1, 0), (0, 2, 0), (1, 0, 2)],
    "one started anew": [(0, 1, 2), (0, 3, 2), (3, 4, 2)],
    "none goes on": [(0, 1, 2), (3, 4, 5), (6, 7, 8)],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_each_stretch_is_what_a_window_of_its_own_makes_of_it(layout: list[tuple[int, ...]]) -> None:
    window, separate = StretchWindow(len(layout)), {}
    for number, stretches in enumerate(layout):
        blocks = [block(10 * number + index) for index in range(len(stretches))]
        for stretch, one in zip(stretches, blocks, strict=True):
            separate.setdefault(stretch, RolloutWindow(100)).append(one)
        window.next_stretches = stretches
        window.append(round_of(blocks))
    networks: Any = Values()
    found = window.transitions(window.observations(), networks, 0.99, 0.95)
    parts = [one.transitions(one.observations(), networks, 0.99, 0.95) for one in separate.values()]
    for name in ("observations", "actions", "behaviour_log_prob", "values", "advantages", "value_targets"):
        expected = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(found, name), expected, rtol=0.0, atol=0.0)
    assert torch.equal(found.segment_ends, torch.cat([part.segment_ends for part in parts]))


def test_rounds_of_the_same_stretches_are_the_plain_window() -> None:
    plain, window = RolloutWindow(3), StretchWindow(3)
    for number in range(4):
        rollout = round_of([block(10 * number + index) for index in range(3)])
        plain.append(rollout)
        window.next_stretches = (5, 6, 7)
        window.append(rollout)
    assert len(window.stretches) == len(window.rollouts) == 3
    networks: Any = Values()
    expected = plain.transitions(plain.observations(), networks, 0.9, 0.8)
    found = window.newest_rollouts(3).transitions(window.observations(), networks, 0.9, 0.8)
    for one, other in zip(expected[:7], found[:7], strict=True):
        assert torch.equal(one, other)


def test_saved_window_comes_back_with_its_stretches_and_the_newest_rounds() -> None:
    window = StretchWindow(3)
    for number, stretches in enumerate([(0, 1), (1, 2), (2, 1)]):
        window.next_stretches = stretches
        window.append(round_of([block(10 * number + index) for index in range(2)]))
    smaller = StretchWindow(2)
    smaller.load_state_dict(window.state_dict(), torch.device("cpu"))
    assert smaller.stretches == [(1, 2), (2, 1)]
    assert_same_rollout(smaller.newest, window.newest)
    smaller.clear()
    assert smaller.stretches == []


def test_momentum_keeps_to_its_floor_which_grows_with_delay_and_step() -> None:
    gradients = torch.tensor([[1.0, 0.0], [1.2, 0.1], [0.9, -0.2]], dtype=torch.float64)
    at_previous = 0.9 * gradients

    def momentum(delay: float, last_step: float) -> float:
        recursion = DelayedRecursion()
        recursion.direction, recursion.previous_parameters = gradients.mean(dim=0), torch.zeros(2, dtype=torch.float64)
        recursion.delay, recursion.last_step = delay, last_step
        return recursion.next_momentum(torch.ones(2, dtype=torch.float64), gradients, at_previous, 0.0)

    plain = PolicyRecursion()
    plain.direction, plain.previous_parameters = gradients.mean(dim=0), torch.zeros(2, dtype=torch.float64)
    measured = plain.next_momentum(torch.ones(2, dtype=torch.float64), gradients, at_previous, 0.0)
    assert measured < 0.5
    assert momentum(0.0, 0.1) == measured
    assert momentum(1.0, 0.0625) == pytest.approx(0.5)  # sqrt(1) * (1/16)^(1/4)
    assert momentum(2.0, 0.0625) == pytest.approx(0.5**0.5)
    assert momentum(9.0, 0.5) == 1.0
