import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import parameters_to_vector

from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg.actor_critic import ActorCritic
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic
from storm_rl.storm_plus_pg.recursion import PolicyRecursion
from tests.contract.cases import IMAGE, RandomEnv

SMALL: dict[str, Any] = {"n_steps": 32, "critic_steps": 4, "reuse_rollouts": 1, "seed": 0, "device": "cpu"}


def small(env: Any, policy: str = "MlpPolicy", **arguments: Any) -> STORMPlusPG:
    return STORMPlusPG(policy, env, **{**SMALL, **arguments})


def test_defaults_solve_cartpole_within_20000_steps() -> None:
    model = STORMPlusPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), seed=0, device="cpu")
    model.learn(12_000)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=10, seed=50), n_eval_episodes=10)
    assert mean >= 475.0


def test_defaults_follow_the_number_of_environments_and_the_rollout() -> None:
    def resolved(n_envs: int, **arguments: Any) -> tuple[Any, ...]:
        model = STORMPlusPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs), device="cpu", **arguments)
        return model.n_steps, model.reuse_rollouts, model.window.size, model.target_kl

    # With action values the window holds more than what the actor learns from.
    for n_envs, n_steps in ((1, 512), (8, 64), (24, 22), (32, 16)):
        assert resolved(n_envs) == (n_steps, 4, 16, 0.1)
    assert resolved(64) == (16, 2, 8, 0.1)
    assert resolved(1024) == (16, 1, 1, 0.1)
    assert resolved(8, n_steps=8, reuse_rollouts=20) == (8, 20, 20, 0.1)
    assert resolved(64, reuse_rollouts=3, target_kl=0.5) == (16, 3, 8, 0.5)
    assert resolved(64, target_kl=None) == (16, 2, 8, None)
    without = functools.partial(resolved, use_action_values=False)
    for n_envs, n_steps in ((1, 512), (8, 64), (24, 22), (32, 16)):
        assert without(n_envs) == (n_steps, 4, 4, pytest.approx(0.02, rel=0.04))
    assert without(64) == (16, 2, 2, pytest.approx(0.04))
    assert without(128) == (16, 1, 1, pytest.approx(0.04))
    assert without(8, n_steps=4096) == (4096, 1, 1, pytest.approx(0.04))
    assert without(8, n_steps=8) == (8, 4, 4, 0.02)


def test_defaults_where_a_features_extractor_is_trained_make_few_passes_over_a_frame() -> None:
    def resolved(**arguments: Any) -> tuple[Any, ...]:
        model = STORMPlusPG("CnnPolicy", RandomEnv(None, IMAGE), device="cpu", **arguments)
        return model.n_steps, model.reuse_rollouts, model.critic_steps, model.fisher_metric.max_states

    assert resolved() == (1024, 1, 8, 64)
    assert resolved(n_steps=1000, batch_size=64) == (1000, 1, 16, 64)
    assert resolved(reuse_rollouts=3, critic_steps=5) == (1024, 3, 5, 64)


def test_nothing_is_measured_of_statistics_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    images = small(RandomEnv(None, IMAGE), "CnnPolicy", n_steps=8)
    monkeypatch.setattr(PolicyRecursion, "follow_statistics", lambda *_: pytest.fail("there are none"))
    images.learn(16)
    assert "train/statistics_kl" not in images.logger.name_to_value
    with pytest.raises(pytest.fail.Exception):
        small("CartPole-v1").learn(32)


def test_every_documented_scalar_reaches_tensorboard_with_the_last_update(tmp_path: Path) -> None:
    small(make_vec_env("Pendulum-v1", n_envs=2), tensorboard_log=str(tmp_path)).learn(640)
    events = EventAccumulator(str(tmp_path / "STORMPlusPG_1")).Reload()
    expected = (
        "momentum step_size gradient_norm direction_norm direction_metric_norm kl entropy std largest_weight "
        "effective_sample_size cosine_previous_direction step_bound statistics_kl learning_rate value_loss value_scale "
        "value_offset explained_variance"
    )
    for name in expected.split():
        assert events.Scalars(f"train/{name}")[-1].step == 640, name
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= set(events.Tags()["scalars"])


def test_weights_are_one_at_the_parameters_that_collected_the_rollout() -> None:
    # Catches observation statistics or parameters that move between collecting and updating.
    model = small(make_vec_env("Pendulum-v1", n_envs=2), use_action_values=False)
    seen: list[torch.Tensor] = []
    part_gradients = model._part_gradients

    def spy(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        gradients, weights = part_gradients(*arguments)
        seen.append(weights)
        return gradients, weights

    model._part_gradients = spy  # type: ignore[method-assign]
    model.learn(64 * 3)
    # One gradient until there are previous parameters: the first observation statistics make another policy.
    assert len(seen) == 1 + 1 + 2
    for current in seen[:3]:
        torch.testing.assert_close(current, torch.ones_like(current), rtol=0, atol=1e-4)
    assert not torch.allclose(seen[3], torch.ones_like(seen[3]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_closed_form_and_autograd_train_the_same_model(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(by_autograd: bool) -> torch.Tensor:
        # One update, with one step of the critic, is compared: rounding would grow over more.
        model = small(make_vec_env(task, n_envs=2), reuse_rollouts=2, critic_steps=1).learn(64 * 2)
        with monkeypatch.context() as patch:
            if by_autograd:
                patch.setattr(NumpyActorCritic, "from_policy", lambda policy: None)
            model.learn(64, reset_num_timesteps=False)
        return parameters_to_vector(model.policy.parameters()).detach()

    fast, slow = trained(by_autograd=False), trained(by_autograd=True)
    assert not torch.equal(fast, slow)  # Rounding differs: the patch has had an effect.
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)


def test_kl_of_the_first_step_is_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    divergences: list[float] = []
    model = small(make_vec_env("CartPole-v1", n_envs=8), n_steps=64, target_kl=0.001, cg_damping=1e-3)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps .* must be an integer of at least 1, got 0"),
        ({"n_steps": -3}, "n_steps .* must be an integer of at least 1, got -3"),
        ({"n_steps": 2.5}, r"n_steps .* must be an integer of at least 1, got 2\.5"),
        ({"n_steps": 1}, "one transition"),
        ({"critic_steps": 0}, "critic_steps must be an integer of at least 1, got 0"),
        ({"reuse_rollouts": 0}, "reuse_rollouts must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"gamma": 1.5}, "gamma must be a number in"),
        ({"gae_lambda": -0.1}, "gae_lambda must be a number in"),
        ({"target_kl": 0.0}, r"target_kl .*\"auto\".*must be greater than 0"),
        ({"max_weight": -1.0}, r"max_weight .*must be greater than 0"),
        ({"cg_damping": 0.0}, "cg_damping must be a number in"),
    ],
)
def test_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("CartPole-v1", **arguments)


def test_other_policies_are_differentiated_by_autograd() -> None:
    model = small("CartPole-v1", policy_kwargs={"activation_fn": torch.nn.ELU})
    assert type(model.networks()) is ActorCritic


def test_foreign_policy_class_is_refused_and_ours_are_named() -> None:
    with pytest.raises(TypeError, match=r"ActorCriticPolicy.*MlpPolicy"):
        STORMPlusPG(ActorCriticPolicy, "CartPole-v1")


def test_shared_extractor_with_parameters_is_refused() -> None:
    env = RandomEnv(None, IMAGE)
    with pytest.raises(ValueError, match="share_features_extractor"):
        small(env, "CnnPolicy", policy_kwargs={"share_features_extractor": True})
