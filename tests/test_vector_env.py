"""`VectorEnvAdapter` over every kind of vector environment against SB3's `DummyVecEnv`."""

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import ClipReward, NormalizeReward, RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from storm_rl import STORMPlusPG

# gymnasium's autoreset modes came with 1.1.
vector = pytest.importorskip("gymnasium.vector")
AutoresetMode = getattr(vector, "AutoresetMode", None)
if AutoresetMode is None:
    pytest.skip("this gymnasium has no autoreset modes", allow_module_level=True)

from storm_rl.common.environment_state import environment_state, restore_environment  # noqa: E402
from storm_rl.vector_env import VectorEnvAdapter  # noqa: E402

N_ENVS = 3
MODES = list(AutoresetMode)


class Counting(gym.Env[dict[str, Any], np.ndarray]):
    """Dict observations, and infos of every kind. Ends at 7 and is cut off at 4 or 7, whichever its seed says."""

    observation_space = gym.spaces.Dict(
        {"count": gym.spaces.Box(0, 9, (1,), np.float64), "picture": gym.spaces.Box(0, 255, (2, 2, 1), np.uint8)}
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    unit = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.limit = 0, int(self.np_random.choice([4, 7]))
        return self.observation(), {"limit": self.limit, "start": (options or {}).get("start", "here")}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        info: dict[str, Any] = {"sum": float(action.sum()), "nested": {"count": self.count, "both": action.copy()}}
        if self.count % 2:
            info["odd"] = f"{self.count}"
        return self.observation(), self.unit * self.count, self.count == 7, self.count == self.limit, info

    def observation(self) -> dict[str, Any]:
        return {"count": np.array([self.count / self.limit]), "picture": np.full((2, 2, 1), self.count, np.uint8)}

    def scaled(self, factor: float) -> float:
        return factor * self.unit


gym.register("Counting-v0", Counting)
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"max_episode_steps": 18},  # Some poles fall before, some do not.
    "Pendulum-v1": {"max_episode_steps": 15},
    "FrozenLake-v1": {},
    "Counting-v0": {},
}


def make(
    env_id: str, kind: str = "sync", mode: Any = AutoresetMode.NEXT_STEP, n_envs: int = N_ENVS, **kwargs: Any
) -> VectorEnvAdapter:
    vector_kwargs = {"autoreset_mode": mode, **kwargs.pop("vector_kwargs", {})}
    return VectorEnvAdapter(gym.make_vec(env_id, n_envs, kind, vector_kwargs, **kwargs))


def make_cart_poles(kind: str, n_envs: int) -> VectorEnvAdapter:
    """The environments of this process whose state can be kept, in each version of gymnasium."""
    if kind == "sync":  # Some versions' `make_vec` leaves a generator in it, which is no plain data.
        return VectorEnvAdapter(gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(n_envs)]))
    return VectorEnvAdapter(gym.make_vec("CartPole-v1", n_envs, kind))


def make_dummy(env_id: str, n_envs: int = N_ENVS, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([partial(gym.make, env_id, **kwargs)] * n_envs)


@pytest.fixture
def closing() -> Iterator[Callable[[VecEnv], VecEnv]]:
    """Closes what it was given when the test ends, however it ends: worker processes outlive a failure otherwise."""
    given: list[VecEnv] = []

    def note(env: VecEnv) -> VecEnv:
        given.append(env)
        return env

    yield note
    for env in given:
        env.close()


def assert_same(result: Any, expected: Any) -> None:
    """Equal bit for bit, through dicts, lists and tuples; numpy's scalars as Python's."""
    if isinstance(expected, dict):
        assert sorted(result) == sorted(expected)
        for key in expected:
            assert_same(result[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(result, expected)
    else:
        assert result == expected


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_step_is_that_of_sb3s_own_vec_env(kind: str, env_id: str, mode: Any, closing: Any) -> None:
    adapter = closing(make(env_id, kind, mode, **ENVIRONMENTS[env_id]))
    dummy = make_dummy(env_id, **ENVIRONMENTS[env_id])
    assert adapter.observation_space == dummy.observation_space
    assert adapter.action_space == dummy.action_space
    adapter.action_space.seed(0)
    ends = {"terminated": 0, "truncated": 0, "together": 0}
    for seed in (3, None):  # A second reset goes on with the generators as they are.
        for env in (adapter, dummy):
            if seed is not None:
                assert env.seed(seed) == [3, 4, 5]
            if env_id == "Counting-v0":
                env.set_options({"start": "there"})
        assert_same(adapter.reset(), dummy.reset())
        assert_same(adapter.reset_infos, dummy.reset_infos)
        for _ in range(60):
            actions = np.stack([adapter.action_space.sample() for _ in range(N_ENVS)])
            results, expected = adapter.step(actions), dummy.step(actions)
            if env_id == "FrozenLake-v1":
                # Of another type at a reset than at a step, which gymnasium's same-step mode makes one array of.
                for info in (*results[3], *expected[3], *adapter.reset_infos, *dummy.reset_infos):
                    info.pop("prob", None)
            assert_same(results, expected)
            assert_same(adapter.reset_infos, dummy.reset_infos)
            cut = np.array([info["TimeLimit.truncated"] for info in results[3]])
            ends["truncated"] += int(cut.sum())
            ends["terminated"] += int((results[2] & ~cut).sum())
            ends["together"] += int(results[2].sum() > 1)
    assert ends["together"]
    assert bool(ends["terminated"]) == (env_id != "Pendulum-v1")
    assert bool(ends["truncated"]) == (env_id != "FrozenLake-v1")


def assert_cart_poles(adapter: VecEnv, n_steps: int, limit: int, exact: bool) -> list[int]:
    """Each transition is that of gymnasium's single CartPole; returns the lengths of episodes.

    Its state is float64, its observation float32, which ``exact`` says whether to start from.
    """
    single, rng, lengths = gym.make("CartPole-v1").unwrapped, np.random.default_rng(0), []
    single.reset()

    def states(seen: np.ndarray) -> np.ndarray:
        return adapter.unwrapped.env.state.T.copy() if exact else seen.astype(np.float64)  # type: ignore[attr-defined]

    def assert_start(observation: np.ndarray) -> None:
        assert (np.abs(observation) <= 0.05).all()

    adapter.seed(0)
    observations = adapter.reset()
    assert isinstance(observations, np.ndarray)
    before, ages = states(observations), np.zeros(adapter.num_envs, dtype=int)
    for observation in observations:
        assert_start(observation)
    for _ in range(n_steps):
        actions = rng.integers(0, 2, adapter.num_envs)
        observations, rewards, dones, infos = adapter.step(actions)
        assert isinstance(observations, np.ndarray)
        ages += 1
        for index, (state, action) in enumerate(zip(before, actions, strict=True)):
            single.state, single.steps_beyond_terminated = state.copy(), None  # type: ignore[attr-defined]
            expected, reward, terminated, _, _ = single.step(action)
            reached = infos[index]["terminal_observation"] if dones[index] else observations[index]
            np.testing.assert_allclose(reached, expected, rtol=0, atol=0 if exact else 1e-5)
            assert rewards[index] == reward == 1
            assert dones[index] == (terminated or ages[index] == limit)
            if not (terminated and ages[index] == limit):
                assert infos[index]["TimeLimit.truncated"] == (ages[index] == limit)
            assert ("terminal_observation" in infos[index]) == dones[index]
            if dones[index]:
                assert_start(observations[index])
                lengths.append(int(ages[index]))
                ages[index] = 0
        before = states(observations)
    assert limit in lengths
    assert min(lengths) < limit
    return lengths


def test_gymnasiums_cart_poles_on_arrays_take_no_step_for_a_reset() -> None:
    env = gym.make_vec("CartPole-v1", 5, "vector_entry_point", max_episode_steps=22)
    assert_cart_poles(VectorEnvAdapter(env), 300, 22, exact=True)


def test_gymnasiums_cart_poles_start_where_their_own_autoreset_would() -> None:
    raw = gym.make_vec("CartPole-v1", 1, "vector_entry_point")
    adapter = VectorEnvAdapter(gym.make_vec("CartPole-v1", 1, "vector_entry_point"))
    adapter.seed(7)
    assert_same(adapter.reset(), raw.reset(seed=7)[0])
    for _ in range(5):
        done = False
        while not done:
            observations, rewards, dones, infos = adapter.step(np.ones(1, dtype=int))
            expected, reward, terminated, truncated, _ = raw.step(np.ones(1, dtype=int))
            assert_same((rewards, dones), (reward, terminated | truncated))
            done = bool(dones[0])
            if not done:
                assert_same(observations, expected)
        assert_same(infos[0]["terminal_observation"], expected[0])
        assert_same(observations, raw.step(np.ones(1, dtype=int))[0])


def test_observations_are_kept_from_environments_that_write_into_them_again() -> None:
    adapter = make("Counting-v0", vector_kwargs={"copy": False})
    kept = [adapter.reset()]
    for _ in range(20):
        kept.append(adapter.step(np.zeros((N_ENVS, 2), np.float32))[0])
    counts = [observations["picture"][0, 0, 0, 0] for observations in kept]  # type: ignore[call-overload]
    assert counts[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_monitor_inside_is_seen_and_its_episodes_are_read(mode: Any, closing: Any) -> None:
    for kind in ("sync", "async"):
        adapter = closing(make("CartPole-v1", kind, mode, wrappers=[Monitor], max_episode_steps=10))
        assert adapter.env_is_wrapped(Monitor) == [True] * N_ENVS
        assert adapter.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0]) == [True]
        assert adapter.env_is_wrapped(gym.wrappers.ClipAction, indices=1) == [False]
        model = PPO("MlpPolicy", adapter, n_steps=16, batch_size=48, n_epochs=1, device="cpu", seed=0).learn(48)
        assert model.ep_info_buffer
        assert {"r", "l", "t"} <= set(model.ep_info_buffer[0])
        assert evaluate_policy(model, adapter, n_eval_episodes=2)[0] > 5


@pytest.mark.parametrize("kind", ["vector_entry_point", "sync"])
def test_the_agent_learns_logs_saves_and_loads(kind: str, tmp_path: Any) -> None:
    def wrapped() -> VecNormalize:
        return VecNormalize(VecMonitor(make_cart_poles(kind, 8)))

    model = STORMPlusPG("MlpPolicy", wrapped(), n_steps=16, seed=0, device="cpu").learn(256)
    assert model.ep_info_buffer
    model.save(tmp_path / "model", include=["env_state"])
    assert evaluate_policy(model, wrapped(), n_eval_episodes=8)[0] > 5
    learned = []
    for _ in range(2):
        again = STORMPlusPG.load(tmp_path / "model", wrapped(), device="cpu")
        learned.append(list(again.learn(128, reset_num_timesteps=False).policy.parameters()))
    for one, other in zip(*learned, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["vector_entry_point", "sync"])
def test_a_restored_environment_goes_on_exactly(kind: str) -> None:
    first, second = (make_cart_poles(kind, N_ENVS) for _ in range(2))
    first.reset()
    rng = np.random.default_rng(0)
    for _ in range(50):
        first.step(rng.integers(0, 2, N_ENVS))
    file = io.BytesIO()
    torch.save(environment_state(first), file)
    file.seek(0)
    restore_environment(second, torch.load(file, weights_only=True))
    for _ in range(100):
        actions = rng.integers(0, 2, N_ENVS)
        assert_same(second.step(actions), first.step(actions))


def test_the_state_of_worker_processes_cannot_be_kept(closing: Any) -> None:
    adapter = closing(make("CartPole-v1", "async"))
    adapter.reset()
    with pytest.raises(ValueError, match=r"state cannot be kept: VectorEnvAdapter\.env\.parent_pipes"):
        environment_state(adapter)


def test_attributes_and_methods_of_single_environments() -> None:
    adapter = make("Counting-v0")
    adapter.seed(0)
    adapter.reset()
    assert adapter.get_attr("count") == [0, 0, 0]
    adapter.set_attr("unit", 2.0, indices=[0, 2])
    adapter.set_attr("unit", [5.0], indices=1)
    assert adapter.get_attr("unit") == [2.0, [5.0], 2.0]
    assert adapter.get_attr("unit", indices=1) == [[5.0]]
    assert adapter.env_method("scaled", factor=3.0, indices=[2, 0]) == [6.0, 6.0]
    assert callable(adapter.get_attr("scaled")[0])
    assert adapter.has_attr("limit")
    assert not adapter.has_attr("nothing")
    assert adapter.get_attr("spec")[0].id == "Counting-v0"


def test_attributes_and_methods_of_worker_processes(closing: Any) -> None:
    adapter = closing(make("Counting-v0", "async"))
    adapter.reset()
    adapter.set_attr("unit", [5.0])
    assert adapter.get_attr("unit", indices=[1]) == [[5.0]]
    adapter.set_attr("unit", 5.0)
    assert adapter.env_method("scaled", 3.0) == [15.0] * N_ENVS
    with pytest.raises(AttributeError, match="have no attribute 'nothing'"):
        adapter.env_method("nothing")
    assert not adapter.has_attr("nothing")
    together = r"indices are \[0\]; AsyncVectorEnv.* reaches its 3 environments together only"
    with pytest.raises(ValueError, match=together):
        adapter.set_attr("unit", 1.0, indices=0)
    with pytest.raises(ValueError, match=together):
        adapter.env_method("scaled", 1.0, indices=[0])
    assert adapter.step(np.zeros((N_ENVS, 2), np.float32))[1].tolist() == [5.0] * N_ENVS  # No worker was shut down.


def test_attributes_and_methods_of_environments_that_are_one_object() -> None:
    adapter = VectorEnvAdapter(gym.make_vec("CartPole-v1", 2, "vector_entry_point"))
    adapter.set_attr("gravity", 1.6)
    assert adapter.get_attr("gravity", indices=1) == [1.6]
    assert adapter.env_is_wrapped(Monitor) == [False, False]
    assert len(adapter.env_method("reset", seed=1)) == 2
    with pytest.raises(AttributeError, match="nothing"):
        adapter.get_attr("nothing")
    with pytest.raises(ValueError, match="together only"):
        adapter.set_attr("gravity", 9.8, indices=[0])


@pytest.mark.parametrize("kind", ["vector_entry_point", "sync"])
def test_pictures_are_tiled_as_sb3_does(kind: str) -> None:
    pytest.importorskip("pygame")
    adapter = VectorEnvAdapter(gym.make_vec("CartPole-v1", 2, kind, render_mode="rgb_array"))
    adapter.reset()
    picture = adapter.render()
    assert adapter.render_mode == "rgb_array"
    assert picture is not None
    assert picture.shape == (800, 600, 3)
    assert 0 < picture.mean() < 255
    adapter.close()
    unseen = VectorEnvAdapter(gym.make_vec("CartPole-v1", 2, kind))
    assert unseen.get_images() == [None, None]
    with pytest.warns(UserWarning, match="render_mode"):
        assert unseen.render() is None


class Nameless(gym.vector.VectorEnv[Any, Any, Any]):
    """Does not say its autoreset mode, or one it does not keep to."""

    num_envs, spec = 2, None
    single_observation_space, single_action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def step(self, actions: Any) -> Any:
        return np.zeros((2, 1), np.float32), np.zeros(2), np.array([True, False]), np.zeros(2, bool), {}


class Later(Nameless):
    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}


class AtOnce(Nameless):
    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP}


class WithStatistics(AtOnce):
    """Its infos are laid out as gymnasium's `RecordEpisodeStatistics` has them around a same-step autoreset."""

    def step(self, actions: Any) -> Any:
        last = np.array([np.ones(1, np.float32), None], dtype=object)
        first = np.array([True, False])
        info = {"final_obs": last, "_final_obs": first, "final_info": {"x": np.arange(2), "_x": first}}
        info |= {"_final_info": first, "x": np.array([7, 8]), "_x": np.array([True, True])}
        info |= {"episode": {"r": np.array([3.0, 0.0]), "l": np.array([4, 0])}, "_episode": first}
        return *super().step(actions)[:4], info


def test_episode_statistics_of_a_same_step_autoreset_are_the_ended_episodes() -> None:
    adapter = VectorEnvAdapter(WithStatistics())
    infos = adapter.step(np.zeros(2, dtype=int))[3]
    ended = {"x": 0, "episode": {"r": 3.0, "l": 4}, "terminal_observation": np.ones(1, np.float32)}
    assert_same(infos, [{**ended, "TimeLimit.truncated": False}, {"x": 8, "TimeLimit.truncated": False}])
    assert_same(adapter.reset_infos, [{"x": 7}, {}])


def statistics(mode: Any) -> Any:
    return RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 2, "sync", vector_kwargs={"autoreset_mode": mode}))


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        (lambda: gym.make("CartPole-v1"), TypeError, "TimeLimit.*not a gymnasium.vector.VectorEnv.*make_vec_env"),
        (lambda: make_dummy("CartPole-v1"), TypeError, "env is a DummyVecEnv"),
        (Nameless, ValueError, r"metadata\['autoreset_mode'\] is None; .*AutoresetMode"),
        (Later, ValueError, "none alone; pass make_vec vectorization_mode='sync'.*SAME_STEP"),
        (
            lambda: ClipReward(gym.make_vec("CartPole-v1", 2, "vector_entry_point"), max_reward=0.5),
            ValueError,
            "adapted without vector wrappers",
        ),
        (lambda: statistics(AutoresetMode.NEXT_STEP), ValueError, "counts wrongly.*VecMonitor"),
        (lambda: ClipReward(statistics(AutoresetMode.DISABLED), max_reward=0.5), ValueError, "counts wrongly"),
        (lambda: NormalizeReward(gym.make_vec("CartPole-v1", 2, "sync")), ValueError, "VecNormalize"),
    ],
)
def test_environments_that_cannot_keep_sb3s_contract_are_refused(env: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        VectorEnvAdapter(env())


def test_worker_processes_that_would_reset_twice_are_refused() -> None:
    env = gym.make_vec("CartPole-v1", 2, "async", vector_kwargs={"shared_memory": False})
    with pytest.raises(ValueError, match="would reset twice; pass make_vec"):
        VectorEnvAdapter(env)
    env.close()


def test_faults_found_later_are_named() -> None:
    with pytest.raises(ValueError, match="its infos hold no 'final_obs'"):
        VectorEnvAdapter(AtOnce()).step(np.zeros(2, dtype=int))
    adapter = make("Counting-v0", n_envs=2)
    adapter.set_options([{"start": "here"}, {"start": "there"}])
    with pytest.raises(ValueError, match=r"options are .*the same for all"):
        adapter.reset()


# EnvPool, which `pip install storm-rl[envpool]` brings.


def make_envpool(env_id: str, n_envs: int, **kwargs: Any) -> VectorEnvAdapter:
    envpool = pytest.importorskip("envpool")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its spaces' bounds are float64.
        return VectorEnvAdapter(envpool.make_gymnasium(env_id, num_envs=n_envs, num_threads=1, **kwargs))


@pytest.mark.filterwarnings("ignore:EnvPool seeds are fixed:UserWarning")
def test_envpools_cart_poles_take_no_step_for_a_reset() -> None:
    assert_cart_poles(make_envpool("CartPole-v1", 5, seed=1, max_episode_steps=22), 150, 22, exact=False)


def test_envpools_infos_and_resets_are_each_environments_own() -> None:
    adapter = make_envpool("CartPole-v1", 4, seed=1)
    adapter.reset()
    for actions in np.random.default_rng(0).integers(0, 2, (100, 4)):
        _, _, dones, infos = adapter.step(actions)
        assert [info["env_id"] for info in infos] == [info["env_id"] for info in adapter.reset_infos] == [0, 1, 2, 3]
        assert all(adapter.reset_infos[index]["elapsed_step"] == 0 for index in dones.nonzero()[0])
    adapter.seed(3)
    with pytest.warns(UserWarning, match="EnvPool seeds are fixed"):
        adapter.reset()


def test_the_agent_learns_on_envpool_and_its_state_cannot_be_kept(tmp_path: Any) -> None:
    env = VecMonitor(make_envpool("Pendulum-v1", 4, seed=1))
    model = STORMPlusPG("MlpPolicy", env, n_steps=64, device="cpu").learn(1024)
    assert model.ep_info_buffer
    assert model.ep_info_buffer[0]["l"] == 200
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"state cannot be kept: VecMonitor\.venv\.env"):
        model.save(tmp_path / "model", include=["env_state"])


def test_envpools_steps_of_some_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="steps some environments at a time; leave out batch_size"):
        make_envpool("CartPole-v1", 4, batch_size=2)


@pytest.mark.slow
def test_envpools_returns_under_random_actions_are_distributed_as_gymnasiums() -> None:
    """Two-sample Kolmogorov-Smirnov; false alarms one in a thousand seeds, and the seeds are fixed."""
    stats = pytest.importorskip("scipy.stats")

    def returns(adapter: VecEnv) -> list[float]:
        env, found = VecMonitor(adapter), []
        env.seed(0)
        env.reset()
        for actions in np.random.default_rng(0).integers(0, 2, (1_000, env.num_envs)):
            found += [info["episode"]["r"] for info in env.step(actions)[3] if "episode" in info]
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = returns(make_envpool("CartPole-v1", 16, seed=5))
    reference = returns(make_dummy("CartPole-v1", 16))
    assert min(len(ours), len(reference)) > 500
    assert stats.ks_2samp(ours, reference).pvalue > 1e-3
