import numpy as np
import pytest

from experiments.measures import area_under_curve, measure, steps_to_threshold


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([0, 500, 100, 480, 490], 4),
        ([500, 475, 0, 0, 0], 1),
        ([0, 500, 100, 500, 100], None),
        ([0, 0, 0, 0, 500], None),
        ([474.9, 474.9, 474.9, 474.9, 474.9], None),
    ],
)
def test_threshold_needs_two_evaluations_in_a_row(returns: list[float], expected: float | None) -> None:
    assert steps_to_threshold([1, 2, 3, 4, 5], returns, 475) == expected


def test_area_weighs_uneven_intervals_by_their_length() -> None:
    assert area_under_curve([0, 1, 11], [0.0, 10.0, 10.0]) == pytest.approx((5.0 + 100.0) / 11.0)


def test_short_trials_have_few_evaluations_or_none() -> None:
    assert area_under_curve([1000], [7.0]) == 7.0
    assert np.isnan(area_under_curve([], []))


def test_run_that_never_gets_there_counts_as_the_budget() -> None:
    run = {
        "agent": "ppo_zoo",
        "task": "CartPole-v1",
        "seed": 0,
        "budget": 3000,
        "steps": 3072,
        "learn_seconds": 2.0,
        "evaluations": {"step": [1000, 2000, 3000], "mean_return": [0.0, 500.0, 0.0], "learn_seconds": [0.5, 1.0, 1.5]},
        "episodes": {"step": [1000, 2900, 3050], "return": [10.0, 30.0, 500.0], "length": [10, 30, 500]},
        "final_returns": [10.0, 20.0],
    }
    row = measure(run)
    assert (row["reached"], row["steps_to_threshold"]) == (False, 3000)
    assert row["seconds_to_threshold"] == 2.0
    assert not row["collapsed"]
    assert (row["later_evaluations"], row["later_below_threshold"]) == (0, 0)
    assert row["final_return"] == 15.0
    assert row["training_area"] == 25.0  # Weighed by length, and without what ended past the budget.
    assert row["evaluation_score"] == pytest.approx(0.5)
    assert row["steps_per_second"] == 1536.0


def test_what_is_evaluated_after_the_budget_does_not_count() -> None:
    evaluations = {"step": [1000, 2000, 3000, 4000, 5000], "mean_return": [0.0, 0.0, 30.0, 500.0, 500.0]}
    run = {
        "agent": "svrpg",
        "task": "CartPole-v1",
        "seed": 0,
        "budget": 3000,
        "steps": 5500,
        "learn_seconds": 2.0,
        "evaluations": {**evaluations, "learn_seconds": [0.5, 1.0, 1.5, 1.7, 1.8]},
        "episodes": {"step": [1000], "return": [10.0], "length": [10]},
        "final_returns": [500.0],
    }
    row = measure(run)
    assert (row["reached"], row["steps_to_threshold"]) == (False, 3000)
    assert row["evaluation_area"] == pytest.approx(7.5)
    assert row["last_evaluations"] == pytest.approx(10.0)


def test_evaluations_below_a_threshold_that_was_reached_are_counted() -> None:
    returns = [0.0, 500.0, 100.0, 480.0, 490.0, 470.0, 500.0, 20.0]
    steps = [1000.0 * (index + 1) for index in range(len(returns))]
    run = {
        **{"agent": "ppo_zoo", "task": "CartPole-v1", "seed": 0, "budget": 8000, "steps": 8000, "learn_seconds": 2.0},
        "evaluations": {"step": steps, "mean_return": returns, "learn_seconds": steps},
        "episodes": {"step": [1000], "return": [10.0], "length": [10]},
        "final_returns": [500.0],
    }
    row = measure(run)
    assert (row["steps_to_threshold"], row["later_evaluations"], row["later_below_threshold"]) == (4000, 4, 2)
