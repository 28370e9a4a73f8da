"""Families of cart-poles and pendulums: gymnasium's own with its constants, ranges, signs, one by one or in a batch."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.families import CART_POLE, FAMILIES, PENDULUM, Family


def actions(env: gym.Env[Any, Any], generator: np.random.Generator) -> Any:
    if isinstance(env.action_space, gym.spaces.Discrete):
        return int(generator.integers(2))
    return generator.uniform(-3, 3, 1).astype(np.float32)  # Beyond the limit of the torque, too.


@pytest.mark.parametrize("name", ["cart-poles", "pendulums"])
@pytest.mark.parametrize("batched", [False, True])
def test_with_gymnasiums_constants_a_task_is_gymnasiums_step_for_step(name: str, batched: bool) -> None:
    family, generator = FAMILIES[name], np.random.default_rng(0)
    ours, theirs = family.make(), gym.make(family.env_id)
    batch = family.make_vec([family.defaults], seed=3)
    observation, expected = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    seen = batch.reset()[0]
    for _ in range(450):
        np.testing.assert_array_equal(seen if batched else observation, expected)
        action = actions(theirs, generator)
        expected, *rest, _ = theirs.step(action)
        if batched:
            observations, rewards, dones, _ = batch.step(np.asarray([action]))
            assert rewards[0] == pytest.approx(rest[0], rel=2e-7, abs=1e-8)
            assert bool(dones[0]) == (rest[1] or rest[2])
            seen = observations[0]
        else:
            observation, reward, terminated, truncated, _ = ours.step(action)
            assert [reward, terminated, truncated] == rest
        if rest[1] or rest[2]:
            observation, expected = ours.reset()[0], theirs.reset()[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_drawn_constants_are_those_of_each_environment_of_a_batch(name: str) -> None:
    family, generator = FAMILIES[name], np.random.default_rng(0)
    tasks = family.draw(4, seed=1)
    batch, singles = family.make_vec(tasks, copies=2, seed=5), [family.make(tasks[index // 2]) for index in range(8)]
    observations = batch.reset()
    for index, single in enumerate(singles):
        np.testing.assert_array_equal(observations[index], single.reset(seed=5 + index)[0])
    for _ in range(60):
        chosen = [actions(single, generator) for single in singles]
        observations, rewards, dones, _ = batch.step(np.asarray(chosen))
        for index, single in enumerate(singles):
            expected, reward, terminated, truncated, _ = single.step(chosen[index])
            assert rewards[index] == pytest.approx(reward, rel=1e-6)
            assert bool(dones[index]) == (terminated or truncated)
            if dones[index]:
                expected = single.reset()[0]
            np.testing.assert_allclose(observations[index], expected, rtol=1e-5, atol=1e-6)
    for constant in family.defaults:
        assert batch.get_attr(constant) == [tasks[index // 2][constant] for index in range(8)]


@pytest.mark.parametrize("name", FAMILIES)
def test_constants_fill_their_ranges_and_both_signs_come(name: str) -> None:
    family = FAMILIES[name]
    tasks = family.draw(400, seed=0)
    assert tasks == family.draw(400, seed=0)
    assert tasks != family.draw(400, seed=1)
    for constant, (low, high) in family.ranges.items():
        drawn = np.array([task[constant] for task in tasks])
        assert low <= np.abs(drawn).min() < low + 0.02 * (high - low)
        assert high >= np.abs(drawn).max() > high - 0.02 * (high - low)
        share = (drawn < 0).mean()
        # 4 standard errors of 400 fair coins.
        assert share == 0.0 if constant != family.signed else abs(share - 0.5) < 0.1


def test_a_negative_force_pushes_the_other_way() -> None:
    for name, constant, action in (("cart-poles", "force_mag", 1), ("pendulums", "torque_gain", np.array([1.0]))):
        family = FAMILIES[name]
        value = family.defaults[constant]
        moved = []
        for sign in (1.0, -1.0):
            env = family.make({constant: sign * value})
            start = env.reset(seed=0)[0]
            still = family.make({constant: sign * value / 1e6})
            still.reset(seed=0)
            moved.append(env.step(action)[0] - still.step(action)[0])
        np.testing.assert_allclose(moved[0], -moved[1], atol=0.01 * np.abs(moved[0]).max())
        assert np.abs(moved[0]).max() > 0.01
        assert start.dtype == np.float32


def test_wrong_constants_are_refused() -> None:
    cart_poles, pendulums = FAMILIES["cart-poles"], FAMILIES["pendulums"]
    with pytest.raises(ValueError, match="unknown constant 'mass'; known: masscart"):
        cart_poles.make({"mass": 1.0})
    with pytest.raises(ValueError, match=r"length must be finite and positive, got -1\.0"):
        cart_poles.make_vec([{**CART_POLE, "length": -1.0}])
    with pytest.raises(ValueError, match=r"force_mag must be finite and not 0, got 0\.0"):
        cart_poles.make({"force_mag": 0.0})
    with pytest.raises(ValueError, match=r"at most 1 in magnitude, got 1\.5"):
        pendulums.make({**PENDULUM, "torque_gain": 1.5})
    with pytest.raises(ValueError, match="n_tasks must be at least 1, got 0"):
        Family(PENDULUM, {"m": (0.5, 1.0)}).draw(0, seed=0)
    with pytest.raises(ValueError, match="got 0 tasks and 1 copies"):
        cart_poles.make_vec([])
