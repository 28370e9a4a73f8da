"""Action values: the critic against exact values, the policy gradient with its control variate against exact ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.optimize import nnls
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from envs.mdps import EnumerableEnv, two_state
from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg import action_values
from storm_rl.storm_plus_pg.action_values import environment_units, nonnegative_slopes, with_control_variate
from storm_rl.storm_plus_pg.rollouts import Transitions
from tests.contract.cases import RandomEnv

SMALL: dict[str, Any] = {"n_steps": 32, "critic_steps": 8, "batch_size": 32, "seed": 0, "device": "cpu"}


def ready(model: STORMPlusPG) -> STORMPlusPG:
    model.set_logger(configure(None, []))
    return model


def fitted_values(model: STORMPlusPG, observations: Tensor, actions: Tensor) -> Tensor:
    assert model.action_values is not None
    features = model.policy.critic_features(observations)
    return model.action_values.values(model.policy, features, actions) * model.return_statistics.scale


@pytest.mark.parametrize("constant", [0.0, 300.0])
def test_fits_the_values_of_another_policy_than_the_one_that_acted(constant: float) -> None:
    # The data are of the untrained, nearly uniform policy; the values are those of one that takes action 1 nearly
    # always, on the same MDP without end.
    mdp, gamma = two_state(horizon=2000, gamma=0.5), 0.5
    mdp = replace(mdp, rewards=mdp.rewards + constant)
    model = STORMPlusPG(
        "MlpPolicy", make_vec_env(lambda: EnumerableEnv(mdp), 8), gamma=gamma, **{**SMALL, "n_steps": 256}
    )
    model._update_actor = model._update_critic = lambda *_: None  # type: ignore[method-assign]
    ready(model.learn(256 * 8 * 3))
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor([-2.0, 2.0]))
    model.critic_steps = 800
    assert model.action_values is not None
    offset = model.policy.value_offset
    assert (offset > 0.0) == (constant > 0.0)
    for _ in range(3):
        scale, minibatches = model.return_statistics.scale, model._minibatches
        model.action_values.fit(model.networks(), model.window, gamma, scale, minibatches, model.logger)
    states = torch.arange(2).repeat_interleave(2)
    found = fitted_values(model, states, torch.tensor([0, 1, 0, 1])).T.reshape(2, 2, 2)
    policy = model.policy.get_distribution(torch.arange(2)).distribution.probs.detach().double()  # type: ignore[union-attr]
    expected_rewards = (mdp.transitions * mdp.rewards).sum(dim=2)
    exact = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(100):
        exact = expected_rewards + gamma * mdp.transitions @ (policy * exact).sum(dim=1)
    # Those of the policy that acted are .5 and more away.
    np.testing.assert_allclose(found[0].numpy() + offset, exact.numpy(), atol=0.2)
    # The other estimate looks one step ahead and has the rest from the state-value critic, which was not trained.
    scale = model.return_statistics.scale
    beyond = model.networks().values(torch.arange(2)).double()
    lookahead = expected_rewards + gamma * mdp.transitions @ beyond
    np.testing.assert_allclose((found[1].numpy() + offset) / scale, lookahead.numpy() / scale, atol=0.2)


class OneStep(RandomEnv):
    """A random environment whose episodes all end at a time limit."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, True, {}


def test_without_a_transition_to_fit_to_the_critic_stays() -> None:
    space = spaces.Box(-1.0, 1.0, (2,))
    model = STORMPlusPG("MlpPolicy", make_vec_env(lambda: OneStep(None, space), 2), **SMALL)
    assert model.action_values is not None
    before = parameters_to_vector(model.action_values.parameters()).detach().clone()
    model.learn(64 * 2)
    assert torch.equal(before, parameters_to_vector(model.action_values.parameters()))


def batch_of(model: STORMPlusPG, n: int, value_of: Any) -> tuple[Transitions, Tensor]:
    """``n`` visits of state 0 with actions of the policy, and the probabilities of these."""
    observations = torch.zeros(n, dtype=torch.long)
    torch.manual_seed(1)
    distribution = model.policy.get_distribution(observations)
    actions = action_values.independent_sample(distribution).detach()
    log_prob = distribution.log_prob(actions).detach()
    zeros = torch.zeros(n)
    batch = Transitions(observations, actions, log_prob, zeros, value_of(actions), zeros)
    return batch, distribution.distribution.probs[0].detach()  # type: ignore[union-attr]


@pytest.mark.parametrize("factor", [0.0, float("inf")], ids=["all of the residual", "none of it"])
def test_gradient_is_exact_with_any_action_values_or_with_exact_ones(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_values, "NOISE_FACTOR", factor)
    env = make_vec_env(lambda: EnumerableEnv(two_state()), 1)
    model = ready(STORMPlusPG("MlpPolicy", env, **SMALL))
    rewards = torch.tensor([1.0, -0.5])
    batch, probabilities = batch_of(model, 40_000, lambda actions: rewards[actions])
    centred = batch._replace(advantages=batch.advantages - (probabilities * rewards).sum())
    if factor > 0.0:
        monkeypatch.setattr(
            model.action_values,
            "values",
            lambda policy, features, actions: torch.stack([rewards[actions] * 3.0 + 7.0, torch.rand(len(actions))], 1),
        )
    actor = model.networks().actor(batch.observations)
    bare = lambda each: model._part_gradients(actor, each)  # noqa: E731
    assert model.action_values is not None
    mixed = with_control_variate(model.action_values, actor, centred, None, bare, model.logger)
    gradients, _ = model._part_gradients(actor, mixed)
    log_probs = model.policy.get_distribution(batch.observations[:1]).distribution.logits.flatten()  # type: ignore[union-attr]
    objective = -(log_probs.softmax(dim=0) * rewards).sum()
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(objective, model.policy.actor_parameters())])
    measures, found = model.logger.name_to_value, gradients.mean(dim=0)
    assert measures["train/residual_share"] == (1.0 if factor == 0.0 else 0.0)
    if factor > 0.0:
        # The noise of a baseline of four samples: 1 / (1 + 1/4) of the slope.
        assert measures["train/action_value_slope"] == pytest.approx(0.8 / 3.0, rel=0.02)
        found = found / 0.8
    assert float((found - exact).norm() / exact.norm()) < 0.03


def test_residual_that_is_noise_is_left_out_and_one_that_is_not_is_kept() -> None:
    env = make_vec_env(lambda: EnumerableEnv(two_state()), 1)
    model = ready(STORMPlusPG("MlpPolicy", env, **SMALL))
    model.action_values.values = lambda policy, features, actions: torch.zeros(len(actions), 2)  # type: ignore

    def share(value_of: Any) -> float:
        batch, _ = batch_of(model, 4000, value_of)
        batch = batch._replace(advantages=batch.advantages - batch.advantages.mean())
        actor = model.networks().actor(batch.observations)
        bare = lambda each: model._part_gradients(actor, each)  # noqa: E731
        assert model.action_values is not None
        with_control_variate(model.action_values, actor, batch, None, bare, model.logger)
        return float(model.logger.name_to_value["train/residual_share"])

    signal = torch.tensor([1.0, -0.5])
    assert share(lambda actions: signal[actions]) > 0.9
    noise = [share(lambda actions: torch.randn(len(actions))) for _ in range(3)]
    assert min(noise) < 0.5


def test_slopes_are_those_of_nonnegative_least_squares() -> None:
    torch.manual_seed(0)
    weights, inputs = torch.rand(200, dtype=torch.float64) + 0.5, torch.randn(200, 2, dtype=torch.float64)
    root = weights.sqrt()
    for truth in ([2.0, 1.0], [2.0, -1.0], [-1.0, 0.5], [-1.0, -2.0]):
        targets = inputs @ torch.tensor(truth, dtype=torch.float64) + torch.randn(200, dtype=torch.float64)
        expected, _ = nnls((root[:, None] * inputs).numpy(), (root * targets).numpy())
        np.testing.assert_allclose(nonnegative_slopes(inputs, targets, weights).numpy(), expected, atol=1e-9)
    assert nonnegative_slopes(torch.zeros(5, 2), torch.ones(5), torch.ones(5)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        (
            spaces.Box(np.array([0.0, -3.0]), np.array([1000.0, 1.0]), dtype=np.float64),
            [[0.0, -3.0], [1200.0, 1.0], [500.0, -1.0]],
            [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]],
        ),
        (spaces.Discrete(3), [2, 0], [[0, 0, 1], [1, 0, 0]]),
        (spaces.MultiDiscrete([2, 3]), [[1.0, 2.0], [0.0, 0.0]], [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]),
        (spaces.MultiBinary(2), [[1.0, 0.0]], [[1, 0]]),
    ],
)
def test_actions_are_seen_as_the_environment_takes_them(space: spaces.Space[Any], actions: Any, expected: Any) -> None:
    model = STORMPlusPG("MlpPolicy", RandomEnv(space, spaces.Box(-1.0, 1.0, (2,))), **SMALL)
    units = environment_units(model.policy, torch.tensor(actions))
    np.testing.assert_allclose(units.numpy(), np.array(expected, dtype=np.float32), atol=1e-6)
    assert units.shape[1] == spaces.flatdim(space)
    model.learn(32)


def test_noise_of_a_sample_is_independent_in_each_state() -> None:
    # gSDE acts with one noise matrix for many states: in equal states its actions are equal.
    model = STORMPlusPG("MlpPolicy", "Pendulum-v1", **SMALL)
    distribution = model.policy.get_distribution(torch.zeros(50, 3))
    assert float(distribution.sample().detach().std()) < 1e-6
    assert float(action_values.independent_sample(distribution).std()) > 0.1


def test_is_saved_and_a_model_from_before_there_were_any_is_loaded_without(tmp_path: Any) -> None:
    model = STORMPlusPG("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
    model.save(tmp_path / "with.zip")
    loaded = STORMPlusPG.load(tmp_path / "with.zip", env=model.get_env())
    assert model.action_values is not None
    assert loaded.action_values is not None
    for own, other in zip(model.action_values.parameters(), loaded.action_values.parameters(), strict=True):
        assert torch.equal(own, other)
    assert loaded.action_values.optimizer.state_dict()["state"][0]["step"] == 16
    former = STORMPlusPG("MlpPolicy", "CartPole-v1", use_action_values=False, **SMALL).learn(64)
    del former.use_action_values  # As in a file of version 0.1.
    former.save(tmp_path / "without.zip")
    assert STORMPlusPG.load(tmp_path / "without.zip").action_values is None


def test_features_that_are_trained_have_none_by_default() -> None:
    images = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
    assert STORMPlusPG("CnnPolicy", RandomEnv(None, images), **SMALL).action_values is None
    asked_for = STORMPlusPG("CnnPolicy", RandomEnv(None, images), use_action_values=True, **SMALL).learn(32)
    assert asked_for.action_values is not None
