"""Recursions whose momentum is known beforehand: the paper's schedule and constants."""

import pytest
import torch

from agents.variants import PlainMomentum, ScheduledMomentum, STORMPlusPGVariant


def test_three_updates_follow_the_papers_equations() -> None:
    recursion = ScheduledMomentum("storm+")
    sum_g, sum_d, d = 0.0, 0.0, None
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        parts, parts_previous = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
        theta = torch.randn(4, dtype=torch.float64, generator=generator)
        g, g_previous = parts.mean(dim=0), parts_previous.mean(dim=0)
        a = (1.0 + sum_g) ** (-2.0 / 3.0)
        d = g if d is None else g + (1.0 - a) * (d - g_previous)
        torch.testing.assert_close(recursion.next_direction(theta, parts, parts_previous), d)
        assert recursion.momentum == pytest.approx(a, rel=1e-12)
        sum_g += float(g @ g)
        sum_d += float(d @ d) / (1.0 + sum_g) ** (-2.0 / 3.0)
        step_size = recursion.next_step_size(float(d @ d))
        assert step_size == pytest.approx(sum_d ** (-1.0 / 3.0), rel=1e-12)
        assert torch.equal(recursion.previous_parameters, theta)


def test_momentum_one_is_the_plain_gradient() -> None:
    gradients = torch.tensor([[3.0, -1.0]])
    recursion = ScheduledMomentum(1.0)
    recursion.next_direction(torch.zeros(2), torch.ones(1, 2), None)
    assert not recursion.needs_previous
    torch.testing.assert_close(recursion.next_direction(torch.zeros(2), gradients, torch.ones(1, 2)), gradients[0])


def test_a_constant_momentum_is_the_divisor_of_every_direction() -> None:
    recursion = ScheduledMomentum(0.4)
    parts = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for update, gradients in enumerate(parts, start=1):
        recursion.next_direction(torch.zeros(4), gradients, gradients)
        assert recursion.next_step_size(2.0) == pytest.approx((update * 2.0 / 0.4) ** (-1.0 / 3.0), rel=1e-12)
    assert recursion.momentum == 0.4


@pytest.mark.parametrize("momentum", [0.0, 1.5, -0.1, "adam"])
def test_momentum_outside_its_range_is_named(momentum: float | str) -> None:
    with pytest.raises(ValueError, match=str(momentum)):
        ScheduledMomentum(momentum)  # type: ignore[arg-type]


def test_what_each_rollout_weighs_in_the_direction_is_tracked() -> None:
    # One coordinate a rollout, and a truth of 0 at both points: the direction is its weights.
    recursion = ScheduledMomentum(0.2)
    for update in range(6):
        n_rollouts = min(4, update + 1)
        window = torch.eye(6)[update + 1 - n_rollouts : update + 1].mean(dim=0, keepdim=True)
        direction = recursion.next_direction(torch.zeros(6), window, window, n_rollouts)
        recursion.next_step_size(1.0)
        if update == 0:
            continue
        # g' = g here: d_t = a g_t + (1 - a) d_{t-1}.
        assert direction[update + 1 - n_rollouts : update + 1].tolist() == pytest.approx(recursion.rollout_weights)


def test_the_sum_of_the_schedule_is_saved_as_well() -> None:
    recursion, loaded = ScheduledMomentum("storm+"), ScheduledMomentum("storm+")
    recursion.next_direction(torch.zeros(2), torch.ones(1, 2), None)
    loaded.load_state_dict(recursion.state_dict())
    assert loaded.scheduled_momentum == recursion.scheduled_momentum < 1.0


@pytest.mark.parametrize("momentum", ["measured", 0.4])
def test_plain_momentum_leaves_the_gradient_at_the_previous_parameters_out(momentum: float | str) -> None:
    model = STORMPlusPGVariant("MlpPolicy", "CartPole-v1", momentum=momentum, corrected=False)  # type: ignore[arg-type]
    assert isinstance(model.recursion, PlainMomentum)
    assert isinstance(model.recursion, ScheduledMomentum) == (momentum == 0.4)
