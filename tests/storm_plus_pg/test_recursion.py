from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from storm_rl.storm_plus_pg.recursion import PolicyRecursion


def started(direction: Tensor) -> PolicyRecursion:
    """A recursion after its first update, with ``direction`` as what it remembers."""
    recursion = PolicyRecursion()
    recursion.next_direction(torch.zeros_like(direction), direction[None], None)
    recursion.next_step_size(1.0)
    return recursion


@pytest.mark.parametrize(("step_memory", "kept"), [(30.0, 29.0 / 30.0), (None, 1.0)])
def test_step_size_divides_by_the_momentum_of_each_direction(step_memory: float | None, kept: float) -> None:
    recursion = PolicyRecursion(step_memory)
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(4):
        parts, parts_previous = torch.randn(2, 5, 4, generator=generator)
        recursion.next_direction(torch.zeros(4), parts, parts + 0.1 * parts_previous)
        total = kept * total + 2.0 / max(recursion.momentum, 0.1)
        assert recursion.next_step_size(2.0) == pytest.approx(total ** (-1.0 / 3.0), rel=1e-12)
    assert recursion.momentum < 1.0


def test_with_a_memory_steps_follow_gradients_that_shrink() -> None:
    # With a sum of all of them, as in the paper, the last step would be shorter than the first.
    recursion, step_sizes = PolicyRecursion(step_memory=30.0), []
    for update in range(200):
        recursion.next_direction(torch.zeros(4), torch.ones(2, 4), None)
        step_sizes.append(recursion.next_step_size(1.0 if update < 5 else 1e-3))
    assert step_sizes[-1] > 2.0 * step_sizes[0] > 2.0 * step_sizes[5]


def measured(noise: float, common: float, error: float, updates: int = 60) -> float:
    """Mean measured ``a_t``: parts have noise ``noise``, of which ``common`` is shared by both points.

    The truth is 0 at both parameters; what is remembered is off by ``error`` (norm).
    """
    generator = torch.Generator().manual_seed(0)
    size, parts = 400, 8
    remembered = torch.randn(size, dtype=torch.float64, generator=generator)
    recursion = started(remembered * error / remembered.norm())
    momenta = []
    for _ in range(updates):
        shared, own, other = torch.randn(3, parts, size, dtype=torch.float64, generator=generator) / size**0.5
        scale = noise * parts**0.5
        current = scale * (common**0.5 * shared + (1 - common) ** 0.5 * own)
        previous = scale * (common**0.5 * shared + (1 - common) ** 0.5 * other)
        direction = recursion.direction
        recursion.next_direction(torch.zeros(size, dtype=torch.float64), current, previous)
        recursion.direction = direction  # Smoothing goes on; what is remembered stays.
        momenta.append(recursion.momentum)
    return sum(momenta[updates // 2 :]) / (updates - updates // 2)


@pytest.mark.parametrize(("noise", "common", "error"), [(1.0, 0.9, 0.5), (1.0, 0.99, 2.0), (0.3, 0.5, 0.3)])
def test_measured_momentum_finds_the_least_error(noise: float, common: float, error: float) -> None:
    # V_g = noise^2, V_difference = 2 (1 - common) noise^2, and the covariance of the two is (1 - common) noise^2.
    variance, drift = noise**2, error**2 + 2 * (1 - common) * noise**2
    cross = (1 - common) * noise**2
    expected = (drift - cross) / (drift + variance - 2 * cross)
    assert measured(noise, common, error) == pytest.approx(expected, abs=0.05)


def test_measured_momentum_forgets_what_is_wrong_and_trusts_what_is_right() -> None:
    assert measured(noise=0.1, common=0.9, error=10.0) > 0.95
    assert measured(noise=1.0, common=0.999, error=1e-3) < 0.05


def test_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state"):
        PolicyRecursion().load_state_dict({"step": 1})


def windows(n: int, size: int = 500) -> Iterator[Tensor]:
    """Parts ``(8, size)`` of windows of four rollouts of noise, each of which shares three with the one before."""
    generator = torch.Generator().manual_seed(0)
    rollouts = list(torch.randn(4, 8, size, generator=generator, dtype=torch.float64))
    for _ in range(n):
        yield torch.stack(rollouts[-4:]).mean(dim=0)
        rollouts = [*rollouts[-3:], torch.randn(8, size, generator=generator, dtype=torch.float64)]


@pytest.mark.parametrize(("weights", "expected"), [([0.25] * 4, 0.5), ([0.0] * 4, 0.0)])
def test_data_that_the_direction_has_used_is_not_taken_for_new(weights: list[float], expected: float) -> None:
    # The truth is 0 and the policy does not move. A direction that is the previous window's mean has E = V_g and
    # K = 3/4 V_g, hence a = 1/2; one that is exact and has used nothing of the window needs no new data at all.
    recursion, previous, momenta = started(torch.ones(500, dtype=torch.float64)), None, []
    for window in windows(100):
        if previous is not None:
            recursion.direction = previous.mean(dim=0) * sum(weights)
            recursion.rollout_weights = list(weights)
            recursion.next_direction(torch.zeros(500, dtype=torch.float64), window, window, 4)
            momenta.append(recursion.momentum)
        previous = window
    assert sum(momenta[50:]) / len(momenta[50:]) == pytest.approx(expected, abs=0.05)


def test_over_a_window_that_slides_the_direction_is_better_than_its_gradient() -> None:
    recursion, errors, noises = PolicyRecursion(), [], []
    for window in windows(200):
        direction = recursion.next_direction(torch.zeros(500, dtype=torch.float64), window, window, 4)
        recursion.next_step_size(1.0)
        errors.append(float(direction @ direction))
        noises.append(float(window.mean(dim=0) @ window.mean(dim=0)))
    # With the overlap taken as if d were the last window's gradient, it is 1.2 times as large.
    assert sum(errors[50:]) < 0.75 * sum(noises[50:])


def test_the_first_measured_error_counts_in_full() -> None:
    # Remembered with ten times the noise's variance: a = 10 / 11, on the very first update that can measure it.
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(8, 2000, dtype=torch.float64, generator=generator)
    noise = float(parts.var(dim=0).sum()) / 8
    recursion = started(torch.full((2000,), (10.0 * noise / 2000) ** 0.5, dtype=torch.float64))
    recursion.next_direction(torch.zeros(2000, dtype=torch.float64), parts, parts)
    assert recursion.momentum == pytest.approx(10 / 11, abs=0.03)


def test_an_error_along_the_last_step_counts_where_it_is_lost_among_all_coordinates() -> None:
    generator = torch.Generator().manual_seed(0)
    momenta = []
    for along_step in (False, True):
        recursion = started(torch.zeros(1000, dtype=torch.float64))
        parts = torch.randn(8, 1000, dtype=torch.float64, generator=generator)
        assert recursion.direction is not None
        recursion.direction[0 if along_step else 1] = 5.0
        step = torch.zeros(1000, dtype=torch.float64)
        step[0] = 0.1
        recursion.next_direction(step, parts, parts)
        momenta.append(recursion.momentum)
    assert momenta[0] < 0.4
    assert momenta[1] > 0.9


def test_a_sum_that_overflows_is_an_error_and_not_a_step_of_zero() -> None:
    recursion = PolicyRecursion()
    recursion.next_direction(torch.zeros(3), torch.ones(2, 3), None)
    with pytest.raises(ValueError, match="step size"):
        recursion.next_step_size(float("inf"))
