"""Each recursion, on deterministic gradients, is its paper's formula."""

import pytest
import torch

from storm_rl.episodic.recursions import (
    AnchoredRecursion,
    CoinRecursion,
    EpochRecursion,
    MomentumRecursion,
    SnapshotRecursion,
    Vector,
)


def vector(value: float) -> Vector:
    return {"w": torch.tensor([float(value)])}


def gradient(theta: float, batch: float) -> float:
    """Any function of parameters and batch will do."""
    return 3.0 * theta + batch + theta * batch


def run(recursion: AnchoredRecursion, n: int, step: float = 1.0) -> tuple[list[float], list[bool]]:
    """Directions at theta = 0, 1, 2, ... on batches 10, 11, ..., and which batches were large."""
    directions, large = [], []
    for t in range(n):
        batch = 10.0 + t
        at_anchor = None if recursion.large_batch else vector(gradient(recursion.anchor["w"].item(), batch))  # type: ignore[index]
        large.append(recursion.large_batch)
        directions.append(recursion.direction(vector(t), vector(gradient(t, batch)), at_anchor)["w"].item())
        recursion.schedule(step)
    return directions, large


def test_svrpg_corrects_at_the_snapshot_until_a_new_one_is_due() -> None:
    directions, large = run(SnapshotRecursion(batch_size=10, mini_batch_size=2, max_sub_iterations=2), 5)
    assert large == [True, False, False, True, False]
    snapshot = gradient(0, 10)
    assert directions[1] == snapshot + gradient(1, 11) - gradient(0, 11)
    assert directions[2] == snapshot + gradient(2, 12) - gradient(0, 12)
    assert directions[3] == gradient(3, 13)
    assert directions[4] == gradient(3, 13) + gradient(4, 14) - gradient(3, 14)


@pytest.mark.parametrize(("small_step", "due"), [(0.3, False), (0.1, True)])
def test_svrpg_takes_a_snapshot_when_its_step_for_each_trajectory_was_longer(small_step: float, due: bool) -> None:
    """alpha_FG / N = 1 / 10 against alpha_SI / B = small_step / 2 (section 5.2)."""
    recursion = SnapshotRecursion(batch_size=10, mini_batch_size=2, max_sub_iterations=50)
    recursion.direction(vector(0), vector(1))
    recursion.schedule(1.0)
    assert not recursion.large_batch
    recursion.direction(vector(1), vector(1), vector(1))
    recursion.schedule(small_step)
    assert recursion.large_batch is due


def test_srvrpg_corrects_at_the_step_before_within_an_epoch() -> None:
    directions, large = run(EpochRecursion(epoch_length=3), 4)
    assert large == [True, False, False, True]
    assert directions[1] == gradient(0, 10) + gradient(1, 11) - gradient(0, 11)
    assert directions[2] == directions[1] + gradient(2, 12) - gradient(1, 12)
    assert run(EpochRecursion(epoch_length=1), 3)[1] == [True] * 3


def test_stormpg_discounts_the_memory() -> None:
    directions, large = run(MomentumRecursion(momentum=0.25), 3)
    assert large == [True, False, False]
    assert directions[1] == gradient(1, 11) + 0.75 * (directions[0] - gradient(0, 11))
    assert directions[2] == gradient(2, 12) + 0.75 * (directions[1] - gradient(1, 12))


def test_pagepg_follows_its_coin() -> None:
    torch.manual_seed(0)
    directions, large = run(CoinRecursion(probability=0.5), 40)
    assert 5 < sum(large) < 35
    for t in range(1, 40):
        plain = gradient(t, 10 + t)
        assert directions[t] == (plain if large[t] else directions[t - 1] + plain - gradient(t - 1, 10 + t))


def test_pagepg_takes_large_batches_with_its_probability() -> None:
    """Tolerance four standard errors."""
    torch.manual_seed(0)
    large = run(CoinRecursion(probability=0.2), 2001)[1][1:]
    assert abs(sum(large) / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5


def test_gpomdp_remembers_nothing() -> None:
    directions, large = run(EpochRecursion(1), 3)
    assert large == [True] * 3
    assert directions == [gradient(t, 10 + t) for t in range(3)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SnapshotRecursion(10, 2, 3),
        lambda: EpochRecursion(3),
        lambda: MomentumRecursion(0.3),
        lambda: EpochRecursion(1),
    ],
)
def test_state_restores_the_recursion_in_the_middle(make) -> None:
    recursion, restored = make(), make()
    run(recursion, 2)
    restored.load_state_dict(recursion.state_dict())
    at_anchor = vector(7.0)
    first, second = (
        each.direction(vector(9.0), vector(5.0), None if each.large_batch else at_anchor)
        for each in (recursion, restored)
    )
    assert torch.equal(first["w"], second["w"])
    for each in (recursion, restored):
        each.schedule(0.5)
    assert recursion.large_batch == restored.large_batch


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="epoch_length"):
        EpochRecursion(0)
    with pytest.raises(ValueError, match="momentum"):
        MomentumRecursion(1.5)
    with pytest.raises(ValueError, match="probability"):
        CoinRecursion(0.0)
    with pytest.raises(ValueError, match="max_sub_iterations"):
        SnapshotRecursion(10, 2, 0)
    recursion = EpochRecursion(3)
    recursion.large_batch = False
    with pytest.raises(ValueError, match="begin with a large batch"):
        recursion.direction(vector(0), vector(0))
