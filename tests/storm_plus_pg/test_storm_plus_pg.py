from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import parameters_to_vector

from storm_rl import STORMPlusPG


class RandomEnv(gym.Env[Any, Any]):
    """Random observations and rewards of any spaces; optionally a bad reward or observation at some step."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        bad_reward_at: int | None = None,
        bad_observation_at: int | None = None,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.bad_reward_at = bad_reward_at
        self.bad_observation_at = bad_observation_at
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        observation = self.observation_space.sample()
        if self.steps == self.bad_observation_at:
            observation[0] = np.nan
        reward = float("inf") if self.steps == self.bad_reward_at else float(self.np_random.normal())
        return observation, reward, self.steps % 7 == 0, self.steps % 11 == 0, {}


VECTOR = spaces.Box(-2.0, 2.0, (3,), dtype=np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1.0, 2.0, (2,), dtype=np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
OBSERVATIONS = {
    "vector": ("MlpPolicy", VECTOR),
    "discrete": ("MlpPolicy", spaces.Discrete(4)),
    "image": ("CnnPolicy", spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)),
    "dict": (
        "MultiInputPolicy",
        spaces.Dict({"position": VECTOR, "image": spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)}),
    ),
}


def small(env: Any, policy: str = "MlpPolicy", **arguments: Any) -> STORMPlusPG:
    defaults: dict[str, Any] = {"n_steps": 32, "critic_steps": 4, "reuse_rollouts": 1, "seed": 0, "device": "cpu"}
    return STORMPlusPG(policy, env, **{**defaults, **arguments})


def test_defaults_solve_cartpole_within_20000_steps() -> None:
    model = STORMPlusPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), seed=0, device="cpu")
    model.learn(12_000)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=10, seed=50), n_eval_episodes=10)
    assert mean >= 475.0


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS.keys())
def test_every_action_space_trains(action_space: spaces.Space[Any]) -> None:
    model = small(RandomEnv(VECTOR, action_space)).learn(96)
    assert torch.isfinite(parameters_to_vector(model.policy.parameters())).all()


@pytest.mark.parametrize(("policy", "space"), OBSERVATIONS.values(), ids=OBSERVATIONS.keys())
def test_every_observation_space_trains(policy: str, space: spaces.Space[Any]) -> None:
    model = small(RandomEnv(space, spaces.Discrete(2)), policy, fisher_states=32, cg_iterations=2).learn(96)
    assert torch.isfinite(parameters_to_vector(model.policy.parameters())).all()


def test_gsde_trains() -> None:
    model = small(RandomEnv(VECTOR, ACTIONS["box"]), use_sde=True, sde_sample_freq=4).learn(96)
    assert model.num_timesteps == 96


def test_default_rollout_has_512_transitions_whatever_the_number_of_environments() -> None:
    for n_envs, n_steps in ((1, 512), (8, 64), (24, 22)):
        assert STORMPlusPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), device="cpu").n_steps == n_steps


def test_same_seed_gives_the_same_parameters_and_another_seed_others() -> None:
    def trained(seed: int) -> torch.Tensor:
        model = small(make_vec_env("Pendulum-v1", n_envs=2, seed=seed), seed=seed).learn(256)
        return parameters_to_vector(model.policy.parameters())

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_saved_model_predicts_the_same_and_keeps_its_statistics_and_recursion(tmp_path: Path) -> None:
    model = small(make_vec_env("Pendulum-v1", n_envs=2, seed=0)).learn(256)
    model.save(tmp_path / "model")
    loaded = STORMPlusPG.load(tmp_path / "model", device="cpu")
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    for name, state in model.get_parameters().items():
        assert_equal_states(state, loaded.get_parameters()[name], name)
    assert loaded.return_statistics.scale == model.return_statistics.scale != 1.0


def assert_equal_states(expected: Any, actual: Any, name: str) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys(), name
        for key in expected:
            assert_equal_states(expected[key], actual[key], f"{name}.{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(actual), name
        for index, (first, second) in enumerate(zip(expected, actual, strict=True)):
            assert_equal_states(first, second, f"{name}.{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(expected, actual), name
    else:
        assert expected == actual, name


def test_loaded_model_takes_the_same_next_update(tmp_path: Path) -> None:
    model = small(make_vec_env("Pendulum-v1", n_envs=2, seed=0)).learn(256)
    model.save(tmp_path / "model")
    loaded = STORMPlusPG.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=2), device="cpu")
    results = []
    for candidate in (model, loaded):
        candidate.set_random_seed(7)
        candidate.env.seed(7)
        candidate._last_obs = None
        candidate.learn(64)
        results.append(parameters_to_vector(candidate.policy.parameters()))
    assert torch.equal(*results)


def test_loaded_model_continues_with_another_number_of_environments(tmp_path: Path) -> None:
    small(make_vec_env("CartPole-v1", n_envs=2)).learn(64).save(tmp_path / "model")
    loaded = STORMPlusPG.load(tmp_path / "model", env=make_vec_env("CartPole-v1", n_envs=3), device="cpu")
    assert loaded.learn(96, reset_num_timesteps=False).num_timesteps == 64 + 96


class StopAfter(BaseCallback):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.seen = 0

    def _on_step(self) -> bool:
        assert {"new_obs", "dones", "rewards", "infos"} <= self.locals.keys()
        self.seen += 1
        return self.num_timesteps < self.steps


def test_callback_is_called_once_a_vector_step_and_stops_in_the_middle_of_a_rollout() -> None:
    callback = StopAfter(10)
    model = small(make_vec_env("CartPole-v1", n_envs=2)).learn(1_000, callback=callback, progress_bar=True)
    assert (model.num_timesteps, callback.seen) == (10, 5)


def test_every_documented_scalar_reaches_tensorboard_with_the_last_update(tmp_path: Path) -> None:
    small(make_vec_env("Pendulum-v1", n_envs=2), tensorboard_log=str(tmp_path)).learn(640)
    events = EventAccumulator(str(tmp_path / "STORMPlusPG_1")).Reload()
    expected = (
        "momentum step_size gradient_norm direction_norm direction_metric_norm kl entropy std largest_weight "
        "effective_sample_size cosine_previous_direction learning_rate value_loss value_scale explained_variance"
    )
    for name in expected.split():
        assert events.Scalars(f"train/{name}")[-1].step == 640, name
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= set(events.Tags()["scalars"])


def test_acting_and_evaluating_leave_the_observation_statistics_alone() -> None:
    model = small(make_vec_env("CartPole-v1", n_envs=2)).learn(64)
    before = {key: value.clone() for key, value in model.policy.observation_statistics.state_dict().items()}
    evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=2), n_eval_episodes=2, warn=False)
    assert_equal_states(before, dict(model.policy.observation_statistics.state_dict()), "statistics")


def test_weights_are_one_at_the_parameters_that_collected_the_rollout() -> None:
    # Catches observation statistics or parameters that move between collecting and updating.
    model = small(make_vec_env("Pendulum-v1", n_envs=2))
    seen: list[torch.Tensor] = []
    part_gradients = model._part_gradients

    def spy(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        gradients, weights = part_gradients(batch)
        seen.append(weights)
        return gradients, weights

    model._part_gradients = spy  # type: ignore[method-assign]
    model.learn(64 * 3)
    assert len(seen) == 1 + 2 + 2  # No previous parameters at the first update, two gradients at the others.
    for current in (seen[0], seen[1], seen[3]):
        torch.testing.assert_close(current, torch.ones_like(current), rtol=0, atol=1e-4)
    assert not torch.allclose(seen[2], torch.ones_like(seen[2]), rtol=0, atol=1e-4)


def test_euclidean_without_floor_and_cap_takes_the_papers_step() -> None:
    model = small(
        make_vec_env("CartPole-v1", n_envs=2), momentum="storm+", metric="euclidean", momentum_floor=0.0, max_kl=None
    )
    before = parameters_to_vector(model.policy.actor_parameters()).detach().clone()
    gradients: list[torch.Tensor] = []
    part_gradients = model._part_gradients

    def spy(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        parts, weights = part_gradients(batch)
        gradients.append(parts.mean(dim=0))
        return parts, weights

    model._part_gradients = spy  # type: ignore[method-assign]
    model.learn(128)
    g_1, g_2, g_2_at_1 = (gradient.double() for gradient in gradients)
    a_2 = (1 + g_1 @ g_1) ** (-2 / 3)
    sum_1 = g_1 @ g_1 / a_2
    d_2 = g_2 + (1 - a_2) * (g_1 - g_2_at_1)
    a_3 = (1 + g_1 @ g_1 + g_2 @ g_2) ** (-2 / 3)
    expected = before - sum_1 ** (-1 / 3) * g_1 - (sum_1 + d_2 @ d_2 / a_3) ** (-1 / 3) * d_2
    after = parameters_to_vector(model.policy.actor_parameters()).detach()
    torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_of_the_first_step_is_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    divergences: list[float] = []
    model = small(make_vec_env("CartPole-v1", n_envs=8), n_steps=64, max_kl=0.001, damping=1e-3)
    logger = configure(None, [])
    record = logger.record
    model.set_logger(logger)

    def spy(key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        record(key, value, *args, **kwargs)
        if key == "train/kl":
            divergences.append(value)

    monkeypatch.setattr(logger, "record", spy)
    model.learn(512)  # At the first update the metric covers exactly the states on which the KL is taken.
    assert divergences == pytest.approx([0.001], rel=0.2)


def test_infinite_reward_names_environment_and_step_and_leaves_the_policy(tmp_path: Path) -> None:
    env = DummyVecEnv(
        [lambda: RandomEnv(VECTOR, spaces.Discrete(2)), lambda: RandomEnv(VECTOR, spaces.Discrete(2), bad_reward_at=40)]
    )
    model = small(env).learn(64)
    before = parameters_to_vector(model.policy.parameters()).detach().clone()
    with pytest.raises(ValueError, match="environment 1 gave reward inf at env step 80"):
        model.learn(64, reset_num_timesteps=False)
    assert torch.equal(before, parameters_to_vector(model.policy.parameters()))


def test_nan_observation_is_named() -> None:
    with pytest.raises(ValueError, match="environment 0 gave a NaN or infinite observation at env step 5"):
        small(RandomEnv(VECTOR, spaces.Discrete(2), bad_observation_at=5)).learn(64)


def test_nan_gradient_is_reported_and_never_written() -> None:
    model = small(make_vec_env("CartPole-v1", n_envs=2)).learn(64)
    actor = parameters_to_vector(model.policy.actor_parameters()).detach().clone()
    state = model.recursion.state_dict()
    transitions = model.window.transitions

    def broken(*args: Any) -> Any:
        result = transitions(*args)
        result.advantages[3] = np.nan
        return result

    model.window.transitions = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"policy gradient has .* NaN"):
        model.learn(64, reset_num_timesteps=False)
    assert torch.equal(actor, parameters_to_vector(model.policy.actor_parameters()))
    assert_equal_states(state, model.recursion.state_dict(), "recursion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be positive, got 0"),
        ({"n_steps": -3}, "n_steps must be positive, got -3"),
        ({"n_steps": 1}, "one transition"),
        ({"critic_steps": 0}, "critic_steps must be at least 1, got 0"),
        ({"reuse_rollouts": 0}, "reuse_rollouts must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"gae_lambda": -0.1}, "gae_lambda must lie in"),
        ({"max_kl": 0.0}, "max_kl must be positive or None"),
        ({"max_weight": -1.0}, "max_weight must be positive or None"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"fisher_states": 2}, "fisher_states"),
        ({"momentum": 2.0}, "momentum must be"),
        ({"momentum_floor": -1.0}, "momentum_floor must lie"),
    ],
)
def test_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("CartPole-v1", **arguments)


def test_fractional_n_steps_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"n_steps must be an integer.*2\.5"):
        small("CartPole-v1", n_steps=2.5)


@pytest.mark.parametrize(
    "env",
    [
        RandomEnv(VECTOR, spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])),
        RandomEnv(spaces.Tuple([VECTOR, VECTOR]), spaces.Discrete(2)),
        RandomEnv(VECTOR, spaces.Box(-np.inf, np.inf, (2,))),
    ],
    ids=["tuple actions", "tuple observations", "unbounded actions"],
)
def test_unsupported_space_is_named(env: gym.Env[Any, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"space.*(Tuple|inf)"):
        small(env)


def test_foreign_policy_class_is_refused_and_ours_are_named() -> None:
    with pytest.raises(TypeError, match=r"ActorCriticPolicy.*MlpPolicy"):
        STORMPlusPG(ActorCriticPolicy, "CartPole-v1")


def test_shared_extractor_with_parameters_is_refused() -> None:
    env = RandomEnv(OBSERVATIONS["image"][1], spaces.Discrete(2))
    with pytest.raises(ValueError, match="share_features_extractor"):
        small(env, "CnnPolicy", policy_kwargs={"share_features_extractor": True})
