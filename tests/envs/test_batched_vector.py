"""The batched tasks behind gymnasium's `VectorEnv` interface against `SyncVectorEnv` in the same autoreset mode."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import ClipReward, RecordEpisodeStatistics

from envs.batched import BATCHED
from envs.batched.gymnasium_vector import BatchedVectorEnv, make_vector_env
from tests.envs.test_batched import N_ENVS, TERMINATES, actions_for


@pytest.fixture(autouse=True)
def gymnasiums_own_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo, once imported anywhere in this process, puts a subclass with other flags and infos in its place."""
    own = next(kind for kind in gym.wrappers.TimeLimit.__mro__ if kind.__module__.startswith("gymnasium."))
    monkeypatch.setattr(gym.wrappers, "TimeLimit", own)


def make_sync(env_id: str, n_envs: int = N_ENVS, **kwargs: Any) -> SyncVectorEnv:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = gym.make_vec(env_id, n_envs, vectorization_mode="sync", vector_kwargs=same_step, **kwargs)
    assert isinstance(env, SyncVectorEnv)
    return env


def sync_states(env: SyncVectorEnv) -> np.ndarray:
    return np.array([sub_env.unwrapped.state for sub_env in env.envs])  # type: ignore[attr-defined]


def assert_same(result: Any, expected: Any) -> None:
    """Equal bit for bit, in type, dtype, shape, and dicts in the order of their keys."""
    assert type(result) is type(expected)
    if isinstance(expected, dict):
        assert list(result) == list(expected)
        for key in expected:
            assert_same(result[key], expected[key])
    elif isinstance(expected, tuple) or (isinstance(expected, np.ndarray) and expected.dtype == object):
        for one, other in zip(result, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(result, expected)
    else:
        assert result == expected


@pytest.mark.parametrize("env_id", BATCHED)
def test_thousands_of_steps_and_resets_equal_sync_vector_envs(env_id: str) -> None:
    batched, sync = make_vector_env(env_id, N_ENVS), make_sync(env_id)
    assert_same(batched.reset(seed=7), sync.reset(seed=7))
    rng = np.random.default_rng(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(2000):
        actions = actions_for(batched.batch, rng)
        observations, rewards, terminations, truncations, infos = batched.step(actions)
        expected = sync.step(actions)
        if env_id == "Acrobot-v1":  # every step is compared from gymnasium's state, as in the test of the dynamics
            np.testing.assert_allclose(batched.batch.state.T, sync_states(sync), rtol=0, atol=1e-12)
            batched.batch.state[:] = sync_states(sync).T
        if env_id == "Pendulum-v1":  # the square of the torque
            assert rewards.dtype == expected[1].dtype
            np.testing.assert_allclose(rewards, expected[1], rtol=0, atol=1e-8)
        else:
            assert_same(rewards, expected[1])
        assert_same(observations, expected[0])
        assert_same((terminations, truncations), expected[2:4])
        assert_same(infos, expected[4])
        ends["terminated"] += int(terminations.sum())
        ends["truncated"] += int(truncations.sum())
    assert ends["truncated"] > 0
    assert (ends["terminated"] > 0) == (env_id in TERMINATES)


@pytest.mark.parametrize("env_id", BATCHED)
def test_spaces_and_metadata_are_sync_vector_envs(env_id: str) -> None:
    batched, sync = make_vector_env(env_id, 3), make_sync(env_id, 3)
    for name in ("single_observation_space", "single_action_space", "observation_space", "action_space", "num_envs"):
        assert getattr(batched, name) == getattr(sync, name)
    assert batched.metadata == {**sync.metadata, "render_modes": ["rgb_array"]}
    assert batched.spec is not None
    assert batched.spec.id == env_id
    assert repr(batched) == f"BatchedVectorEnv({env_id}, num_envs=3)"
    batched.reset(seed=0)
    batched.step(batched.action_space.sample())


def test_an_episode_that_fails_at_the_time_limit_is_terminated_and_truncated() -> None:
    batched, sync = make_vector_env("CartPole-v1", 2), make_sync("CartPole-v1", 2)
    assert_same(batched.reset(seed=0), sync.reset(seed=0))
    batched.batch._lengths[:] = 499
    batched.batch.state[2, 1] = 0.3  # the second pole has fallen
    for env, state in zip(sync.envs, batched.batch.state.T, strict=True):
        env.set_wrapper_attr("_elapsed_steps", 499)
        env.unwrapped.state = state.copy()  # type: ignore[attr-defined]
    results = batched.step(np.array([0, 0]))
    assert_same(results, sync.step(np.array([0, 0])))
    assert [done.tolist() for done in results[2:4]] == [[False, True], [True, True]]


@pytest.mark.parametrize("env_id", BATCHED)
def test_seeds_options_and_masks_reset_as_sync_vector_env_does(env_id: str) -> None:
    batched, sync = make_vector_env(env_id, 3), make_sync(env_id, 3)
    bounds = {"x_init": 0.5, "y_init": 0.1} if env_id == "Pendulum-v1" else {"low": -0.01, "high": 0.02}
    some = {"reset_mask": np.array([True, False, True])}
    calls: list[dict[str, Any]] = [
        {"seed": 5},
        {},
        {"seed": [8, None, 3]},
        {"options": bounds},
        {"options": some},
        {"seed": 9, "options": {**bounds, **some}},
        {"seed": (1, 1, 2), "options": {}},
    ]
    for call in calls:
        given = copy.deepcopy(call)
        results = batched.reset(**given)
        assert_same(given.get("options", {}), call.get("options", {}))  # `SyncVectorEnv` takes the mask out
        assert_same(results, sync.reset(**copy.deepcopy(call)))
        states = [generator.bit_generator.state for generator in batched.np_random]
        assert states == [generator.bit_generator.state for generator in sync.np_random]
        actions = batched.action_space.sample()
        assert_same(batched.step(actions)[0], sync.step(actions)[0])


def test_the_same_seed_gives_the_same_run_and_another_a_different_one() -> None:
    def run(seed: int) -> list[Any]:
        env = make_vector_env("CartPole-v1", 3)
        actions = np.random.default_rng(0).integers(0, 2, (200, 3))
        return [env.reset(seed=seed), *map(env.step, actions)]

    for results, expected in zip(run(3), run(3), strict=True):
        assert_same(results, expected)
    assert not np.array_equal(run(3)[0][0], run(4)[0][0])


def test_a_masked_reset_leaves_the_other_episodes_their_length() -> None:
    env = make_vector_env("MountainCar-v0", 2)
    env.reset(seed=0)
    for _ in range(150):
        env.step(np.array([1, 1]))
    env.reset(options={"reset_mask": np.array([True, False])})
    ends = [env.step(np.array([1, 1]))[3].tolist() for _ in range(200)]
    assert [step for step, end in enumerate(ends, start=1) if end[0]] == [200]
    assert [step for step, end in enumerate(ends, start=1) if end[1]] == [50]


def test_gymnasiums_wrappers_of_statistics_and_rewards_give_the_same() -> None:
    def run(env: BatchedVectorEnv | SyncVectorEnv) -> tuple[list[Any], list[Any], list[Any]]:
        statistics = RecordEpisodeStatistics(env)
        wrapped = ClipReward(statistics, max_reward=0.5)
        wrapped.reset(seed=1)
        infos = []
        for actions in np.random.default_rng(0).integers(0, 2, (300, N_ENVS)):
            _, rewards, _, _, info = wrapped.step(actions)
            assert rewards.tolist() == [0.5] * N_ENVS
            info.get("episode", {}).pop("t", None)
            infos.append(info)
        return list(statistics.return_queue), list(statistics.length_queue), infos

    batched, sync = run(make_vector_env("CartPole-v1", N_ENVS)), run(make_sync("CartPole-v1"))
    assert len(batched[0]) > N_ENVS
    assert batched[:2] == sync[:2]
    for info, expected in zip(batched[2], sync[2], strict=True):
        assert_same(info, expected)


@pytest.mark.parametrize("env_id", BATCHED)
def test_nothing_returned_is_shared_with_later_steps(env_id: str) -> None:
    env, written_to = make_vector_env(env_id, 3), make_vector_env(env_id, 3)
    results: tuple[Any, ...] = env.reset(seed=0)
    kept = [(results, copy.deepcopy(results))]
    written_to.reset(seed=0)[0].fill(9.0)
    rng = np.random.default_rng(0)
    for _ in range(250):
        actions = actions_for(env.batch, rng)
        results, others = env.step(actions), written_to.step(actions)
        assert_same(others, results)
        kept.append((results, copy.deepcopy(results)))
        for array in [*others[:4], *others[4].get("final_obs", [])]:
            if array is not None:
                array.fill(1)
    for returned, at_the_time in kept:
        assert_same(returned, at_the_time)


def test_restored_state_of_the_batch_continues_exactly() -> None:
    env, restored = make_vector_env("MountainCarContinuous-v0", 2), make_vector_env("MountainCarContinuous-v0", 2)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        env.step(actions_for(env.batch, rng))
    restored.batch.set_state(env.batch.get_state())
    for _ in range(1000):
        actions = actions_for(env.batch, rng)
        assert_same(restored.step(actions), env.step(actions))


def test_pictures_are_gymnasiums() -> None:
    pytest.importorskip("pygame")
    batched, sync = make_vector_env("CartPole-v1", 2, "rgb_array"), make_sync("CartPole-v1", 2, render_mode="rgb_array")
    batched.reset(seed=0)
    sync.reset(seed=0)
    batched.step(np.array([0, 1]))
    sync.step(np.array([0, 1]))
    assert batched.render_mode == sync.render_mode
    for picture, expected in zip(batched.render(), sync.render(), strict=True):
        assert_same(picture, expected)
    batched.close()
    batched.close()
    assert batched.closed
    assert batched.batch._renderer is None
    assert make_vector_env("CartPole-v1", 2).render() == (None, None)


MASK = r"it must be bool, of shape \(2,\), with at least one True"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1, 2, 3]}, ValueError, "3 seeds for 2 environments"),
        ({"seed": []}, ValueError, "0 seeds for 2 environments"),
        ({"seed": 1.5}, gym.error.Error, "Seed must be a python integer"),
        ({"seed": -1}, gym.error.Error, "greater or equal to zero, actual value: -1"),
        ({"options": {"reset_mask": np.array([1, 0])}}, ValueError, MASK),
        ({"options": {"reset_mask": np.array([True])}}, ValueError, MASK),
        ({"options": {"reset_mask": np.array([False, False])}}, ValueError, MASK),
        ({"options": {"low": 0.2, "high": 0.1}}, ValueError, r"Lower bound \(0.2\)"),
        ({"options": {"low": "left"}}, ValueError, "could not be converted to a float"),
    ],
)
def test_bad_seeds_and_options_are_named_and_start_no_episode(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    env = make_vector_env("CartPole-v1", 2)
    with pytest.raises(error, match=message):
        env.reset(**arguments)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0, 0]))


def test_misuse_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(ValueError, match=r"'Cartpole-v1'; known: CartPole-v1, .*Did you mean CartPole-v1"):
        make_vector_env("Cartpole-v1")
    with pytest.raises(ValueError, match="n_envs is 0"):
        make_vector_env("CartPole-v1", 0)
    env = make_vector_env("CartPole-v1", 2)
    with pytest.raises(RuntimeError, match=r"first reset\(\) must be of all environments"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset()
    with pytest.raises(ValueError, match=r"\[0, 2\]; CartPole-v1's are 0 to 1"):
        env.step(np.array([0, 2]))
