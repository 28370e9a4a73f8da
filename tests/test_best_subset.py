"""Best subsets against every subset there is, closed forms and policies whose inputs are known."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvMultiDiscrete
from stable_baselines3.common.vec_env import VecNormalize

from storm_rl import STORMPlusPG
from storm_rl import best_subset as module
from storm_rl.best_subset import best_subset, explain, outputs, select_size

Array = Any


def unexplained(inputs: Array, targets: Array, columns: tuple[int, ...]) -> float:
    x, y = (inputs - inputs.mean(axis=0))[:, list(columns)], targets - targets.mean(axis=0)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.square(rest).sum() / np.square(y).sum())


def by_enumeration(inputs: Array, targets: Array, size: int) -> tuple[int, ...]:
    subsets = itertools.combinations(range(inputs.shape[1]), size)
    return min(subsets, key=lambda columns: unexplained(inputs, targets, columns))


@pytest.mark.parametrize("seed", range(6))
def test_no_subset_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, m = rng.integers(3, 8), rng.integers(1, 4)
    # Correlated columns of different scales.
    inputs = rng.normal(size=(40, p)) @ (np.eye(p) + 0.5 * rng.normal(size=(p, p))) * 10.0 ** np.arange(p)
    targets = inputs / inputs.std(axis=0) @ rng.normal(size=(p, m)) + 2.0 * rng.normal(size=(40, m))
    for size in range(1, p + 1):
        found = best_subset(inputs, targets, size)
        best = by_enumeration(inputs, targets, size)
        least = unexplained(inputs, targets, best)
        assert unexplained(inputs, targets, found.entries) == pytest.approx(least, abs=1e-5)
        assert found.r2 == pytest.approx(1.0 - least, abs=1e-4)


def suppressed(n: int = 200) -> tuple[Array, Array]:
    """Two columns that explain all together and little alone, and one that explains more than either alone."""
    rng = np.random.default_rng(0)
    common, difference, other, noise = rng.normal(size=(4, n))
    inputs = np.column_stack([common + 0.3 * difference, common, difference + other, other + noise])
    return inputs, (0.3 * difference)[:, None]


def test_forward_selection_would_be_fooled() -> None:
    inputs, targets = suppressed()
    first = by_enumeration(inputs, targets, 1)
    assert by_enumeration(inputs, targets, 2) == (0, 1)
    assert first == (2,)
    assert best_subset(inputs, targets, 1).entries == (2,)
    assert best_subset(inputs, targets, 2).entries == (0, 1)


def test_whitening_chooses_the_largest_car_scores_which_the_solver_confirms() -> None:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5))
    targets = inputs @ rng.normal(size=(5, 1)) + rng.normal(size=(80, 1))
    correlation = np.corrcoef(inputs.T)
    marginal = np.array([np.corrcoef(column, targets[:, 0])[0, 1] for column in inputs.T])
    values, vectors = np.linalg.eigh(correlation)
    scores = vectors @ np.diag(values**-0.5) @ vectors.T @ marginal
    for size in range(1, 5):
        largest = tuple(sorted(np.argsort(-(scores**2))[:size]))
        assert best_subset(inputs, targets, size, whiten=True).entries == largest
        worst = np.sort(np.argsort(scores**2)[:size])
        assert tuple(module._solve(np.eye(5), scores[:, None], worst)) == largest


def test_columns_that_depend_on_each_other_or_never_change() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 50))
    inputs = np.column_stack([np.ones(50), a, a, b, a + b])
    found = best_subset(inputs, (2.0 * a - b)[:, None], 3)
    assert found.r2 == pytest.approx(1.0, abs=1e-4)
    assert 0 not in found.entries
    assert best_subset(inputs, b[:, None], 1).entries == (3,)
    assert best_subset(inputs, b[:, None], 5).r2 == pytest.approx(1.0, abs=1e-4)


def test_the_choice_does_not_depend_on_units_or_on_how_outputs_are_turned() -> None:
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    targets = inputs @ rng.normal(size=(5, 2)) + rng.normal(size=(60, 2))
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    plain = best_subset(inputs, targets, 2)
    other = best_subset(inputs * [1e-3, 1.0, 1e4, 5.0, 0.1] + 7.0, targets @ turn - 3.0, 2)
    assert other.entries == plain.entries
    assert other.r2 == pytest.approx(plain.r2, abs=1e-8)


@pytest.mark.parametrize("whiten", [False, True])
def test_size_is_that_of_the_support(whiten: bool) -> None:
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(300, 8))
    targets = inputs[:, [1, 4, 6]] @ np.ones((3, 1)) + 0.3 * rng.normal(size=(300, 1))
    size, errors = select_size(inputs, targets, whiten)
    assert size == 3
    # Bisection: 8 columns, and then 4, 2 and 3 of them.
    assert list(errors) == [2, 3, 4, 8]
    assert errors[2] > 2.0 * errors[3]
    assert errors[3] == pytest.approx(0.09 / 3.09, rel=0.3)
    assert best_subset(inputs, targets, size, whiten).entries == (1, 4, 6)


def test_errors_are_of_rows_that_were_not_fitted() -> None:
    rng = np.random.default_rng(6)
    _, errors = select_size(rng.normal(size=(40, 6)), rng.normal(size=(40, 1)))
    # Nothing is there to be found: a fit of all columns would explain some of it.
    assert errors[6] > 1.0


def policy_of(model: Any, weights: Array) -> Any:
    """The model, with one linear layer from observation to outputs in place of its network."""
    with torch.no_grad():
        for network in (model.policy.action_net, model.policy.value_net):
            network.weight.zero_()
        model.policy.action_net.weight.copy_(torch.as_tensor(weights))
    return model


LINEAR: dict[str, Any] = {"policy_kwargs": {"net_arch": []}, "device": "cpu", "seed": 0}


def test_a_discrete_policy_is_explained_by_the_entries_that_its_logits_are_made_of() -> None:
    model = policy_of(PPO("MlpPolicy", "CartPole-v1", **LINEAR), [[0.0, 1.0, 0.0, 3.0], [0.0, -1.0, 0.0, 0.5]])
    states = np.random.default_rng(0).normal(size=(60, 4))
    logits = outputs(model, states)
    assert logits[:, 0] == pytest.approx(states @ [0.0, 1.0, 0.0, 1.25] + logits.mean(), abs=1e-5)
    assert logits.sum(axis=1) == pytest.approx(0.0, abs=1e-5)
    found = explain(model, states)
    assert found.entries == (1, 3)
    assert found.r2 == pytest.approx(1.0, abs=1e-4)
    assert explain(model, states, size=1).entries == (3,)


def test_a_box_policy_and_a_value_are_explained_behind_vec_normalize() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=1, seed=0))
    env.obs_rms.mean, env.obs_rms.var = np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 100.0])  # type: ignore[union-attr]
    model = policy_of(A2C("MlpPolicy", env, **LINEAR), [[1.0, 0.0, 5.0]])
    states = np.random.default_rng(0).normal(size=(60, 3))
    mean = outputs(model, states)
    # The third entry is divided by 10.
    assert mean[:, 0] == pytest.approx(states @ [1.0, 0.0, 0.5], abs=1e-4)
    assert explain(model, states, size=1).entries == (0,)
    with torch.no_grad():
        model.policy.value_net.weight.copy_(torch.tensor([[0.0, 1.0, 0.0]]))
    assert explain(model, states, "value", size=1).entries == (1,)


def test_this_packages_agent_is_explained_in_the_units_of_its_observations() -> None:
    model = STORMPlusPG("MlpPolicy", "Pendulum-v1", n_steps=64, critic_steps=2, seed=0, device="cpu").learn(64)
    states = np.random.default_rng(0).uniform(-1.0, 1.0, size=(40, 3))
    assert outputs(model, states).shape == outputs(model, states, "value").shape == (40, 1)
    with torch.no_grad():
        mean = model.policy.get_distribution(torch.as_tensor(states, dtype=torch.float32)).mode()
    assert outputs(model, states) == pytest.approx(mean.numpy(), abs=1e-6)


def test_what_cannot_be_explained_is_refused() -> None:
    several = PPO("MlpPolicy", IdentityEnvMultiDiscrete(2), **LINEAR)
    with pytest.raises(TypeError, match="a Box space, got"):
        outputs(several, np.zeros((3, 2)))
    with pytest.raises(TypeError, match="expected an ActorCriticPolicy"):
        outputs(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), np.zeros((3, 3)))
    model = PPO("MlpPolicy", "CartPole-v1", **LINEAR)
    with pytest.raises(ValueError, match=r"finite and \(n, \(4,\)\), got \(3, 5\)"):
        outputs(model, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="must be finite"):
        outputs(model, np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="got 'reward'"):
        outputs(model, np.zeros((3, 4)), "reward")  # type: ignore[arg-type]
    model.action_space = spaces.MultiBinary(2)
    with pytest.raises(TypeError, match="Discrete or Box, got MultiBinary"):
        outputs(model, np.zeros((3, 4)))


def test_data_that_cannot_be_regressed_is_refused() -> None:
    inputs, targets = suppressed(20)
    for size, message in ((5, "at most the number of columns, 4, got 5"), (0, "an integer of at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            best_subset(inputs, targets, size)
    with pytest.raises(ValueError, match=r"targets \(n, m\), got \(20, 4\) and \(20,\)"):
        best_subset(inputs, targets[:, 0], 1)
    with pytest.raises(ValueError, match="targets must be finite and change"):
        best_subset(inputs, np.ones((20, 1)), 1)
    with pytest.raises(ValueError, match="inputs must be finite and change"):
        best_subset(np.where(inputs == inputs[0], np.nan, inputs), targets, 1)
