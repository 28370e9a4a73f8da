"""NaN and infinity stop training, are named, and leave the last good model."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from storm_rl import DEFPG, SRVRPG, STORMPlusPG
from storm_rl.common.checks import not_finite_name
from tests.contract.cases import (
    ALGORITHMS,
    FAMILY,
    VECTOR,
    RandomEnv,
    assert_equal_states,
    learning_rate_argument,
    parameters,
    small,
)

for_all = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)


def snapshot(model: Any) -> Any:
    """A copy of everything that an update changes, the observation statistics included."""

    def copied(state: Any) -> Any:
        if isinstance(state, dict):
            return {key: copied(entry) for key, entry in state.items()}
        if isinstance(state, (list, tuple)):
            return [copied(entry) for entry in state]
        return state.clone() if isinstance(state, torch.Tensor) else state

    return copied(model.get_parameters())


class Watched:
    """The model's state after every update, to compare with what is left after a fault."""

    def __init__(self, model: Any) -> None:
        self.model, self.states = model, [snapshot(model)]
        train = model.train

        def watched() -> None:
            train()
            self.states.append(snapshot(model))

        model.train = watched


@for_all
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_bad_reward_names_environment_and_step_and_nothing_is_learned_from_it(algorithm: Any, value: float) -> None:
    env = DummyVecEnv([RandomEnv, lambda: RandomEnv(fault=("reward", value, 150))])
    model = small(algorithm, env)
    watched = Watched(model)
    with pytest.raises(ValueError, match=r"environment 1 gave reward (nan|inf|-inf) at env step 300"):
        model.learn(1_000)
    assert len(watched.states) > 1
    assert_equal_states_but_scale(watched.states[-1], snapshot(model))
    # The next call begins with a reset and goes on.
    model.learn(100, reset_num_timesteps=False)
    assert torch.isfinite(parameters(model)).all()


def assert_equal_states_but_scale(expected: Any, actual: Any) -> None:
    # The returns' scale has seen the rollouts that were whole.
    assert_equal_states({**expected, "return_statistics": None}, {**actual, "return_statistics": None})


@for_all
@pytest.mark.parametrize("kind", ["vector", "dict", "terminal"])
def test_a_bad_observation_is_named(algorithm: Any, kind: str) -> None:
    if kind == "dict":

        class DictEnv(RandomEnv):
            def step(self, action: Any) -> Any:
                observation, *rest = super().step(action)
                if self.steps == 5:
                    observation["position"][1] = np.nan
                return observation, *rest

        env, policy = DictEnv(None, spaces.Dict({"position": VECTOR, "gear": spaces.Discrete(2)})), "MultiInputPolicy"
        message = "(terminal )?observation 'position' .* at env step 5"
    elif kind == "terminal":

        class EndsBadly(RandomEnv):
            def step(self, action: Any) -> Any:
                observation, reward, *_ = super().step(action)
                ends = self.steps == 5
                return (observation * np.nan if ends else observation), reward, False, ends, {}

        env, policy, message = EndsBadly(), "MlpPolicy", "terminal observation .* at env step 5"
    else:
        env, policy = RandomEnv(fault=("observation", np.inf, 5)), "MlpPolicy"
        message = "(terminal )?observation .* at env step 5"
    model = small(algorithm, env, policy)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"(?s)environment 0 gave {message}; it must be finite"):
        model.learn(100)
    assert_equal_states(before, snapshot(model))


@for_all
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(2), spaces.MultiBinary(2)], ids=str)
def test_a_policy_that_cannot_act_is_named_and_no_action_is_taken(algorithm: Any, space: spaces.Space[Any]) -> None:
    env = DummyVecEnv([lambda: RandomEnv(space)])
    model = small(algorithm, env).learn(40)
    steps = env.envs[0].unwrapped.steps
    with torch.no_grad():
        model.policy.action_net.bias[0] = float("nan")
    with pytest.raises(ValueError, match=rf"policy .* at env step {model.num_timesteps}: .*No action was taken"):
        model.learn(40, reset_num_timesteps=False)
    assert env.envs[0].unwrapped.steps == steps


def test_a_policy_that_cannot_act_is_named_where_the_anchor_acts_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch then says nothing itself; packages switch it off for all.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    model = small(DEFPG, RandomEnv(spaces.Box(-1, 1, (2,))), defensive=0.999).learn(40)
    while model.recursion.large_batch:
        model.learn(1, reset_num_timesteps=False)
    with torch.no_grad():
        model.policy.action_net.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"policy .*No action was taken"):
        model.learn(40, reset_num_timesteps=False)


def break_after(model: Any, name: str, calls: int, value: float = float("nan")) -> None:
    """Put a NaN into the critic's targets, or the episodes' returns, at one update."""
    count = iter(range(1_000))
    newest_rollouts = model.window.newest_rollouts

    def broken_window(size: int) -> Any:
        window = newest_rollouts(size)
        transitions = window.transitions

        def broken(*arguments: Any) -> Any:
            batch = transitions(*arguments)
            if next(count) == calls:
                getattr(batch, name)[3] = value
            return batch

        window.transitions = broken  # type: ignore[method-assign]
        return window

    model.window.newest_rollouts = broken_window


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("advantages", "policy gradient has"),
        ("value_targets", r"policy\.(mlp_extractor\.value_net|value_net).* has become NaN"),
        ("behaviour_log_prob", "a log-probability is NaN"),
    ],
)
def test_a_nan_in_the_update_undoes_the_whole_update(name: str, message: str) -> None:
    model = small(STORMPlusPG, make_vec_env("CartPole-v1", 2))
    watched = Watched(model)
    break_after(model, name, calls=2)
    with pytest.raises(ValueError, match=f"the update after env step 192 is undone.*{message}"):
        model.learn(640)
    assert len(watched.states) == 3
    assert_equal_states_but_scale(watched.states[-1], snapshot(model))
    assert model._n_updates == 2
    model.learn(64, reset_num_timesteps=False)
    assert model._n_updates == 3


@pytest.mark.parametrize("algorithm", FAMILY, ids=lambda algorithm: algorithm.__name__)
def test_a_critic_that_diverges_is_undone_with_the_actors_step(algorithm: Any) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2), baseline="state_value")
    watched = Watched(model)
    fit = model._fit_critic

    def diverging(batch: Any) -> None:
        fit(batch)
        if model._n_updates >= 1:
            with torch.no_grad():
                model.policy.value_net.linear.weight[0, 0] = float("nan")

    model._fit_critic = diverging
    with pytest.raises(ValueError, match=r"policy\.value_net\.linear\.weight has become NaN"):
        model.learn(400)
    assert_equal_states(watched.states[-1], snapshot(model))


@for_all
def test_an_interrupted_update_is_undone(algorithm: Any) -> None:
    model = small(algorithm, make_vec_env("CartPole-v1", 2)).learn(100)
    before = snapshot(model)
    update = model.policy.update_observation_statistics

    def interrupted(observations: Any) -> None:
        update(observations)
        raise KeyboardInterrupt

    model.policy.update_observation_statistics = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, reset_num_timesteps=False)
    assert_equal_states_but_scale(before, snapshot(model))


def test_the_states_of_the_fisher_matrix_are_put_back_without_having_been_copied() -> None:
    model = small(STORMPlusPG, make_vec_env("CartPole-v1", 2)).learn(100)
    before = [states.data_ptr() for states in model.fisher_metric.rollouts]

    def interrupted(observations: Any) -> None:
        assert len(model.fisher_metric.rollouts) == len(before) + 1
        raise KeyboardInterrupt

    model.policy.update_observation_statistics = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, reset_num_timesteps=False)
    assert [states.data_ptr() for states in model.fisher_metric.rollouts] == before


def test_a_learning_rate_that_is_not_a_number_is_undone() -> None:
    for algorithm in (STORMPlusPG, SRVRPG):
        rate = {learning_rate_argument(algorithm): lambda remaining: 1e-3 if remaining > 0.5 else float("nan")}
        model = small(algorithm, **rate)
        with pytest.raises(ValueError, match=r"is undone.* NaN"):
            model.learn(300)
        assert torch.isfinite(parameters(model)).all()


def test_names_of_nested_tensors() -> None:
    assert not_finite_name({"a": [torch.ones(2), {"b": 1.0, "c": torch.ones(1, dtype=torch.long)}], "d": "nan"}) is None
    assert not_finite_name({"a": [torch.ones(2), {"b": float("inf")}]}) == "a.1.b"
