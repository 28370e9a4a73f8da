import pytest
import torch
from torch import Tensor

from storm_rl.storm_plus_pg.recursion import PolicyRecursion


def started(momentum: float | str, floor: float = 0.0, direction: Tensor | None = None) -> PolicyRecursion:
    """A recursion after its first update, with ``direction`` as what it remembers."""
    recursion = PolicyRecursion(momentum, floor)  # type: ignore[arg-type]
    direction = torch.ones(2) if direction is None else direction
    recursion.next_direction(direction[None], None)
    recursion.next_step_size(1.0, torch.zeros_like(direction))
    return recursion


def test_three_updates_follow_the_papers_equations() -> None:
    recursion = PolicyRecursion("storm+", momentum_floor=0.0)
    sum_g, sum_d, d = 0.0, 0.0, None
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        parts, parts_previous = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
        theta = torch.randn(4, dtype=torch.float64, generator=generator)
        g, g_previous = parts.mean(dim=0), parts_previous.mean(dim=0)
        a = (1.0 + sum_g) ** (-2.0 / 3.0)
        d = g if d is None else g + (1.0 - a) * (d - g_previous)
        torch.testing.assert_close(recursion.next_direction(parts, parts_previous), d)
        assert recursion.momentum == pytest.approx(a, rel=1e-12)
        sum_g += float(g @ g)
        sum_d += float(d @ d) / (1.0 + sum_g) ** (-2.0 / 3.0)
        step_size = recursion.next_step_size(float(d @ d), theta)
        assert step_size == pytest.approx(sum_d ** (-1.0 / 3.0), rel=1e-12)
        assert torch.equal(recursion.previous_parameters, theta)


def test_floor_bounds_the_momentum_from_below() -> None:
    recursion = started("storm+", 0.3, torch.full((4,), 100.0))
    recursion.next_direction(torch.zeros(1, 4), torch.zeros(1, 4))
    assert recursion.momentum == 0.3


def test_momentum_one_is_the_plain_gradient() -> None:
    gradients = torch.tensor([[3.0, -1.0]])
    recursion = started(1.0)
    assert not recursion.needs_previous
    torch.testing.assert_close(recursion.next_direction(gradients, torch.ones(1, 2)), gradients[0])


@pytest.mark.parametrize("momentum", ["measured", 0.4])
def test_step_size_divides_by_the_momentum_of_each_direction(momentum: float | str) -> None:
    recursion = PolicyRecursion(momentum, momentum_floor=0.1)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(4):
        parts, parts_previous = torch.randn(2, 5, 4, generator=generator)
        recursion.next_direction(parts, parts + 0.1 * parts_previous)
        divisor = 0.4 if momentum == 0.4 else max(recursion.momentum, 1e-3)
        total += 2.0 / divisor
        assert recursion.next_step_size(2.0, torch.zeros(4)) == pytest.approx(total ** (-1.0 / 3.0), rel=1e-12)
    assert recursion.momentum < 1.0


def measured(noise: float, common: float, error: float, updates: int = 60) -> float:
    """Mean measured ``a_t``: parts have noise ``noise``, of which ``common`` is shared by both points.

    The truth is 0 at both parameters; what is remembered is off by ``error`` (norm).
    """
    generator = torch.Generator().manual_seed(0)
    size, parts = 400, 8
    remembered = torch.randn(size, dtype=torch.float64, generator=generator)
    recursion = started("measured", direction=remembered * error / remembered.norm())
    momenta = []
    for _ in range(updates):
        shared, own, other = torch.randn(3, parts, size, dtype=torch.float64, generator=generator) / size**0.5
        scale = noise * parts**0.5
        current = scale * (common**0.5 * shared + (1 - common) ** 0.5 * own)
        previous = scale * (common**0.5 * shared + (1 - common) ** 0.5 * other)
        direction = recursion.direction
        recursion.next_direction(current, previous)
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


@pytest.mark.parametrize("momentum", [0.0, 1.5, -0.1, "adam"])
def test_momentum_outside_its_range_is_named(momentum: float | str) -> None:
    with pytest.raises(ValueError, match=str(momentum)):
        PolicyRecursion(momentum, 0.3)  # type: ignore[arg-type]


def test_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state"):
        PolicyRecursion("storm+", 0.3).load_state_dict({"step": 1})


@pytest.mark.parametrize(("overlap", "expected"), [(0.75, 0.5), (0.0, 0.0)])
def test_data_that_the_direction_has_used_is_not_taken_for_new(overlap: float, expected: float) -> None:
    # Windows of four blocks of noise, of which each shares three with the one before; the truth is 0, and the policy
    # does not move. The previous direction is the previous window's mean: E = V_g and K = 3/4 V_g, hence a = 1/2.
    generator = torch.Generator().manual_seed(0)
    recursion = started("measured", direction=torch.ones(500))
    recursion.error_ratio, momenta = 1.0, []
    for _ in range(100):
        blocks = torch.randn(5, 8, 500, generator=generator)
        recursion.direction = blocks[:4].mean(dim=(0, 1))
        window = blocks[1:].mean(dim=0)
        recursion.next_direction(window, window, overlap)
        momenta.append(recursion.momentum)
    assert sum(momenta[50:]) / 50 == pytest.approx(expected, abs=0.05)
