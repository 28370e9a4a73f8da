"""What a user of Stable-Baselines3 expects of an algorithm, for every algorithm of the package."""

import copy
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storm_rl import STORMPlusPG
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.common.resumable_algorithm import constructor_parameters
from tests.contract.cases import (
    ACTION_SPACES,
    ALGORITHMS,
    FAMILY,
    OBSERVATION_SPACES,
    VECTOR,
    RandomEnv,
    assert_equal_states,
    learning_rate_argument,
    parameters,
    small,
)

for_all = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)


def vectors(*env_arguments: Any, n: int = 2) -> DummyVecEnv:
    env = DummyVecEnv([lambda: RandomEnv(*env_arguments) for _ in range(n)])
    env.seed(0)
    return env


# Construction


@for_all
def test_arguments_come_in_the_order_of_stable_baselines_and_have_its_defaults(algorithm: Any) -> None:
    names = list(constructor_parameters(algorithm).values())
    assert [parameter.name for parameter in names[:3]] == ["policy", "env", learning_rate_argument(algorithm)]
    last = ["stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed", "device", "_init_setup_model"]
    assert [parameter.name for parameter in names[-len(last) :]] == last
    assert [parameter.default for parameter in names[-len(last) :]] == [100, None, None, 0, None, "auto", True]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in names[2:])
    assert set(algorithm.policy_aliases) == {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"}
    theirs = inspect.signature(BaseAlgorithm.learn).parameters
    assert list(inspect.signature(algorithm.learn).parameters) == list(theirs)


@for_all
def test_set_up_may_be_repeated_and_repeats_the_same_networks(algorithm: Any) -> None:
    model = small(algorithm)
    before = parameters(model)
    model._setup_model()
    assert torch.equal(before, parameters(model))


BAD_INPUT = [
    "unknown policy",
    "number as policy",
    "class as policy",
    "cnn of vectors",
    "multi input of vectors",
    "mlp of dict",
    "mlp class of dict",
    "no environment",
    "number as environment",
    "tuple actions",
    "tuple observations",
    "nested dict",
    "unbounded actions",
    "actions from 1",
    "matrix of bits",
    "gamma",
    "number as log folder",
    "number as policy_kwargs",
    "text",
    "sequence",
    "no dimension",
    "key of torch",
]


@for_all
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "MlpLstmPolicy"}, ValueError, "'MlpLstmPolicy' is unknown; .* MlpPolicy, CnnPolicy, MultiInputPol"),
        ({"policy": 3}, TypeError, "policy must be one of MlpPolicy, CnnPolicy.*got 3"),
        ({"policy": RandomEnv}, TypeError, "subclass of ActorCriticPolicy, got .*RandomEnv"),
        ({"policy": "CnnPolicy"}, ValueError, "CnnPolicy reads images"),
        ({"policy": "MultiInputPolicy"}, ValueError, "use MlpPolicy"),
        ({"env": RandomEnv(None, OBSERVATION_SPACES["dict"])}, ValueError, "MultiInputPolicy"),
        (
            {"env": RandomEnv(None, OBSERVATION_SPACES["dict"]), "policy": StandardisedActorCriticPolicy},
            ValueError,
            "use MultiInputPolicy",
        ),
        ({"env": None}, ValueError, "env=None leaves .* without spaces"),
        ({"env": 5}, ValueError, "int"),
        ({"env": RandomEnv(spaces.Tuple([spaces.Discrete(2)]))}, TypeError, "unsupported action space Tuple"),
        ({"env": RandomEnv(None, spaces.Tuple([VECTOR, VECTOR]))}, TypeError, "unsupported observation space Tuple"),
        (
            {"env": RandomEnv(None, spaces.Dict({"a": spaces.Dict({"b": VECTOR})})), "policy": "MultiInputPolicy"},
            TypeError,
            "unsupported observation 'a' space Dict",
        ),
        ({"env": RandomEnv(spaces.Box(-np.inf, np.inf, (2,)))}, ValueError, "inf.* must have finite bounds"),
        ({"env": RandomEnv(spaces.Discrete(3, start=1))}, ValueError, "must begin at 0"),
        ({"env": RandomEnv(spaces.MultiBinary((2, 2)))}, ValueError, "one dimension"),
        ({"gamma": 1.5}, ValueError, r"gamma must be .*1\.5"),
        ({"tensorboard_log": 3}, TypeError, "tensorboard_log must be the path of a folder or None, got 3"),
        ({"policy_kwargs": 3}, TypeError, "policy_kwargs must be a dict or None, got 3"),
        (
            {"env": RandomEnv(None, spaces.Dict({"a": spaces.Text(3)}))},
            TypeError,
            "unsupported observation 'a' space Te",
        ),
        ({"env": RandomEnv(None, spaces.Sequence(VECTOR))}, TypeError, "unsupported observation space Sequence"),
        ({"env": RandomEnv(None, spaces.Box(-1, 1, (), np.float16))}, ValueError, "must have a dimension"),
        (
            {
                "env": RandomEnv(None, spaces.Dict({"keys": VECTOR, "training": VECTOR, "b": VECTOR})),
                "policy": "MultiInputPolicy",
            },
            ValueError,
            r"attributes of torch's ModuleDict; rename \['keys', 'training'\] in a wrapper",
        ),
    ],
    ids=BAD_INPUT,
)
def test_bad_input_is_named(algorithm: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(algorithm, **{"env": RandomEnv(), **arguments})


@for_all
def test_learning_without_an_environment_says_where_to_give_one(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match=r"no environment to learn in: .*set_env"):
        loaded.learn(10)
    loaded.set_env(gym.make("CartPole-v1"))
    assert loaded.learn(40).num_timesteps >= 40


# Spaces, policies


@for_all
@pytest.mark.parametrize("space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_every_action_space_trains_and_predicts(algorithm: Any, space: spaces.Space[Any]) -> None:
    model = small(algorithm, vectors(space))
    before = parameters(model)
    model.learn(130)
    assert torch.isfinite(parameters(model)).all()
    assert not torch.equal(before, parameters(model))
    observation = model.observation_space.sample()
    action, state = model.predict(observation, deterministic=True)
    assert space.contains(action)
    assert state is None
    np.testing.assert_array_equal(action, model.predict(observation, deterministic=True)[0])
    actions, _ = model.predict(np.stack([observation] * 3))
    assert len(actions) == 3


@for_all
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_every_observation_space_trains_and_predicts(algorithm: Any, name: str) -> None:
    space = OBSERVATION_SPACES[name]
    policy = {"image": "CnnPolicy", "channels_first": "CnnPolicy", "dict": "MultiInputPolicy"}.get(name, "MlpPolicy")
    kwargs: dict[str, Any] = {"net_arch": [8]}
    if policy != "MlpPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim" if policy == "CnnPolicy" else "cnn_output_dim": 8}
    critic = {"baseline": "state_value"} if algorithm in FAMILY else {}
    model = small(algorithm, vectors(None, space), policy, policy_kwargs=kwargs, **critic)
    before = {key: values.clone() for key, values in model.policy.named_parameters()}
    model.learn(70)
    for key, values in model.policy.named_parameters():
        assert torch.isfinite(values).all(), key
        # Also the features of the actor, which optimisers have lost track of before.
        if key.endswith("weight") and "value" not in key and "vf_" not in key:
            assert not torch.equal(before[key], values), key
    assert model.action_space.contains(model.predict(space.sample(), deterministic=True)[0])


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, width: int = 4) -> None:
        super().__init__(observation_space, width)
        self.layer = torch.nn.Linear(observation_space.shape[0], width)
        self.norm = torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.1))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.norm(self.layer(observations)).relu()
        return features


class Policy(StandardisedActorCriticPolicy):
    """A user's own."""


@for_all
def test_policy_kwargs_with_own_policy_and_features_extractor(algorithm: Any, tmp_path: Path) -> None:
    kwargs = {
        "net_arch": {"pi": [6], "vf": [5]},
        "activation_fn": torch.nn.ReLU,
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"width": 3},
        "normalize_observations": False,
        "ortho_init": False,
    }
    model = small(algorithm, policy=Policy, policy_kwargs=kwargs)
    before = {key: values.clone() for key, values in model.policy.named_parameters()}
    model.learn(140)
    named = dict(model.policy.named_parameters())
    assert named["mlp_extractor.policy_net.0.weight"].shape == (6, 3)
    assert not torch.equal(before["features_extractor.layer.weight"], named["features_extractor.layer.weight"])
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert type(loaded.policy) is Policy
    assert torch.equal(parameters(model), parameters(loaded))


def test_gsde_trains_and_its_noise_is_drawn_as_often_as_asked() -> None:
    model = small(STORMPlusPG, vectors(ACTION_SPACES[0]), use_sde=True, sde_sample_freq=8)
    draws = []
    reset_noise = model.policy.reset_noise
    model.policy.reset_noise = lambda n: (draws.append(model.num_timesteps), reset_noise(n))
    model.learn(64)
    assert draws == [0, 16, 32, 48]
    with pytest.raises(ValueError, match="gSDE"):
        small(STORMPlusPG, use_sde=True)


def test_gsde_noise_outlasts_rollouts_shorter_than_it_at_the_policys_present_scale() -> None:
    model = small(STORMPlusPG, vectors(ACTION_SPACES[0]), use_sde=True, sde_sample_freq=12, n_steps=4)
    standard, draws = [], []

    def unit_noise() -> Any:
        noise = model.policy.action_dist
        std = noise.get_std(model.policy.log_std_of_actions(model.policy.log_std)).detach()
        torch.testing.assert_close(noise.weights_dist.scale.detach(), std)
        return (noise.exploration_matrices / std).detach()

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            standard.append(unit_noise())
            draws.append(model.policy.log_std.detach().clone())

        def _on_step(self) -> bool:
            return True

    model.learn(model.n_envs * 24, callback=Watch())
    assert len(standard) == 6
    for first, second in ((0, 1), (1, 2), (4, 5)):
        torch.testing.assert_close(standard[first], standard[second])
    assert not torch.allclose(standard[2], standard[4])
    assert not torch.equal(draws[0], draws[2])  # The scale did move meanwhile.


def test_own_rollout_buffer_is_used() -> None:
    class Buffer(RolloutBuffer):
        def __init__(self, *arguments: Any, label: str, **kwargs: Any) -> None:
            super().__init__(*arguments, **kwargs)
            self.label = label

    model = small(STORMPlusPG, rollout_buffer_class=Buffer, rollout_buffer_kwargs={"label": "mine"}).learn(32)
    assert model.rollout_buffer.label == "mine"
    assert model.rollout_buffer.full


# Running


@for_all
def test_same_seed_same_run_bit_for_bit_and_another_seed_another(algorithm: Any) -> None:
    def run(seed: int) -> torch.Tensor:
        return parameters(small(algorithm, make_vec_env("CartPole-v1", 2), seed=seed).learn(150))

    assert torch.equal(run(7), run(7))
    assert not torch.equal(run(7), run(8))


@for_all
def test_schedule_reaches_the_optimisers(algorithm: Any) -> None:
    seen: list[float] = []

    def schedule(remaining: float) -> float:
        seen.append(remaining)
        return 1e-3 * remaining

    model = small(algorithm, **{learning_rate_argument(algorithm): schedule}).learn(200)
    name = "policy.optimizer" if algorithm is STORMPlusPG else "actor_optimizer"
    rate = model.get_parameters()[name]["param_groups"][0]["lr"]
    assert rate in (pytest.approx(1e-3 * seen[-1]), pytest.approx(0.5e-3 * seen[-1]))
    assert seen[-1] < 0.5


@for_all
def test_device_is_the_policys(algorithm: Any) -> None:
    assert small(algorithm, device=torch.device("cpu")).policy.device == torch.device("cpu")
    assert small(algorithm, device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@for_all
def test_logged_means_are_over_stats_window_size_episodes(algorithm: Any) -> None:
    model = small(algorithm, vectors(), stats_window_size=3).learn(100)
    assert model.ep_info_buffer.maxlen == 3


class Recorder(BaseCallback):
    """Notes every event; stops training at ``stop_at`` env steps."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.steps: list[int] = []

    def _on_training_start(self) -> None:
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("start")

    def _on_rollout_end(self) -> None:
        self.events.append("end")

    def _on_training_end(self) -> None:
        self.events.append("training end")

    def _on_step(self) -> bool:
        assert {"new_obs", "dones", "rewards", "infos", "actions"} <= self.locals.keys()
        self.steps.append(self.num_timesteps)
        return self.num_timesteps < self.stop_at


@for_all
def test_one_callback_for_each_vector_step_in_the_usual_order(algorithm: Any) -> None:
    recorder = Recorder()
    model = small(algorithm, vectors(n=3)).learn(200, callback=[recorder])
    assert recorder.steps == list(range(3, model.num_timesteps + 1, 3))
    assert recorder.events[0] == "training start"
    assert recorder.events[-1] == "training end"
    assert recorder.events[1:-1] == ["start", "end"] * (len(recorder.events) // 2 - 1)


@for_all
def test_a_stop_in_the_middle_of_a_rollout_is_a_stop_and_training_can_go_on(algorithm: Any) -> None:
    recorder = Recorder(stop_at=14)
    model = small(algorithm, make_vec_env("CartPole-v1", 2)).learn(100_000, callback=recorder)
    assert model.num_timesteps == 14 == recorder.steps[-1]
    if algorithm is STORMPlusPG:  # The others begin every batch with a reset.
        np.testing.assert_array_equal(model._last_obs, recorder.locals["new_obs"])
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps >= 114
    assert torch.isfinite(parameters(model)).all()


@for_all
def test_steps_are_counted_on_or_from_zero(algorithm: Any) -> None:
    model = small(algorithm).learn(40)
    first = model.num_timesteps
    assert model.learn(40, reset_num_timesteps=False).num_timesteps >= first + 40
    assert model.learn(40).num_timesteps < first + 40


@for_all
def test_evaluation_stops_at_a_threshold_and_keeps_the_best_model(algorithm: Any, tmp_path: Path) -> None:
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, seed=1),
        callback_on_new_best=StopTrainingOnRewardThreshold(1.0, verbose=0),
        eval_freq=20,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model = small(algorithm).learn(10_000, callback=evaluation)
    assert model.num_timesteps == 20
    best = algorithm.load(tmp_path / "best_model", device="cpu")
    assert torch.equal(parameters(best), parameters(model))
    assert (tmp_path / "evaluations.npz").exists()


@for_all
def test_a_checkpoint_in_the_middle_of_a_rollout_can_be_resumed(algorithm: Any, tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = small(algorithm, env)
    model.learn(120, callback=CheckpointCallback(41, str(tmp_path), save_vecnormalize=True))
    loaded = algorithm.load(tmp_path / "rl_model_82_steps", env=make_vec_env("CartPole-v1", 2, seed=0), device="cpu")
    assert loaded.num_timesteps == 82
    loaded.learn(90, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 172
    assert torch.isfinite(parameters(loaded)).all()


@for_all
def test_progress_bar(algorithm: Any) -> None:
    assert small(algorithm).learn(40, progress_bar=True).num_timesteps >= 40


@for_all
def test_every_log_format_and_the_last_update_is_among_them(
    algorithm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2))
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "tensorboard"]))
    model.learn(200, log_interval=1)
    names = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps", "train/n_updates"}
    names |= {f"train/{name}" for name in ("learning_rate", "gradient_norm", "direction_norm", "step_size", "momentum")}
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert names <= set().union(*rows)
    assert max(row.get("train/n_updates", 0) for row in rows) == model._n_updates
    assert names <= set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    assert "ep_rew_mean" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path)).Reload()
    expected = names - {"time/total_timesteps", "train/n_updates"}  # As in SB3.
    assert expected <= set(events.Tags()["scalars"])
    assert events.Scalars("train/direction_norm")[-1].step == model.num_timesteps
    model.dump_logs()


@for_all
def test_tensorboard_log_has_the_name_of_the_algorithm(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm, tensorboard_log=tmp_path).learn(40).learn(40, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {f"{algorithm.__name__}_1", "other_1"}


# Environments


@for_all
@pytest.mark.parametrize("wrapper", [VecNormalize, lambda env: VecFrameStack(env, 3)], ids=["normalize", "frame_stack"])
def test_works_behind_vec_env_wrappers(algorithm: Any, wrapper: Any) -> None:
    env = wrapper(make_vec_env("CartPole-v1", 2, seed=0))
    model = small(algorithm, env).learn(100)
    assert model._n_updates >= 1
    assert (model.get_vec_normalize_env() is env) == isinstance(env, VecNormalize)
    assert evaluate_policy(model, env, 2, warn=False)[0] > 0


@for_all
def test_the_environment_can_be_exchanged_for_one_like_it(algorithm: Any) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2)).learn(80)
    other = make_vec_env("CartPole-v1", 2, seed=5)
    model.set_env(other)
    assert model.get_env() is other
    assert model.learn(80, reset_num_timesteps=False).num_timesteps >= 160
    with pytest.raises(ValueError, match="as many environments as the model has, 2; got 3"):
        model.set_env(make_vec_env("CartPole-v1", 3))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(make_vec_env("Acrobot-v1", 2))


def test_the_test_environment_is_a_proper_one() -> None:
    check_env(RandomEnv(), warn=True)


# Parameters


@for_all
def test_parameters_can_be_handed_to_another_model(algorithm: Any, tmp_path: Path) -> None:
    model, other = small(algorithm).learn(80), small(algorithm, seed=1)
    assert not torch.equal(parameters(model), parameters(other))
    other.set_parameters(model.get_parameters())
    assert_equal_states(model.get_parameters(), other.get_parameters())
    third = small(algorithm, seed=2)
    model.save(tmp_path / "model")
    third.set_parameters(str(tmp_path / "model"), device="cpu")
    assert_equal_states(model.get_parameters(), third.get_parameters())
    third.set_parameters({"policy": other.get_parameters()["policy"]}, exact_match=False)
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        third.set_parameters({"policy": other.get_parameters()["policy"]})


@for_all
def test_acting_and_evaluating_leave_the_observation_statistics_alone(algorithm: Any) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2)).learn(64)
    before = {key: value.clone() for key, value in model.policy.observation_statistics.state_dict().items()}
    assert before["running.obs_.count"] > 0
    evaluate_policy(model, make_vec_env("CartPole-v1", 2), n_eval_episodes=2, warn=False)
    assert_equal_states(before, dict(model.policy.observation_statistics.state_dict()), "statistics")


def test_every_algorithm_of_the_package_is_registered() -> None:
    import storm_rl

    exported = {name for name in storm_rl.__all__ if isinstance(getattr(storm_rl, name), type)}
    assert exported == {algorithm.__name__ for algorithm in ALGORITHMS}
    assert len(FAMILY) >= 6


@for_all
@pytest.mark.parametrize(
    ("argument", "value"), [("verbose", None), ("verbose", "loud"), ("policy_kwargs", "wide"), ("policy_kwargs", 3)]
)
def test_arguments_of_sb3s_base_of_another_type_are_named(algorithm: Any, argument: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{argument} must be .*{value!r}"):
        small(algorithm, **{argument: value})


@for_all
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "2"}, ValueError, """device must be "auto" or as torch names it .* got '2'"""),
        ({"device": None}, ValueError, "device must be .* got None"),
        ({"policy_kwargs": {"activation_fn": "relu"}}, TypeError, "activation_fn'] must be a class.* got 'relu'"),
        ({"policy_kwargs": {"log_std_init": float("nan")}}, ValueError, r"log_std_init'\] must be .* got nan"),
        ({"policy_kwargs": {"log_std_init": False}}, TypeError, r"log_std_init'\] must be .* got False"),
        ({"stats_window_size": 2**70}, ValueError, f"stats_window_size must be .* at most {sys.maxsize}, got {2**70}"),
        ({"learning_rate": object}, TypeError, "learning_rate must be .* or a schedule; .*object.* gives no number"),
    ],
    ids=["device", "no device", "activation", "noise", "noise of a bool", "window", "schedule"],
)
def test_what_torch_or_sb3_would_stumble_over_is_named(
    algorithm: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    if algorithm is STORMPlusPG and "learning_rate" in arguments:
        arguments, message = {"critic_learning_rate": object}, f"critic_{message}"
    with pytest.raises(error, match=message):
        small(algorithm, **arguments)


def test_arguments_of_the_rollout_buffer_are_a_dict() -> None:
    with pytest.raises(TypeError, match="rollout_buffer_kwargs must be a dict or None, got 'x'"):
        small(STORMPlusPG, rollout_buffer_kwargs="x")
    with pytest.raises(TypeError, match=r"rollout_buffer_class must be a subclass of RolloutBuffer or None, got {}"):
        small(STORMPlusPG, rollout_buffer_class={})


@for_all
def test_a_features_extractor_has_its_own_names(algorithm: Any) -> None:
    env = RandomEnv(None, OBSERVATION_SPACES["image"])
    extractor = small(algorithm, env=env, policy="CnnPolicy", policy_kwargs={"net_arch": [4]}).policy.features_extractor
    assert isinstance(extractor.cnn[0], torch.nn.Conv2d)
    assert copy.deepcopy(extractor).linear[0].weight.shape == extractor.linear[0].weight.shape
    with pytest.raises(AttributeError, match="nothing"):
        _ = extractor.nothing


@for_all
def test_a_learning_rate_among_the_custom_objects_counts(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", custom_objects={"learning_rate": 2e-5})
    assert loaded.learning_rate == 2e-5
    if algorithm is STORMPlusPG:
        assert loaded.critic_learning_rate == loaded.lr_schedule(1.0) == 2e-5
        assert algorithm.load(tmp_path / "model", critic_learning_rate=3e-5).learning_rate == 3e-5


@for_all
def test_load_names_a_device_that_torch_does_not_know(algorithm: Any, tmp_path: Path) -> None:
    small(algorithm).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"device must be .* got '2'"):
        algorithm.load(tmp_path / "model", device="2")


@for_all
def test_a_number_of_env_steps_that_is_none_is_named_before_a_step(algorithm: Any) -> None:
    model = small(algorithm)
    for value, error in ((None, TypeError), ("2", TypeError), (float("nan"), ValueError), (-1, ValueError)):
        with pytest.raises(error, match=f"total_timesteps must be .*{value!r}"):
            model.learn(value)
    assert model.num_timesteps == 0
    assert model.learn(np.float64(1.0)).num_timesteps > 0
