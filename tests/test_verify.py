"""Certificates: bounds against brute force, attacks between the two, and what a policy does under perturbation."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from storm_rl import STORMPlusPG
from storm_rl.verify import BoundedNetwork, attack, certify, largest_radius
from tests.contract.cases import RandomEnv

SMALL: dict[str, Any] = {"n_steps": 64, "seed": 0, "device": "cpu"}


def network_of(activation: type[nn.Module], sizes: list[int], seed: int) -> BoundedNetwork:
    generator = torch.Generator().manual_seed(seed)
    weights: list[Tensor] = []
    for n_in, n_out in itertools.pairwise(sizes):
        weights.append(torch.randn(n_out, n_in, generator=generator) * 1.5 / n_in**0.5)
        weights.append(torch.randn(n_out, generator=generator) * 0.3)
    return BoundedNetwork(weights, [activation] * (len(sizes) - 2))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
@pytest.mark.parametrize("sizes", [[2, 3], [2, 6, 3], [2, 6, 6, 3], [2, 5, 5, 5, 3]], ids=str)
@pytest.mark.parametrize("radius", [0.05, 0.5, 2.0])
def test_no_point_of_a_box_is_beyond_the_bound(activation: type[nn.Module], sizes: list[int], radius: float) -> None:
    network = network_of(activation, sizes, seed=len(sizes))
    centre = torch.tensor([[0.3, -0.4], [-1.0, 0.8]], dtype=torch.float64)
    objectives = torch.cat([torch.eye(3), -torch.eye(3)]).double().expand(2, -1, -1)
    bounds = network.upper_bounds(centre - radius, centre + radius, objectives, n_steps=100)
    anytime = network.upper_bounds(centre - radius, centre + radius, objectives, n_steps=3)
    grid = torch.linspace(-radius, radius, 101, dtype=torch.float64)
    points = centre[:, None] + torch.cartesian_prod(grid, grid)
    found = (network(points) @ objectives[0].T).amax(dim=1)
    assert bool((bounds >= found - 1e-9).all())
    assert bool((anytime >= found - 1e-9).all())
    if activation is nn.Identity or len(sizes) == 2:
        torch.testing.assert_close(bounds, found, rtol=0.0, atol=1e-9)
    elif radius == 0.05:
        # Tight where the network is nearly linear.
        slack = (bounds - found) / (found - (network(centre) @ objectives[0].T))
        assert float(slack.max()) < 0.3


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_steps_make_the_bound_tighter_than_intervals(activation: type[nn.Module]) -> None:
    network = network_of(activation, [4, 16, 16, 2], seed=1)
    centre, radius = torch.zeros(1, 4, dtype=torch.float64), 0.3
    objectives = torch.eye(2, dtype=torch.float64)[None]
    hidden: list[tuple[Tensor, Tensor]] = []
    while len(hidden) < 3:
        hidden.append(network._interval(centre - radius, centre + radius, hidden))
    (_, interval), (start, end) = (
        hidden[-1],
        (network.upper_bounds(centre - radius, centre + radius, objectives, n_steps) for n_steps in (0, 200)),
    )
    exact = network(centre)
    assert bool((end < start).all())
    assert bool((end - exact < 0.7 * (interval - exact)).all())


def perturbed(model: Any, observations: np.ndarray, radius: np.ndarray, unit: np.ndarray) -> list[Any]:
    """Deterministic actions at corners and random points of the boxes."""
    generator, found = np.random.default_rng(0), []
    for index in range(200):
        noise = generator.uniform(-1.0, 1.0, observations.shape)
        noise = np.sign(noise) if index % 2 else noise
        seen = observations + radius.reshape(-1, 1) * noise * unit
        normalizer = model.get_vec_normalize_env()
        seen = seen if normalizer is None else normalizer.normalize_obs(seen)
        found.append(model.predict(seen.astype(np.float32), deterministic=True)[0])
    return found


@pytest.mark.parametrize("algorithm", [STORMPlusPG, PPO])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_certified_choice_stays(algorithm: Any, normalised: bool) -> None:
    env: Any = make_vec_env("CartPole-v1", 4, seed=0)
    env = VecNormalize(env) if normalised else env
    model = algorithm("MlpPolicy", env, **SMALL).learn(1_024)
    observations = np.stack([model.observation_space.sample().clip(-3, 3) for _ in range(12)])
    unit = np.array([0.5, 0.4, 0.1, 0.6])
    radius = largest_radius(model, observations, unit=unit, n_steps=5, n_bisections=5)
    assert radius.max() > 0.0
    seen = observations if not normalised else env.normalize_obs(observations)
    chosen = model.predict(seen.astype(np.float32), deterministic=True)[0]
    for actions in perturbed(model, observations, radius, unit):
        np.testing.assert_array_equal(actions[radius > 0.0], chosen[radius > 0.0])
    # What is certified is less than what an attack finds; past the first change of the choice nothing is.
    certified, attacked = (found(model, observations, 0.3, unit, n_steps=10).margins for found in (certify, attack))
    assert certified is not None
    assert attacked is not None
    assert bool((certified <= attacked + 1e-9).all())
    assert not ((certified > 0.0) & (attacked <= 0.0)).any()


@pytest.mark.parametrize("algorithm", [STORMPlusPG, PPO])
def test_a_mean_moves_no_further_than_certified(algorithm: Any) -> None:
    space = spaces.Box(np.array([0.0, -300.0]), np.array([100.0, 300.0]), dtype=np.float32)
    model = algorithm("MlpPolicy", RandomEnv(space, spaces.Box(-1.0, 1.0, (3,))), **SMALL).learn(256)
    observations = np.random.default_rng(0).uniform(-1.0, 1.0, (10, 3))
    bounds = certify(model, observations, 0.2, np.ones(3)).deviations
    found = attack(model, observations, 0.2, np.ones(3)).deviations
    assert bounds is not None
    assert found is not None
    assert bool((found <= bounds + 1e-9).all())
    assert float((found / bounds).min()) > 0.5

    def means(seen: np.ndarray) -> np.ndarray:
        distribution = model.policy.get_distribution(torch.as_tensor(seen))
        return distribution.mode().detach().double().numpy()

    generator = np.random.default_rng(1)
    start = means(observations)
    for _ in range(100):
        moved = means(observations + generator.uniform(-0.2, 0.2, observations.shape))
        assert bool((np.abs(moved - start) <= bounds + 1e-4 * space.high).all())


def test_unit_is_the_policys_own_standard_deviation() -> None:
    model = STORMPlusPG("MlpPolicy", "CartPole-v1", **SMALL).learn(256)
    observations = np.stack([model.observation_space.sample().clip(-1, 1) for _ in range(5)])
    (statistics,) = model.policy.observation_statistics.running.values()
    own = certify(model, observations, 0.1, n_steps=5).margins
    assert own is not None
    same = certify(model, observations, 0.1, statistics.std.double().numpy(), n_steps=5).margins
    np.testing.assert_array_equal(own, same)
    # An observation by itself is what it is among others.
    alone = certify(model, observations[:1], 0.1, n_steps=0).margins
    np.testing.assert_allclose(alone, certify(model, observations, 0.1, n_steps=0).margins[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon must be finite, at least 0, one number or 3 of them, got -0.1"),
        ({"epsilon": np.zeros(2)}, "one number or 3 of them"),
        ({"epsilon": float("nan")}, "epsilon must be finite"),
        ({"epsilon": 0.1, "unit": np.ones(3)}, r"unit must be finite, at least 0 and of shape \(4,\)"),
        ({"epsilon": 0.1, "n_steps": -1}, "n_steps must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = STORMPlusPG("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match=message):
        certify(model, np.zeros((3, 4)), **arguments)
    with pytest.raises(ValueError, match=r"observations must be finite and \(n, \(4,\)\)"):
        certify(model, np.zeros((3, 5)), 0.1)
    with pytest.raises(ValueError, match="observations must be finite"):
        certify(model, np.full((3, 4), np.inf), 0.1)


def test_what_cannot_be_bounded_is_refused() -> None:
    images = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
    pixels = STORMPlusPG("CnnPolicy", RandomEnv(None, images), **SMALL)
    with pytest.raises(TypeError, match="no image"):
        certify(pixels, np.zeros((1, 1, 36, 36)), 0.1)
    smooth = STORMPlusPG("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": nn.ELU}, **SMALL)
    with pytest.raises(TypeError, match="tanh or ReLU"):
        certify(smooth, np.zeros((1, 4)), 0.1)
    several = STORMPlusPG("MlpPolicy", RandomEnv(spaces.MultiDiscrete([2, 2]), spaces.Box(-1.0, 1.0, (2,))), **SMALL)
    with pytest.raises(TypeError, match="actions must be Discrete"):
        certify(several, np.zeros((1, 2)), 0.1)
    means = STORMPlusPG("MlpPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="compare `deviations`"):
        largest_radius(means, np.zeros((1, 3)))
