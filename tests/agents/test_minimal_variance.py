"""Minibatches of least variance: the threshold's equation, exact expectations by enumeration, limits, norms."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from agents.minimal_variance import (
    MinimalVarianceSampler,
    SystematicPasses,
    decompose,
    inclusion_probabilities,
    pass_variance,
    poisson_draw,
    sampling_variance,
    squared_error_norms,
    systematic_places,
    threshold,
)
from storm_rl.storm_plus_pg.numpy_actor_critic import mlp_from_modules

NORMS = np.array([0.1, 3.0, 0.7, 0.2, 1.1, 0.4])
GRADIENTS = np.random.default_rng(0).standard_normal((6, 3))
GRADIENTS *= (NORMS / np.linalg.norm(GRADIENTS, axis=1))[:, None]


@pytest.mark.parametrize("batch_size", [0.3, 1, 2.5, 4, 7, 19])
@pytest.mark.parametrize("power", [1, 6])
def test_the_threshold_solves_its_equation(batch_size: float, power: int) -> None:
    norms = np.random.default_rng(1).exponential(size=20) ** power
    mu = threshold(norms, batch_size)
    assert np.minimum(1.0, norms / mu).sum() == pytest.approx(batch_size, rel=1e-12)
    naive = brentq(lambda x: np.minimum(1.0, norms / x).sum() - batch_size, 1e-12, norms.sum() / batch_size + 1.0)
    assert mu == pytest.approx(naive, rel=1e-6)


def test_equal_norms_are_drawn_uniformly_and_so_are_zeros() -> None:
    for norms in (np.full(8, 0.3), np.zeros(8)):
        assert inclusion_probabilities(norms, 2) == pytest.approx(np.full(8, 0.25))


def test_a_batch_of_all_samples_has_all_of_them() -> None:
    for batch_size in (6, 9):
        assert (inclusion_probabilities(NORMS, batch_size) == 1.0).all()
    assert sampling_variance(inclusion_probabilities(NORMS, 6), NORMS) == 0.0


def test_where_few_norms_are_positive_these_are_drawn_for_certain() -> None:
    norms = np.array([0.0, 2.0, 0.0, 1.0])
    assert inclusion_probabilities(norms, 3).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert sampling_variance(inclusion_probabilities(norms, 3), norms) == 0.0
    raised = inclusion_probabilities(norms, 3, floor=0.1)
    assert (raised > 0.0).all()
    assert raised.sum() == pytest.approx(3)


def test_no_weight_is_above_the_floors_bound() -> None:
    norms = np.random.default_rng(2).exponential(size=500) ** 8
    for floor in (0.01, 0.1, 1.0):
        probabilities = inclusion_probabilities(norms, 20, floor)
        assert (20 / 500 / probabilities).max() <= (1 + 1 / floor) * (1 + 1e-9)
        assert probabilities.sum() == pytest.approx(20)


@pytest.mark.parametrize("used", [NORMS, NORMS[::-1], np.ones(6)], ids=["exact", "wrong", "uniform"])
def test_the_weighted_gradient_is_unbiased_and_has_the_stated_variance(used: np.ndarray) -> None:
    probabilities = inclusion_probabilities(used, 2.5)
    mean, square = np.zeros(3), 0.0
    for drawn in itertools.product((0, 1), repeat=6):
        chance = np.prod(np.where(drawn, probabilities, 1.0 - probabilities))
        gradient = (np.array(drawn) / probabilities) @ GRADIENTS / 6
        mean, square = mean + chance * gradient, square + chance * gradient @ gradient
    assert mean == pytest.approx(GRADIENTS.mean(axis=0), abs=1e-12)
    assert square - mean @ mean == pytest.approx(sampling_variance(probabilities, NORMS), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 2.5])
def test_systematic_draws_have_their_probabilities_exactly(batch_size: float) -> None:
    probabilities = inclusion_probabilities(NORMS, batch_size)
    # Between these starts nothing changes, so that the integral over starts is a sum.
    ends = np.unique([0.0, 1.0, *np.round(np.cumsum(probabilities) % 1.0, 12)])
    mean, chances = np.zeros(3), np.zeros(6)
    for low, high in itertools.pairwise(ends):
        places = systematic_places(probabilities, (low + high) / 2)
        assert len(places) in {int(np.floor(batch_size)), int(np.ceil(batch_size))}
        assert len(set(places)) == len(places)
        chances[places] += high - low
        mean += (high - low) * (GRADIENTS[places] / probabilities[places, None]).sum(axis=0) / 6
    assert chances == pytest.approx(probabilities, abs=1e-9)
    assert mean == pytest.approx(GRADIENTS.mean(axis=0), abs=1e-9)


def test_a_start_at_a_samples_end_takes_the_next_one_that_can_be_drawn() -> None:
    assert systematic_places(np.array([0.0, 0.5, 0.5]), 0.0).tolist() == [1]
    assert systematic_places(np.array([0.5, 0.0, 0.5]), 0.5).tolist() == [2]


def test_passes_draw_each_sample_as_often_as_its_probability_says() -> None:
    passes = SystematicPasses(np.random.default_rng(0))
    equal = np.full(24, 4 / 24)
    for _ in range(3):
        assert sorted(np.concatenate([passes.draw(equal) for _ in range(6)])) == list(range(24))
    unequal = inclusion_probabilities(np.random.default_rng(3).exponential(size=24), 4)
    counts = np.bincount(np.concatenate([passes.draw(unequal) for _ in range(6)]), minlength=24)
    assert (np.abs(counts - 6 * unequal) < 1.0 + 1e-9).all()


@pytest.mark.parametrize("draw", ["systematic", "poisson"])
def test_the_sampler_draws_with_its_probabilities(draw: str) -> None:
    sampler = MinimalVarianceSampler(lambda: NORMS, 2, None, floor=0.0, draw=draw, seed=0)  # type: ignore[arg-type]
    n, counts, sums = 6_000, np.zeros(6), np.zeros(3)
    for _ in range(n):
        rows, weights = sampler.draw()
        counts[rows] += 1
        sums += weights @ GRADIENTS[rows]
    probabilities = inclusion_probabilities(NORMS, 2)
    # Five standard errors of independent draws.
    assert (np.abs(counts / n - probabilities) <= 5 * np.sqrt(probabilities * (1 - probabilities) / n) + 1e-9).all()
    error = np.linalg.norm(sums / n - GRADIENTS.mean(axis=0))
    assert error <= 5 * np.sqrt(sampling_variance(probabilities, NORMS) / n)


def test_a_poisson_draw_takes_what_is_below_its_probability() -> None:
    class Given:
        def random(self, n: int) -> np.ndarray:
            return np.linspace(0.0, 1.0, n, endpoint=False)

    assert poisson_draw(np.array([0.1, 0.2, 0.6, 1.0]), Given()).tolist() == [0, 2, 3]  # type: ignore[arg-type]


def test_no_other_probabilities_have_less_variance() -> None:
    rng = np.random.default_rng(4)
    for batch_size in (1, 2, 4):
        least = sampling_variance(inclusion_probabilities(NORMS, batch_size), NORMS)
        uniform = sampling_variance(np.full(6, batch_size / 6), NORMS)
        assert least < uniform == pytest.approx((6 / batch_size - 1) * (NORMS**2).sum() / 36)
        for _ in range(200):
            others = inclusion_probabilities(NORMS * np.exp(0.1 * rng.standard_normal(6)), batch_size)
            assert sampling_variance(others, NORMS) >= least * (1 - 1e-12)


def test_small_batches_gain_what_the_evenness_of_norms_says() -> None:
    norms = np.random.default_rng(5).exponential(size=5_000)
    ratio = sampling_variance(inclusion_probabilities(norms, 2), norms) / sampling_variance(np.full(5_000, 4e-4), norms)
    assert ratio == pytest.approx(norms.mean() ** 2 / (norms**2).mean(), rel=2e-3)


def test_what_is_never_drawn_has_infinite_variance() -> None:
    assert sampling_variance(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == np.inf
    assert sampling_variance(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0


def test_the_variance_of_a_batch_without_replacement_is_that_of_all_batches() -> None:
    batches = np.stack([GRADIENTS[list(rows)].mean(axis=0) for rows in itertools.combinations(range(6), 2)])
    mean = GRADIENTS.mean(axis=0)
    exact = np.square(batches - mean).sum(axis=1).mean()
    assert pass_variance(NORMS, float(mean @ mean), 2) == pytest.approx(exact, rel=1e-12)


def test_the_two_terms_add_up_and_neither_is_negative() -> None:
    used = np.array([0.3, 1.0, 0.7, 0.2, 2.0, 0.4])
    terms = decompose(NORMS, used, 2, floor=0.2)
    assert sum(terms) == pytest.approx(sampling_variance(inclusion_probabilities(used, 2, 0.2), NORMS), rel=1e-12)
    assert terms.sampling == sampling_variance(inclusion_probabilities(NORMS, 2), NORMS)
    assert terms.norms > 0.0
    assert decompose(NORMS, 7.0 * NORMS, 2).norms == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_norms_are_those_of_autograds_gradients(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 1)
    module = nn.Sequential(*layers).double()
    network = mlp_from_modules(module)
    assert network is not None
    inputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    whole, last = [], []
    for x, y in zip(inputs, targets, strict=True):
        found = torch.autograd.grad((module(x)[0] - y) ** 2, list(module.parameters()))
        squares = [float(gradient.square().sum()) for gradient in found]
        whole.append(sum(squares) ** 0.5)
        last.append(sum(squares[-2:]) ** 0.5)
    arrays = inputs.numpy(), targets.numpy()
    assert squared_error_norms(network, *arrays) == pytest.approx(whole, rel=1e-12)
    assert squared_error_norms(network, *arrays, last_layer=True) == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize(("every", "calls"), [(None, 1), (1, 7), (3, 3), (10, 1)])
def test_norms_are_asked_for_as_often_as_said(every: int | None, calls: int) -> None:
    asked = []

    def norms() -> np.ndarray:
        asked.append(True)
        return NORMS

    sampler = MinimalVarianceSampler(norms, 2, every, seed=0)
    for _ in range(7):
        sampler.draw()
    assert len(asked) == calls


def test_new_norms_of_drawn_samples_count_and_leave_the_others_alone() -> None:
    sampler = MinimalVarianceSampler(lambda: NORMS, 2, None, floor=0.0, draw="poisson", seed=0)
    sampler.draw()
    sampler.update(np.array([0]), np.array([50.0]))
    assert sampler.norms.tolist() == [50.0, *NORMS[1:]]
    assert NORMS[0] == 0.1
    for _ in range(5):
        rows, weights = sampler.draw()
        assert rows[0] == 0
        assert weights == pytest.approx(1 / (6 * inclusion_probabilities(sampler.norms, 2)[rows]))


@pytest.mark.parametrize(
    ("norms", "batch_size", "floor", "message"),
    [
        (np.array([1.0, np.nan]), 1, 0.0, "norms must be finite and not negative, got nan"),
        (np.array([1.0, -2.0]), 1, 0.0, "got -2.0"),
        (np.ones((2, 2)), 1, 0.0, r"got shape \(2, 2\)"),
        (np.empty(0), 1, 0.1, r"got shape \(0,\)"),
        (NORMS, 0, 0.0, "batch_size must be above 0, got 0"),
        (NORMS, 2, 1.5, "floor must be from 0 to 1, got 1.5"),
    ],
)
def test_wrong_input_is_refused(norms: np.ndarray, batch_size: float, floor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inclusion_probabilities(norms, batch_size, floor)


def test_wrong_arguments_of_the_sampler_are_refused() -> None:
    with pytest.raises(ValueError, match="refresh_every must be at least 1, or None for one time, got 0"):
        MinimalVarianceSampler(lambda: NORMS, 2, 0)
    with pytest.raises(ValueError, match="got 'uniform'"):
        MinimalVarianceSampler(lambda: NORMS, 2, draw="uniform")  # type: ignore[arg-type]
