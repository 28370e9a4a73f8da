import pytest
import torch

from storm_rl.storm_plus_pg.recursion import PolicyRecursion


def test_three_updates_follow_the_papers_equations() -> None:
    recursion = PolicyRecursion("storm+", momentum_floor=0.0)
    sum_g, sum_d, d = 0.0, 0.0, None
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        g, g_previous, theta = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        a = (1.0 + sum_g) ** (-2.0 / 3.0)
        d = g if d is None else g + (1.0 - a) * (d - g_previous)
        proposed = recursion.propose(g, g_previous)
        torch.testing.assert_close(proposed, d)
        sum_g += float(g @ g)
        sum_d += float(d @ d) / (1.0 + sum_g) ** (-2.0 / 3.0)
        step_size = recursion.accept(g, proposed, float(proposed @ proposed), theta)
        assert step_size == pytest.approx(sum_d ** (-1.0 / 3.0), rel=1e-12)
        assert torch.equal(recursion.previous_parameters, theta)


def test_floor_bounds_the_momentum_from_below() -> None:
    recursion = PolicyRecursion("storm+", momentum_floor=0.3)
    assert recursion.momentum == 1.0
    recursion.accept(torch.full((4,), 100.0), torch.ones(4), 1.0, torch.zeros(4))
    assert recursion.momentum == 0.3


def test_momentum_one_is_the_plain_gradient() -> None:
    recursion = PolicyRecursion(1.0, 0.0)
    recursion.accept(torch.ones(2), torch.ones(2), 2.0, torch.zeros(2))
    gradient = torch.tensor([3.0, -1.0])
    torch.testing.assert_close(recursion.propose(gradient, torch.ones(2)), gradient)


def test_proposing_changes_nothing() -> None:
    recursion = PolicyRecursion(0.5, 0.0)
    recursion.accept(torch.ones(2), torch.ones(2), 2.0, torch.zeros(2))
    before = recursion.state_dict()
    recursion.propose(torch.zeros(2), torch.ones(2))
    assert all(torch.equal(torch.as_tensor(before[k]), torch.as_tensor(v)) for k, v in recursion.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 1.5, -0.1, "adam"])
def test_momentum_outside_its_range_is_named(momentum: float | str) -> None:
    with pytest.raises(ValueError, match=str(momentum)):
        PolicyRecursion(momentum, 0.3)  # type: ignore[arg-type]


def test_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state"):
        PolicyRecursion("storm+", 0.3).load_state_dict({"step": 1})
