"""Against independent computations, and against figures that rliable 1.2.0 gave for the same scores (rliable.json)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from experiments.statistics import estimate, estimates, iqm, probability_of_improvement, profile, ratio_of_medians

RLIABLE = json.loads(Path(__file__).with_name("rliable.json").read_text())
X, Y = ([np.array(task) for task in RLIABLE["scores"][name]] for name in "xy")
# Two bootstraps of 10,000 and more resamples: their ends differ by Monte-Carlo noise, and scores have two decimals.
ENDS = 0.006


@pytest.mark.parametrize(("samples", "name"), [(X, "iqm_x"), (Y, "iqm_y")])
def test_interquartile_mean_and_its_interval_are_rliables(samples: list[Any], name: str) -> None:
    value, low, high = RLIABLE["figures"][name]
    result = estimate(iqm, samples)
    assert result.value == pytest.approx(value, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((low, high), abs=ENDS)


def test_probability_of_improvement_and_its_interval_are_rliables() -> None:
    value, low, high = RLIABLE["figures"]["probability_of_improvement"]
    result = estimate(probability_of_improvement, X, Y)
    assert result.value == pytest.approx(value, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((low, high), abs=ENDS)


def test_performance_profile_and_its_band_are_rliables() -> None:
    figures = RLIABLE["figures"]["profile_x"]
    value, low, high = estimates(lambda scores, axis: profile(scores, np.array(figures["tau"]), axis), X)
    np.testing.assert_allclose(value, figures["value"], atol=1e-12)
    # Shares of 50 runs come in steps of 0.02.
    np.testing.assert_allclose(low, figures["low"], atol=0.021)
    np.testing.assert_allclose(high, figures["high"], atol=0.021)


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    scores = np.sort(np.concatenate(X))
    assert iqm(X) == pytest.approx(scores[len(scores) // 4 : len(scores) - len(scores) // 4].mean())


def test_bootstrap_is_the_one_written_as_a_loop() -> None:
    generator, means = np.random.default_rng(1), []
    for _ in range(4_000):
        resample = np.sort(np.concatenate([generator.choice(task, len(task)) for task in Y]))
        cut = len(resample) // 4
        means.append(resample[cut:-cut].mean())
    result = estimate(iqm, Y)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=ENDS)


def test_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    chances = [
        mannwhitneyu(x, y, alternative="greater").statistic / (len(x) * len(y)) for x, y in zip(X, Y, strict=True)
    ]
    assert probability_of_improvement(X, Y) == pytest.approx(np.mean(chances))
    assert probability_of_improvement([np.array([1.0, 2.0])], [np.array([2.0, 1.0])]) == 0.5


def test_ratio_of_medians_is_above_one_if_ours_needs_less() -> None:
    ours, theirs = [np.array([1.0, 2.0, 9.0]), np.array([10.0])], [np.array([8.0]), np.array([10.0, 10.0])]
    assert ratio_of_medians(theirs, ours) == pytest.approx(2.0)


def test_same_scores_give_the_same_interval_and_one_seed_gives_none() -> None:
    assert estimate(iqm, X) == estimate(iqm, X)
    single = estimate(iqm, [np.array([0.5])])
    assert single.value == 0.5
    assert np.isnan([single.low, single.high]).all()
