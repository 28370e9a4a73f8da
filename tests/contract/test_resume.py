"""A saved run goes on as if nothing had happened, and files are whole and ours, or refused."""

import copy
import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

import storm_rl
from envs.batched import make_vec
from storm_rl import GPOMDP, SRVRPG, SVRPG, STORMPlusPG
from storm_rl.common.environment_state import environment_state, restore_environment
from tests.contract.cases import (
    ALGORITHMS,
    OBSERVATION_SPACES,
    VECTOR,
    RandomEnv,
    assert_equal_states,
    learning_rate_argument,
    parameters,
    small,
)

ENVIRONMENTS: dict[str, Any] = {
    "cart_pole": lambda: make_vec_env("CartPole-v1", 2, seed=0),
    "acrobot": lambda: make_vec_env("Acrobot-v1", 2, seed=0),
    "pendulum": lambda: make_vec_env("Pendulum-v1", 2, seed=0),
    "mountain_car": lambda: make_vec_env("MountainCar-v0", 2, seed=0),
    "mountain_car_continuous": lambda: make_vec_env("MountainCarContinuous-v0", 2, seed=0),
    "batched": lambda: make_vec("CartPole-v1", 3, seed=0),
    "batched_pendulum": lambda: make_vec("Pendulum-v1", 3, seed=0),
    "normalized": lambda: VecNormalize(make_vec_env("CartPole-v1", 2, seed=0)),
    "stacked": lambda: VecFrameStack(make_vec_env("CartPole-v1", 2, seed=0), 3),
    "monitored": lambda: VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")])),
    "wrapped": lambda: make_vec_env("Pendulum-v1", 2, seed=0, wrapper_class=gym.wrappers.NormalizeObservation),
    "toy_text": lambda: make_vec_env("FrozenLake-v1", 2, seed=0),
}


class Steps(BaseCallback):
    """Everything that passes between the agent and its environments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def _on_step(self) -> bool:
        for name in ("actions", "new_obs", "rewards", "dones"):
            value = self.locals[name]
            parts = value.values() if isinstance(value, dict) else [value]
            self.seen += [torch.as_tensor(part).double().flatten() for part in parts]
        return True


def continued(model: Any, steps: int) -> dict[str, Any]:
    """Train on; what passed, and all that is left at the end, random states included."""
    callback = Steps()
    model.learn(steps, callback=callback, reset_num_timesteps=False)
    return {
        "seen": torch.cat(callback.seen),
        "parameters": model.get_parameters(),
        "run": model._run_state(),
        "env": environment_state(model.get_env()),
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
    }


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Without the wall clock of the episode statistics."""

    def timeless(state: Any) -> Any:
        if isinstance(state, dict):
            if state.get("kind") == "dict":
                state = {**state, "items": [item for item in state["items"] if item[0] not in ("t", "_info")]}
            # Also the classes: the RL Zoo replaces gymnasium's TimeLimit where another test has imported it.
            skipped = ("classes", "t_start", "episode_times", "reset_infos", "buf_infos", "_start_time")
            return {key: timeless(entry) for key, entry in state.items() if key not in skipped}
        return [timeless(entry) for entry in state] if isinstance(state, (list, tuple)) else state

    return timeless(result)


IN_ANOTHER_PROCESS = """
import sys, torch
torch.set_num_threads(1)
import storm_rl
from tests.contract.test_resume import CASES, ENVIRONMENTS, continued
for number, (name, environment) in enumerate(CASES):
    path = f"{sys.argv[1]}/{number}"
    env = ENVIRONMENTS[environment]()
    model = getattr(storm_rl, name).load(path, env, device="cpu", force_reset=False)
    torch.save(continued(model, 1_000), path + ".result")
"""

CASES = [
    ("STORMPlusPG", "cart_pole"),
    ("STORMPlusPG", "batched_pendulum"),
    ("SVRPG", "cart_pole"),
    ("DEFPG", "batched"),
]


@pytest.mark.slow
def test_a_new_process_continues_for_1000_steps_bit_for_bit(tmp_path: Path) -> None:
    expected = []
    for number, (name, environment) in enumerate(CASES):
        model = small(getattr(storm_rl, name), ENVIRONMENTS[environment]()).learn(300)
        model.save(tmp_path / str(number), include=["env_state"])
        expected.append(continued(model, 1_000))
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path)],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    for number, result in enumerate(expected):
        actual = torch.load(tmp_path / f"{number}.result", weights_only=True)
        assert len(result["seen"]) >= 2_000
        assert_equal_states(comparable(result), comparable(actual), str(CASES[number]))


@pytest.mark.parametrize(
    ("algorithm", "environment"),
    [(STORMPlusPG, name) for name in ENVIRONMENTS]
    # Those of short episodes, for the algorithms that need whole ones.
    + [(SRVRPG, name) for name in ("cart_pole", "batched", "normalized", "stacked", "toy_text")],
)
def test_every_environment_of_ours_continues_where_it_stood(algorithm: Any, environment: str, tmp_path: Path) -> None:
    model = small(algorithm, ENVIRONMENTS[environment]()).learn(150)
    model.save(tmp_path / "model", include=["env_state"])
    expected = continued(model, 200)
    # Whatever happened meanwhile to the generators and to the other environments.
    torch.rand(3), np.random.rand(3)  # noqa: NPY002
    other = ENVIRONMENTS[environment]()
    other.seed(99)
    other.reset()
    other.step(np.array([other.action_space.sample() for _ in range(other.num_envs)]))
    loaded = algorithm.load(tmp_path / "model", other, device="cpu", force_reset=False)
    assert_equal_states(comparable(expected), comparable(continued(loaded, 200)))


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("normalized", [False, True])
def test_dict_observations_continue_where_they_stood(n_envs: int, normalized: bool, tmp_path: Path) -> None:
    def environments() -> VecEnv:
        space = OBSERVATION_SPACES["dict"]
        env: VecEnv = DummyVecEnv([lambda: RandomEnv(None, copy.deepcopy(space)) for _ in range(n_envs)])
        return VecNormalize(env, norm_obs_keys=["position"]) if normalized else env

    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}}
    model = small(STORMPlusPG, environments(), "MultiInputPolicy", policy_kwargs=kwargs, n_steps=8).learn(8 * n_envs)
    model.save(tmp_path / "model", include=["env_state"])
    expected = continued(model, 8 * n_envs)
    loaded = STORMPlusPG.load(tmp_path / "model", environments(), device="cpu", force_reset=False)
    assert_equal_states(comparable(expected), comparable(continued(loaded, 8 * n_envs)))


WRAPPERS: dict[str, Any] = {
    "AddRenderObservation": lambda: gym.wrappers.AddRenderObservation(_pendulum()),
    "AddWhiteNoise": lambda: gym.wrappers.AddWhiteNoise(_pendulum(), 0.1),
    "Autoreset": lambda: gym.wrappers.Autoreset(_pendulum()),
    "ClipAction": lambda: gym.wrappers.ClipAction(_pendulum()),
    "ClipReward": lambda: gym.wrappers.ClipReward(_pendulum(), -1.0, 1.0),
    "DelayObservation": lambda: gym.wrappers.DelayObservation(_pendulum(), 2),
    "DiscretizeAction": lambda: gym.wrappers.DiscretizeAction(_pendulum(), 5),
    "DiscretizeObservation": lambda: gym.wrappers.DiscretizeObservation(_pendulum(), 5),
    "DtypeObservation": lambda: gym.wrappers.DtypeObservation(_pendulum(), np.float64),
    "FlattenObservation": lambda: gym.wrappers.FlattenObservation(_pendulum()),
    "FrameStackObservation": lambda: gym.wrappers.FrameStackObservation(_pendulum(), 3),
    "MaxAndSkipObservation": lambda: gym.wrappers.MaxAndSkipObservation(_pendulum(), 2),
    "NormalizeObservation": lambda: gym.wrappers.NormalizeObservation(_pendulum()),
    "NormalizeReward": lambda: gym.wrappers.NormalizeReward(_pendulum()),
    "OrderEnforcing": lambda: gym.wrappers.OrderEnforcing(_pendulum()),
    "PassiveEnvChecker": lambda: gym.wrappers.PassiveEnvChecker(_pendulum()),
    "RecordEpisodeStatistics": lambda: gym.wrappers.RecordEpisodeStatistics(_pendulum()),
    "RenderCollection": lambda: gym.wrappers.RenderCollection(_pendulum()),
    "RepeatAction": lambda: gym.wrappers.RepeatAction(_pendulum(), 2),
    "RescaleAction": lambda: gym.wrappers.RescaleAction(_pendulum(), np.float32(-1.0), np.float32(1.0)),
    "RescaleObservation": lambda: gym.wrappers.RescaleObservation(_pendulum(), np.float32(0.0), np.float32(1.0)),
    "ReshapeObservation": lambda: gym.wrappers.ReshapeObservation(_pendulum(), (3, 1)),
    "StickyAction": lambda: gym.wrappers.StickyAction(_pendulum(), 0.5),
    "TimeAwareObservation": lambda: gym.wrappers.TimeAwareObservation(_pendulum()),
    "TimeLimit": lambda: gym.wrappers.TimeLimit(_pendulum(), 9),
    "TransformAction": lambda: gym.wrappers.TransformAction(_pendulum(), lambda action: action / 2, None),
    "TransformObservation": lambda: gym.wrappers.TransformObservation(_pendulum(), lambda seen: seen / 2, None),
    "TransformReward": lambda: gym.wrappers.TransformReward(_pendulum(), lambda reward: reward / 2),
}


def _pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=12)


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_of_gymnasium_continues_where_it_stood(name: str) -> None:
    first, second = WRAPPERS[name](), WRAPPERS[name]()
    first.reset(seed=3)
    if name != "AddRenderObservation":  # One frame is enough.
        actions = [first.action_space.sample() for _ in range(20)]
    else:
        actions = [first.action_space.sample() for _ in range(2)]
    for action in actions[: len(actions) // 2]:
        if any(first.step(action)[2:4]) and name != "Autoreset":
            first.reset()
    restore_environment(second, environment_state(first))
    for action in actions[len(actions) // 2 :]:
        ours, theirs = first.step(action), second.step(action)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        if any(ours[2:4]) and name != "Autoreset":
            np.testing.assert_array_equal(first.reset()[0], second.reset()[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_a_seed_given_to_load_begins_another_run(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm, make_vec_env("CartPole-v1", 2)).learn(40).save(tmp_path / "model")

    def run(**seed: Any) -> torch.Tensor:
        model = algorithm.load(tmp_path / "model", make_vec_env("CartPole-v1", 2), device="cpu", **seed)
        return parameters(model.learn(40, reset_num_timesteps=False))

    assert torch.equal(run(seed=1), run(seed=np.int64(1)))
    assert not torch.equal(run(seed=1), run(seed=2))
    assert torch.equal(run(), run())


def test_a_seed_given_to_load_draws_the_noise_of_gsde_anew(tmp_path: Path) -> None:
    small(STORMPlusPG, make_vec_env("Pendulum-v1", 2)).learn(64).save(tmp_path / "model")
    noise = [
        STORMPlusPG.load(
            tmp_path / "model", make_vec_env("Pendulum-v1", 2), seed=seed, device="cpu"
        ).policy.action_dist.exploration_matrices
        for seed in (1, 1, 2)
    ]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_arguments_of_load_are_checked_as_by_the_constructor(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm).save(tmp_path / "model")
    for arguments, error in [
        ({"gamma": 1.5}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"stats_window_size": 0}, ValueError),
        ({learning_rate_argument(algorithm): "fast"}, TypeError),
        ({"tensorboard_log": 3}, TypeError),
        ({"gama": 0.9}, TypeError),
    ]:
        with pytest.raises(error, match=next(iter(arguments))):
            algorithm.load(tmp_path / "model", device="cpu", **arguments)
    loaded = algorithm.load(tmp_path / "model", gamma=np.float32(0.5), stats_window_size=7, device="cpu")
    assert (loaded.gamma, loaded._stats_window_size) == (0.5, 7)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_without_the_environments_state_only_their_reset_differs(algorithm: Any, tmp_path: Path) -> None:
    critic = {} if algorithm is STORMPlusPG else {"baseline": "state_value"}
    model = small(algorithm, make_vec_env("CartPole-v1", 2, seed=0), **critic).learn(150)
    model.save(tmp_path / "model")
    model._last_obs = None
    model.env.seed(0)
    expected = continued(model, 150)
    loaded = algorithm.load(tmp_path / "model", make_vec_env("CartPole-v1", 2), device="cpu")
    actual = continued(loaded, 150)
    for part in ("seen", "parameters", "run", "timesteps", "updates"):
        assert_equal_states(expected[part], actual[part], part)


def test_a_loaded_model_takes_another_number_of_environments(tmp_path: Path) -> None:
    small(STORMPlusPG, make_vec_env("CartPole-v1", 2)).learn(64).save(tmp_path / "model", include=["env_state"])
    three = make_vec_env("CartPole-v1", 3)
    assert STORMPlusPG.load(tmp_path / "model", three).learn(96, reset_num_timesteps=False).num_timesteps == 64 + 96
    with pytest.raises(ValueError, match="continues the 2 environments of the saved model, and these are 3"):
        STORMPlusPG.load(tmp_path / "model", three, force_reset=False)


def test_loading_to_predict_leaves_the_random_generators_alone(tmp_path: Path) -> None:
    small(STORMPlusPG, seed=None).learn(32).save(tmp_path / "model")
    before = torch.get_rng_state()
    small(STORMPlusPG, seed=None)
    built = torch.get_rng_state()
    torch.set_rng_state(before)
    STORMPlusPG.load(tmp_path / "model", device="cpu")  # Networks are built, as by SB3, and nothing else.
    assert torch.equal(torch.get_rng_state(), built)


def test_gsde_noise_is_kept(tmp_path: Path) -> None:
    model = small(STORMPlusPG, make_vec_env("Pendulum-v1", 2)).learn(64)
    model.save(tmp_path / "model")
    loaded = STORMPlusPG.load(tmp_path / "model", make_vec_env("Pendulum-v1", 2), device="cpu")
    observations = np.stack([model.observation_space.sample() for _ in range(2)])
    np.testing.assert_array_equal(model.predict(observations)[0], loaded.predict(observations)[0])


class SaveAt(BaseCallback):
    def __init__(self, step: int, path: Path, **arguments: Any) -> None:
        super().__init__()
        self.step, self.path, self.arguments = step, path, arguments

    def _on_step(self) -> bool:
        if self.num_timesteps == self.step:
            self.model.save(self.path, **self.arguments)
        return True


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_a_file_from_the_middle_of_a_rollout_holds_the_last_completed_update(algorithm: Any, tmp_path: Path) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2))
    states: list[Any] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if model.num_timesteps == 150:
            states.append({key: value.clone() for key, value in model.policy.state_dict().items()})
        return True

    with pytest.warns(UserWarning, match="middle of a rollout"):
        model.learn(300, callback=[SaveAt(150, tmp_path / "model", include=["env_state"]), _Function(note)])
    env = make_vec_env("CartPole-v1", 2)
    loaded = algorithm.load(tmp_path / "model", env, device="cpu", force_reset=False)
    assert_equal_states(states[0], dict(loaded.policy.state_dict()))
    assert loaded._last_obs is None  # Its environments are reset.
    loaded.learn(100, reset_num_timesteps=False)
    assert torch.isfinite(parameters(loaded)).all()


class _Function(BaseCallback):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return bool(self.function(self.locals, self.globals))


# Environments whose state cannot be read off their attributes


class Engine:
    """Something that is no plain data."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = 0


class Foreign(RandomEnv):
    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()


class Cooperative(Foreign):
    def get_state(self) -> dict[str, Any]:
        return {"time": self.engine.time, "position": np.arange(3.0)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.engine.time = state["time"]
        assert state["position"].tolist() == [0.0, 1.0, 2.0]


def test_an_environment_that_cannot_be_kept_is_named_and_its_own_methods_are_asked(tmp_path: Path) -> None:
    model = small(STORMPlusPG, Foreign())
    with pytest.raises(ValueError, match=r"envs\[0\]\.env\.engine is a .*Engine.*get_state\(\) and set_state"):
        model.save(tmp_path / "model", include=["env_state"])
    assert not list(tmp_path.iterdir())
    first, second = DummyVecEnv([Cooperative]), DummyVecEnv([Cooperative])
    first.envs[0].engine.time = 7
    restore_environment(second, environment_state(first))
    assert second.envs[0].engine.time == 7


class Walk(RandomEnv):
    """Its two methods mean the position, not all of its state."""

    position = 0.0

    def get_state(self) -> np.ndarray:
        return np.array([self.position], dtype=np.float32)

    def set_state(self, state: np.ndarray) -> None:
        self.position = float(state[0])

    def step(self, action: Any) -> Any:
        self.position += self.np_random.normal()
        return super().step(action)


def test_attributes_are_kept_beside_methods_that_mean_something_else() -> None:
    first, second = (DummyVecEnv([lambda: Walk(None, copy.deepcopy(VECTOR))]) for _ in range(2))
    first.reset()
    action = np.zeros(1, dtype=int)
    first.step(action)
    restore_environment(second, environment_state(first))
    for _ in range(20):
        for one, other in zip(first.step(action)[:3], second.step(action)[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    assert first.envs[0].unwrapped.position == second.envs[0].unwrapped.position
    assert first.envs[0].unwrapped.steps == second.envs[0].unwrapped.steps == 21


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: make_vec_env("CartPole-v1", 3), "the state is of 2 environments; these are 3"),
        (lambda: make_vec_env("Acrobot-v1", 2), "is a .*AcrobotEnv, and was a .*CartPoleEnv"),
        (lambda: VecNormalize(make_vec_env("CartPole-v1", 2)), "is a .*VecNormalize, and was a .*DummyVecEnv"),
    ],
)
def test_a_state_of_other_environments_is_refused(env: Any, message: str) -> None:
    state = environment_state(make_vec_env("CartPole-v1", 2))
    with pytest.raises(ValueError, match=message):
        restore_environment(env(), state)


def test_a_wrapper_may_be_replaced_by_its_subclass() -> None:
    class Patched(gym.wrappers.TimeLimit):
        """As the RL Zoo's, which takes the place of gymnasium's."""

    first = DummyVecEnv([lambda: Patched(gym.make("CartPole-v1").unwrapped, 9)])
    second = DummyVecEnv([lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 9)])
    first.reset()
    first.step(np.zeros(1, dtype=int))
    restore_environment(second, environment_state(first))
    np.testing.assert_array_equal(first.step(np.zeros(1, dtype=int))[0], second.step(np.zeros(1, dtype=int))[0])


def test_state_is_plain_data_and_shares_nothing() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    env.reset()
    state = environment_state(env)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_equal_states(state, torch.load(file, weights_only=True))
    env.step(np.zeros(2, dtype=int))
    file.seek(0)
    assert_equal_states(state, torch.load(file, weights_only=True))


def test_an_environment_state_without_environment_is_an_error(tmp_path: Path) -> None:
    small(GPOMDP).save(tmp_path / "model")
    with pytest.raises(ValueError, match="no environment whose state"):
        GPOMDP.load(tmp_path / "model").save(tmp_path / "other", include=["env_state"])


# Files


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_every_tensor_file_can_be_read_with_weights_only(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm, make_vec_env("CartPole-v1", 2)).learn(100).save(tmp_path / "model", include=["env_state"])
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".pth", ".pt"))]
        assert {"policy.pth", "recursion.pth", "run_state.pt"} <= set(names)
        for name in names:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def test_stable_baselines_own_reader_reads_our_files(tmp_path: Path) -> None:
    from stable_baselines3.common.save_util import load_from_zip_file

    model = small(STORMPlusPG).learn(32)
    model.save(tmp_path / "model")
    data, params, _ = load_from_zip_file(tmp_path / "model", device="cpu")
    assert data["num_timesteps"] == 32
    assert set(params) == set(model.get_parameters())


def test_paths_are_as_in_stable_baselines(tmp_path: Path) -> None:
    model = small(GPOMDP)
    for path in (tmp_path / "a", str(tmp_path / "b.zip"), tmp_path / "new" / "folder" / "c", tmp_path / "d.model"):
        model.save(path)
        assert torch.equal(parameters(GPOMDP.load(path)), parameters(model))
    assert (tmp_path / "a.zip").exists()
    model.save(tmp_path / ("a" * 251 + ".zip"))
    buffer = io.BytesIO()
    model.save(buffer)
    assert torch.equal(parameters(GPOMDP.load(buffer)), parameters(model))
    (tmp_path / "e.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        model.save(tmp_path / "e")
    assert (tmp_path / "e.zip_2").is_file()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GPOMDP.load(tmp_path / "nowhere")


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_crash_while_saving_leaves_the_old_file_whole(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(STORMPlusPG)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def crash(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, fails, crash)
    with pytest.raises(OSError, match="no space left"):
        model.learn(32).save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_foreign_and_damaged_files_are_named_with_what_was_expected(tmp_path: Path) -> None:
    model = small(SVRPG)
    model.save(tmp_path / "model")
    whole = (tmp_path / "model.zip").read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:-10], b"", b"not a model", bytes(broken)):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad'.* is not a whole (zip file .*SVRPG\.save|model of SVRPG)"):
            SVRPG.load(tmp_path / "bad")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"ppo'.* is not a whole model of SVRPG: .*recursion\.pth.* missing"):
        SVRPG.load(tmp_path / "ppo")
    with pytest.raises(ValueError, match="is a model of SVRPG, expected one of STORMPlusPG"):
        STORMPlusPG.load(tmp_path / "model")
    with pytest.raises(ValueError, match="is a model of SVRPG, expected one of SRVRPG"):
        SRVRPG.load(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ValueError, match="found nothing"):
        SVRPG.load(tmp_path / "empty")


def test_nothing_is_unpickled_from_a_foreign_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (warnings.warn, ("executed",))

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    model.trap = Trap()  # type: ignore[attr-defined]
    model.save(tmp_path / "ppo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="not a whole model"):
            STORMPlusPG.load(tmp_path / "ppo")


def test_models_from_before_the_run_was_kept_still_load(tmp_path: Path) -> None:
    model = small(STORMPlusPG, make_vec_env("CartPole-v1", 2)).learn(64)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in set(new.namelist()) - {"run_state.pt", "storm_rl.json"}:
            old.writestr(name, new.read(name))
    loaded = STORMPlusPG.load(tmp_path / "old", make_vec_env("CartPole-v1", 2))
    assert torch.equal(parameters(loaded), parameters(model))
    loaded.learn(64, reset_num_timesteps=False)


def test_a_model_for_other_spaces_is_refused(tmp_path: Path) -> None:
    small(STORMPlusPG).save(tmp_path / "model")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        STORMPlusPG.load(tmp_path / "model", make_vec_env("Acrobot-v1", 1))
    with pytest.raises(ValueError, match="Action spaces do not match"):
        STORMPlusPG.load(tmp_path / "model", DummyVecEnv([lambda: _CartPoleLike()]))


class _CartPoleLike(RandomEnv):
    def __init__(self) -> None:
        super().__init__(spaces.Discrete(5), gym.make("CartPole-v1").observation_space)


def test_parts_can_be_left_out(tmp_path: Path) -> None:
    model = small(STORMPlusPG, make_vec_env("CartPole-v1", 2)).learn(64)
    model.save(tmp_path / "all")
    model.save(tmp_path / "some", exclude=["window", "random_state", "tensorboard_log"])
    with zipfile.ZipFile(tmp_path / "some.zip") as archive:
        state = torch.load(io.BytesIO(archive.read("run_state.pt")), weights_only=True)
    assert set(state) == {"exploration_noise"}
    shutil.copy(tmp_path / "some.zip", tmp_path / "copy.zip")
    assert isinstance(STORMPlusPG.load(tmp_path / "copy", make_vec_env("CartPole-v1", 2)).env, VecEnv)
