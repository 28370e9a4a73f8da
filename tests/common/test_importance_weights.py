import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storm_rl.common.importance_weights import (
    defensive_weights,
    effective_sample_size,
    per_decision_weights,
    per_step_weights,
    trajectory_weights,
)


def log_probs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


MASK = torch.tensor([[True, True, True], [True, False, False]])
TARGET = log_probs([0.5, 0.4, 0.2], [0.9, 0.1, 0.1])
BEHAVIOUR = log_probs([0.25, 0.8, 0.1], [0.3, 0.1, 0.7])


def test_the_three_forms_by_hand() -> None:
    torch.testing.assert_close(
        per_step_weights(TARGET, BEHAVIOUR),
        torch.tensor([[2.0, 0.5, 2.0], [3.0, 1.0, 1.0 / 7.0]], dtype=torch.float64),
    )
    torch.testing.assert_close(
        per_decision_weights(TARGET, BEHAVIOUR, MASK),
        torch.tensor([[2.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64),
    )
    torch.testing.assert_close(
        trajectory_weights(TARGET, BEHAVIOUR, MASK), torch.tensor([2.0, 3.0], dtype=torch.float64)
    )


def test_self_normalisation_keeps_ended_episodes_in_the_mean() -> None:
    weights = per_decision_weights(TARGET, BEHAVIOUR, MASK, self_normalise=True)
    expected = [[2 / 2.5, 1 / 2.0, 2 / 2.5], [3 / 2.5, 0.0, 0.0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("log_weight", [700.0, 1e5])
def test_self_normalised_weights_do_not_overflow_where_plain_ones_or_their_sum_do(log_weight: float) -> None:
    target = torch.tensor([[log_weight], [log_weight + 1.0]] * 1000, dtype=torch.float64)
    behaviour = torch.zeros_like(target)
    expected = torch.tensor([[2.0], [2.0 * torch.e]], dtype=torch.float64) / (1.0 + torch.e)
    for weights in (
        per_decision_weights(target, behaviour, self_normalise=True),
        trajectory_weights(target, behaviour, self_normalise=True)[:, None],
    ):
        torch.testing.assert_close(weights[:2], expected)


def test_truncation_bounds_even_what_would_overflow() -> None:
    far, near = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 0.5]])
    weights = per_step_weights(far, near, max_weight=3.0)
    assert weights[0, 0].item() == pytest.approx(3.0)
    assert weights[0, 1].item() == pytest.approx(2.718281828**-0.5, rel=1e-6)


@pytest.mark.parametrize("form", [per_step_weights, per_decision_weights, trajectory_weights])
def test_overflow_nan_and_shapes_are_clear_errors(form) -> None:
    near = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"overflows torch\.float32: its logarithm is 1"):
        form(torch.tensor([[100.0, 0.0]]), near)
    with pytest.raises(ValueError, match="NaN"):
        form(torch.tensor([[float("nan"), 0.0]]), near)
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(2, 1\)"):
        form(near, near.T)
    with pytest.raises(ValueError, match="max_weight must be positive"):
        form(near, near, max_weight=0.0)


@pytest.mark.parametrize("form", [per_decision_weights, trajectory_weights])
def test_a_mask_that_is_not_boolean_or_leaves_nothing_is_refused(form) -> None:
    near = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="false everywhere"):
        form(near, near, mask=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        form(near, near, mask=torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_products_over_the_wrong_dimension_are_refused(shape: tuple[int, ...]) -> None:
    """For instance one log-probability a dimension of the action, not yet summed."""
    log_prob = torch.zeros(shape)
    for form in (per_decision_weights, trajectory_weights):
        with pytest.raises(ValueError, match=r"shape \(n_episodes, n_steps\); got torch\.float32"):
            form(log_prob, log_prob)
    with pytest.raises(ValueError, match=r"\(n_episodes, n_steps\)"):
        defensive_weights(log_prob, log_prob, log_prob, 0.5)


def test_an_action_the_target_never_takes_has_weight_zero() -> None:
    target = torch.tensor([[float("-inf"), 0.0]])
    assert per_decision_weights(target, torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_weights_carry_no_gradient() -> None:
    target = torch.zeros(2, 3, requires_grad=True)
    for form in (per_step_weights, per_decision_weights, trajectory_weights):
        assert not form(target, torch.zeros(2, 3)).requires_grad
    assert not defensive_weights(target, torch.zeros(2, 3), target, 0.5).requires_grad


def test_defensive_weights_of_one_policy_are_the_plain_ones_and_of_two_by_hand() -> None:
    for per_decision, plain in ((True, per_decision_weights), (False, trajectory_weights)):
        for defensive, policies in ((0.0, (BEHAVIOUR, TARGET)), (1.0, (TARGET, BEHAVIOUR))):
            torch.testing.assert_close(
                defensive_weights(TARGET, *policies, defensive, MASK, per_decision), plain(TARGET, BEHAVIOUR, MASK)
            )
    both = defensive_weights(TARGET, TARGET, BEHAVIOUR, 0.75, MASK)
    torch.testing.assert_close(both, 1 / (0.25 + 0.75 / torch.tensor([2.0, 3.0], dtype=torch.float64)))


def test_defensive_weights_survive_where_plain_ones_overflow() -> None:
    current, previous = torch.full((1, 500), -3.0), torch.zeros(1, 500)
    assert defensive_weights(previous, current, previous, 0.25).item() == pytest.approx(4.0)
    assert defensive_weights(current, current, previous, 0.25).item() == pytest.approx(0.0)
    with pytest.raises(ValueError, match="overflows"):
        defensive_weights(previous, current, previous, 0.0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        defensive_weights(previous, current, previous, 1.5)


def test_self_normalising_nothing_is_an_error() -> None:
    target = torch.full((2, 1), float("-inf"))
    with pytest.raises(ValueError, match="nothing in common"):
        trajectory_weights(target, torch.zeros(2, 1), self_normalise=True)


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size(torch.ones(7)).item() == pytest.approx(7.0)
    assert effective_sample_size(torch.tensor([5.0, 0.0, 0.0])).item() == pytest.approx(1.0)
    assert effective_sample_size(torch.zeros(3)).item() == 0.0
    assert effective_sample_size(torch.tensor([1e30, 1e30])).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="finite"):
        effective_sample_size(torch.tensor([1.0, 1.0, float("nan")]))
    with pytest.raises(ValueError, match="negative"):
        effective_sample_size(torch.tensor([1.0, -1.0]))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.floats(-5, 0), min_size=3, max_size=3), min_size=2, max_size=6),
    st.floats(0.05, 0.95),
)
def test_defensive_weights_stay_within_their_bound_and_weights_within_the_sample(
    rows: list[list[float]], defensive: float
) -> None:
    target = torch.tensor(rows, dtype=torch.float64)
    behaviour = target.flip(0)
    weights = defensive_weights(behaviour, target, behaviour, defensive)
    assert (weights <= 1 / defensive + 1e-9).all()
    size = effective_sample_size(trajectory_weights(target, behaviour)).item()
    assert 1 - 1e-9 <= size <= len(rows) + 1e-9
