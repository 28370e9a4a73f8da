"""The batched tasks against SB3's `make_vec_env` over gymnasium's own environments."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.batched import BATCHED, BatchedEnv, make_vec
from envs.tasks import TASKS

N_ENVS = 6
# Ends of episodes that the actions below reach: without them the comparison would not see an autoreset.
TERMINATES = set(TASKS) - {"Pendulum-v1"}


def make_gymnasium(env_id: str, n_envs: int = N_ENVS, seed: int | None = None, **kwargs: Any) -> DummyVecEnv:
    env = make_vec_env(env_id, n_envs, seed=seed, **kwargs)
    assert isinstance(env, DummyVecEnv)
    return env


def gymnasium_states(env: DummyVecEnv) -> np.ndarray:
    return np.array([sub_env.unwrapped.state for sub_env in env.envs])  # type: ignore[attr-defined]


def actions_for(env: BatchedEnv, rng: np.random.Generator) -> np.ndarray:
    """Random actions in half of the environments, in the others such that hard episodes end too."""
    half = env.num_envs // 2
    if env.env_id == "CartPole-v1":
        actions = rng.integers(0, 2, env.num_envs)
        x, x_dot, theta, theta_dot = env.state[:, :half]
        actions[:half] = 0.05 * x + 0.1 * x_dot + theta + 0.5 * theta_dot > 0
    elif env.env_id == "Pendulum-v1":
        actions = rng.uniform(-3, 3, (env.num_envs, 1)).astype(np.float32)
        actions[0] = 2.0
    elif env.env_id == "MountainCarContinuous-v0":
        # Beyond the bounds, just at them, and inside.
        actions = rng.uniform(-1.5, 1.5, (env.num_envs, 1)).astype(np.float32)
        actions[:half, 0] = np.sign(env.state[1, :half])
    else:
        actions = rng.integers(0, 3, env.num_envs)
        # Pushing along with the velocity (the first joint's, for the acrobot) pumps energy in.
        velocity = env.state[1 if env.state_size == 2 else 2, :half]
        actions[:half] = 1 + (np.sign(velocity) if env.state_size == 2 else -np.sign(velocity))
    return actions


def assert_same_infos(infos: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for info, wanted in zip(infos, expected, strict=True):
        assert info.keys() == wanted.keys()
        assert info["TimeLimit.truncated"] is wanted["TimeLimit.truncated"]
        if "episode" in wanted:
            np.testing.assert_array_equal(info["terminal_observation"], wanted["terminal_observation"])
            assert info["terminal_observation"].dtype == wanted["terminal_observation"].dtype
            assert info["episode"].keys() == wanted["episode"].keys()
            assert info["episode"]["l"] == wanted["episode"]["l"]
            # Both are rounded to six digits, Monitor's after a sum in another order.
            assert info["episode"]["r"] == pytest.approx(wanted["episode"]["r"], abs=2e-6, rel=0)
            assert [type(info["episode"][key]) for key in "rlt"] == [type(wanted["episode"][key]) for key in "rlt"]


def test_batched_environments_are_tasks_of_the_benchmark() -> None:
    assert BATCHED.keys() <= TASKS.keys()
    assert len(BATCHED) >= 5


@pytest.mark.parametrize("env_id", BATCHED)
def test_thousands_of_steps_resets_and_statistics_equal_gymnasiums(env_id: str) -> None:
    batched, gymnasium = make_vec(env_id, N_ENVS, seed=7), make_gymnasium(env_id, seed=7)
    assert batched.observation_space == gymnasium.observation_space
    assert batched.action_space == gymnasium.action_space
    np.testing.assert_array_equal(batched.reset(), gymnasium.reset())
    rng = np.random.default_rng(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(2000):
        actions = actions_for(batched, rng)
        observations, rewards, dones, infos = batched.step(actions)
        expected_observations, expected_rewards, expected_dones, expected_infos = gymnasium.step(actions)
        if env_id == "Acrobot-v1":
            # `pow` in gymnasium and products here differ in the last bit, and the dynamics is chaotic: every step is
            # compared from gymnasium's state.
            states = gymnasium_states(gymnasium)
            np.testing.assert_allclose(batched.state.T, states, rtol=0, atol=1e-12)
            batched.state[:] = states.T
        else:
            np.testing.assert_array_equal(batched.state.T, gymnasium_states(gymnasium))
        np.testing.assert_array_equal(observations, expected_observations)
        if env_id == "Pendulum-v1":  # the square of the torque
            np.testing.assert_allclose(rewards, expected_rewards, rtol=2e-7, atol=1e-8)
        else:
            np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_array_equal(dones, expected_dones)
        assert_same_infos(infos, expected_infos)
        assert [observations.dtype, rewards.dtype, dones.dtype] == [np.float32, np.float32, np.bool_]
        truncated = sum(info["TimeLimit.truncated"] for info in infos)
        ends["truncated"] += truncated
        ends["terminated"] += int(dones.sum()) - truncated
    assert ends["truncated"] > 0
    assert (ends["terminated"] > 0) == (env_id in TERMINATES)


# Half-widths of the states from which one step is compared: beyond walls, speed limits and angles' range.
STATE_WIDTHS = {
    "CartPole-v1": (3.0, 3.0, 0.3, 3.0),
    "Acrobot-v1": (3.2, 3.2, 13.0, 29.0),
    "MountainCar-v0": (1.3, 0.1),
    "MountainCarContinuous-v0": (1.3, 0.1),
    "Pendulum-v1": (30.0, 9.0),
}


@pytest.mark.parametrize("env_id", BATCHED)
def test_one_step_from_any_state_equals_gymnasiums(env_id: str) -> None:
    rng = np.random.default_rng(0)
    batched, gymnasium = make_vec(env_id, 2000, seed=0), make_gymnasium(env_id, 1, seed=0)
    batched.reset()
    gymnasium.reset()
    batched.state[:] = rng.uniform(-1, 1, batched.state.shape) * np.array(STATE_WIDTHS[env_id])[:, None]
    states = list(batched.state.T.copy())
    if env_id == "MountainCarContinuous-v0":  # float64 in an episode's first step, float32 thereafter
        batched.state[:, ::2] = batched.state[:, ::2].astype(np.float32)
        batched._lengths[::2] = 1
        states[::2] = batched.state.T[::2].astype(np.float32)
    actions = actions_for(batched, rng)
    _, rewards, dones, _ = batched.step(actions)
    single = gymnasium.envs[0].unwrapped
    for index, state in enumerate(states):
        single.state = state  # type: ignore[attr-defined]
        single.steps_beyond_terminated = None  # type: ignore[attr-defined]
        _, reward, terminated, _, _ = single.step(actions[index])
        assert (rewards[index], dones[index]) == (pytest.approx(reward, rel=1e-6), terminated)
        if not terminated:  # else it has been reset
            expected = single.state  # type: ignore[attr-defined]
            np.testing.assert_allclose(batched.state[:, index], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("env_id", BATCHED)
def test_seeds_and_options_apply_once_at_the_next_reset_as_in_gymnasium(env_id: str) -> None:
    batched, gymnasium = make_vec(env_id, N_ENVS, seed=1), make_gymnasium(env_id, seed=1)
    options = {"x_init": 0.5, "y_init": 0.1} if env_id == "Pendulum-v1" else {"low": -0.01, "high": 0.02}
    for env in (batched, gymnasium):
        env.set_options([options, {}] * (N_ENVS // 2))
    seen = []
    for seed in (None, None, 50, None):  # the first reset has seed 1 and the options, the second continues the stream
        if seed is not None:
            assert batched.seed(seed) == gymnasium.seed(seed)
        seen.append(batched.reset())
        np.testing.assert_array_equal(seen[-1], gymnasium.reset())
    assert len({observation.tobytes() for observations in seen for observation in observations}) == 4 * N_ENVS
    for _ in range(300):  # rounding in a first observation's float32 arithmetic shows in few of them
        np.testing.assert_array_equal(batched.reset(), gymnasium.reset())


def test_no_seed_draws_one_from_numpys_global_generator_as_sb3_does() -> None:
    np.random.seed(3)  # noqa: NPY002
    first = make_vec("Pendulum-v1", 2).reset()
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(first, make_gymnasium("Pendulum-v1", 2).reset())


def test_an_episode_that_fails_at_the_time_limit_is_not_truncated() -> None:
    env = make_vec("CartPole-v1", 2, seed=0)
    env.reset()
    state = env.get_state()
    state["lengths"][:] = 499
    state["state"][2] = [0.0, 0.5]  # the second pole has fallen
    env.set_state(state)
    _, _, dones, infos = env.step(np.array([0, 0]))
    assert dones.tolist() == [True, True]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]


@pytest.mark.parametrize("env_id", BATCHED)
def test_nothing_returned_is_shared_with_later_steps(env_id: str) -> None:
    env, twin = make_vec(env_id, 3, seed=0), make_vec(env_id, 3, seed=0)
    env.reset()[:] = 9.0
    twin.reset()
    rng = np.random.default_rng(0)
    for _ in range(250):
        actions = actions_for(twin, rng)
        results, expected = env.step(actions), twin.step(actions)
        for result, wanted in zip(results[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(result, wanted)
            result[:] = 1  # type: ignore[index, call-overload]
        assert_same_infos(results[3], expected[3])
        for info in results[3]:
            info["leak"] = True
            info.get("episode", {}).clear()
            info.get("terminal_observation", np.empty(0)).fill(9.0)


@pytest.mark.parametrize("env_id", BATCHED)
def test_restored_state_continues_exactly_in_a_new_object(env_id: str) -> None:
    env, restored = make_vec(env_id, 3, seed=4), make_vec(env_id, 3, seed=99)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(150):
        observations = env.step(actions_for(env, rng))[0]
    saved = pickle.dumps(env.get_state())
    np.testing.assert_array_equal(restored.set_state(pickle.loads(saved)), observations)
    for _ in range(1000):  # beyond the longest time limit: the generators are restored too
        actions = actions_for(env, rng)
        results, expected = restored.step(actions), env.step(actions)
        for result, wanted in zip(results[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(result, wanted)
        assert_same_infos(results[3], expected[3])


def test_state_keeps_pending_seeds_and_is_not_shared() -> None:
    env, restored = make_vec("CartPole-v1", 2), make_vec("CartPole-v1", 2)
    env.seed(11)
    env.set_options({"low": 0.01, "high": 0.02})
    state = env.get_state()
    observations = env.reset()
    restored.set_state(state)
    np.testing.assert_array_equal(restored.reset(), observations)
    state = env.get_state()
    env.step(np.array([0, 1]))
    np.testing.assert_array_equal(state["observations"], observations)


def test_state_of_another_task_or_number_of_environments_is_refused() -> None:
    state = make_vec("CartPole-v1", 2).get_state()
    with pytest.raises(ValueError, match="of 'CartPole-v1'; this is 'Acrobot-v1'"):
        make_vec("Acrobot-v1", 2).set_state(state)
    with pytest.raises(ValueError, match="of 2 environments; these are 3"):
        make_vec("CartPole-v1", 3).set_state(state)


@pytest.mark.parametrize(
    ("env_id", "actions", "message"),
    [
        ("CartPole-v1", [0, 2], r"\[0, 2\]; CartPole-v1's are 0 to 1"),
        ("CartPole-v1", [-1, 0], r"\[-1, 0\]; CartPole-v1's are 0 to 1"),
        ("CartPole-v1", [0.0, 1.0], "float64; CartPole-v1 expects integers"),
        ("CartPole-v1", [0, 1, 0], r"\(3,\); CartPole-v1 expects \(2,\)"),
        ("Acrobot-v1", [[0], [1]], r"\(2, 1\); Acrobot-v1 expects \(2,\)"),
        ("Pendulum-v1", [0.0, 1.0], r"\(2,\); Pendulum-v1 expects \(2, 1\)"),
        ("Pendulum-v1", [[0.0], [np.nan]], r"nan\]; Pendulum-v1 expects finite"),
        ("MountainCarContinuous-v0", [["a"], ["b"]], "expects floating-point"),
    ],
)
def test_bad_actions_are_named_and_change_nothing(env_id: str, actions: list[Any], message: str) -> None:
    env = make_vec(env_id, 2, seed=0)
    env.reset()
    before = env.state.copy()
    with pytest.raises(ValueError, match=message):
        env.step(np.array(actions))
    np.testing.assert_array_equal(env.state, before)


def test_misuse_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(ValueError, match=r"'Cartpole-v1'; known: CartPole-v1, .*Did you mean CartPole-v1"):
        make_vec("Cartpole-v1")
    with pytest.raises(ValueError, match="n_envs is 0"):
        make_vec("CartPole-v1", 0)
    with pytest.raises(ValueError, match="'human'; a batched environment offers None and 'rgb_array'"):
        make_vec("CartPole-v1", render_mode="human")
    with pytest.raises(RuntimeError, match="reset"):
        make_vec("CartPole-v1").step(np.array([0]))


def test_single_environments_are_reached_by_attribute_and_method() -> None:
    env = make_vec("CartPole-v1", 3, seed=0)
    env.reset()
    assert env.get_attr("gravity") == [9.8] * 3
    assert env.get_attr("spec")[0].id == "CartPole-v1"
    assert env.get_attr("render_mode", indices=1) == [None]
    np.testing.assert_array_equal(env.get_attr("state", indices=[2])[0], env.state[:, 2])
    env.set_attr("state", [0.1, 0.0, 0.0, 0.0], indices=1)
    assert env.state[0].tolist().index(0.1) == 1
    env.set_attr("level", 5, indices=[0, 2])
    assert env.get_attr("level", indices=[0, 2]) == [5, 5]
    assert not env.has_attr("level")  # the middle one has none
    assert not env.has_attr("step")  # the batch's, which takes all environments' actions
    with pytest.raises(AttributeError, match="'gravity' cannot be set"):
        env.set_attr("gravity", 1.0, indices=0)
    before = env.state.copy()
    observation, info = env.env_method("reset", seed=0, indices=1)[0]
    np.testing.assert_array_equal(observation, make_gymnasium("CartPole-v1", 1, seed=0).reset()[0])
    assert info == {}
    np.testing.assert_array_equal(env.state[:, [0, 2]], before[:, [0, 2]])
    assert env.env_method("get_wrapper_attr", "tau") == [0.02] * 3
    # `evaluate_policy` asks for the first; nothing that is not done here is claimed.
    assert env.env_is_wrapped(Monitor) == env.env_is_wrapped(TimeLimit) == [True] * 3
    assert env.env_is_wrapped(TransformReward, indices=0) == [False]


@pytest.mark.parametrize("env_id", BATCHED)
def test_pictures_are_gymnasiums(env_id: str) -> None:
    pytest.importorskip("pygame")
    batched = make_vec(env_id, 2, seed=0, render_mode="rgb_array")
    gymnasium = make_gymnasium(env_id, 2, seed=0, env_kwargs={"render_mode": "rgb_array"})
    batched.reset()
    gymnasium.reset()
    for step in range(201):
        if step in (0, 1, 200):  # Pendulum-v1 shows the torque, and none just after its autoreset at 200 steps
            picture, expected = batched.render(), gymnasium.render()
            assert picture is not None
            assert expected is not None
            np.testing.assert_array_equal(picture, expected)
        actions = np.array([batched.action_space.sample() for _ in range(2)])
        batched.step(actions)
        gymnasium.step(actions)
    batched.close()
    batched.close()
    gymnasium.close()


@pytest.mark.parametrize("env_id", BATCHED)
def test_ppo_learns_the_same_parameters_as_on_gymnasium(env_id: str) -> None:
    # Where states or rewards may differ in the last bit, one step of Adam on one rollout, of which 1e-5 is 3 %: over
    # more steps a difference may grow without bound.
    exact = env_id not in ("Acrobot-v1", "Pendulum-v1")
    arguments: dict[str, Any] = {"batch_size": 128, "n_epochs": 2} if exact else {"batch_size": 256, "n_epochs": 1}
    trained = [
        PPO("MlpPolicy", env, n_steps=64, seed=3, device="cpu", **arguments).learn(4 * 64 * (2 if exact else 1))
        for env in (make_vec(env_id, 4), make_gymnasium(env_id, 4))
    ]
    parameters = [torch.nn.utils.parameters_to_vector(model.policy.parameters()) for model in trained]
    torch.testing.assert_close(parameters[0], parameters[1], rtol=0, atol=0 if exact else 1e-5)
    lengths = [[episode["l"] for episode in model.ep_info_buffer or ()] for model in trained]
    assert lengths[0] == lengths[1]


def test_evaluate_policy_reads_the_statistics_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = PPO("MlpPolicy", make_vec("CartPole-v1"), seed=0, device="cpu")
    batched, gymnasium = (evaluate_policy(model, make("CartPole-v1", 2, 8), 6) for make in (make_vec, make_gymnasium))
    assert batched == gymnasium
    assert not [warning for warning in recwarn if "Monitor" in str(warning.message)]
