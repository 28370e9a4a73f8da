"""One update of the agent against its equations, written out anew."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg import defaults
from storm_rl.storm_plus_pg.actor_critic import ActorCritic
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic
from storm_rl.storm_plus_pg.rollouts import Transitions
from tests.contract.cases import RandomEnv
from tests.storm_plus_pg.test_storm_plus_pg import small


def flat(model: STORMPlusPG) -> torch.Tensor:
    return parameters_to_vector(model.policy.actor_parameters()).detach().clone()


def transitions_of(model: STORMPlusPG) -> tuple[Any, Transitions]:
    networks = model.networks()
    actor = networks.actor(model.window.observations())
    batch = model.window.transitions(actor.observations, networks, model.gamma, model.gae_lambda)
    return actor, batch._replace(advantages=model._standardised(batch.advantages))


def surrogate_gradient(model: STORMPlusPG, batch: Transitions, parameters: torch.Tensor, ent_coef: float) -> Any:
    """Gradient at ``parameters`` of minus the mean of weight times advantage times log-probability, plus entropy."""
    actor, here = model.policy.actor_parameters(), flat(model)
    vector_to_parameters(parameters, actor)
    distribution = model.policy.get_distribution(batch.observations)
    log_prob = distribution.log_prob(batch.actions)
    weights = torch.exp(log_prob.detach() - batch.behaviour_log_prob)
    objective = (weights * batch.advantages * log_prob).mean() + ent_coef * distribution.entropy().mean()
    gradient = parameters_to_vector(torch.autograd.grad(-objective, actor))
    vector_to_parameters(here, actor)
    return gradient


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("by_autograd", [False, True])
def test_gradients_are_those_of_the_weighted_surrogate_with_its_entropy(
    task: str, by_autograd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_autograd:
        monkeypatch.setattr(NumpyActorCritic, "from_policy", lambda policy: None)
    model = small(make_vec_env(task, n_envs=2), reuse_rollouts=2, max_weight=None).learn(64 * 3)
    assert isinstance(model.networks(), ActorCritic) == by_autograd
    actor, batch = transitions_of(model)
    for parameters in (flat(model), flat(model) + 0.02 * torch.randn(len(flat(model)))):
        parts, weights = model._part_gradients(actor, batch, parameters, 0.3)
        expected = surrogate_gradient(model, batch, parameters, 0.3)
        assert float(weights.std()) > 1e-3
        torch.testing.assert_close(parts.mean(dim=0), expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_the_entropy_bonus_is_divided_by_more_than_the_deviation_where_advantages_are(floor: float) -> None:
    model = small(make_vec_env("CartPole-v1", n_envs=2), ent_coef=0.5, use_action_values=False)
    model.advantage_floor = floor
    part_gradients, seen = model._part_gradients, []

    def spy(actor: Any, batch: Transitions, parameters: torch.Tensor | None, ent_coef: float) -> Any:
        seen.append((ent_coef, 0.5 * float(batch.advantages.std())))
        return part_gradients(actor, batch, parameters, ent_coef)

    model._part_gradients = spy  # type: ignore[method-assign]
    model.learn(64 * 3)
    # Of the newest parameters and of the previous ones, which there are at the third update.
    assert len(seen) == 4
    for ent_coef, expected in seen:
        assert ent_coef == pytest.approx(expected, rel=1e-5)
        assert ent_coef == pytest.approx(0.5, rel=1e-5) if floor == 0.0 else ent_coef < 0.49


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("bounds", [([-2.0], [2.0]), ([-1.0, -3.0, 0.0], [1.0, 3.0, 0.5])])
def test_the_entropy_bonus_ends_where_noise_has_twice_the_variance_of_its_start(
    use_sde: bool, bounds: tuple[list[float], list[float]]
) -> None:
    low, high = np.array(bounds, dtype=np.float32)
    env = make_vec_env(RandomEnv, n_envs=2, env_kwargs={"action_space": spaces.Box(low, high)})
    model = small(env, use_sde=use_sde).learn(64)
    _, batch = transitions_of(model)
    batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
    log_std = model.policy.log_std
    start = torch.full_like(log_std, model.policy.log_std_init)
    for factor, grows in ((1.0, True), (1.95, True), (2.05, False)):  # Of the variance.
        with torch.no_grad():
            log_std.copy_(start + 0.5 * math.log(factor))
        actor = model.networks().actor(batch.observations)
        parts, _ = model._part_gradients(actor, batch, None, 0.3)
        # Steps go against the gradient.
        assert bool((parts.mean(dim=0)[-log_std.numel() :] < 0.0).any()) == grows
        assert grows or not parts.any()


def test_the_entropy_of_choices_has_no_other_bound_than_its_own() -> None:
    assert defaults.largest_entropy(small("CartPole-v1").policy) == math.inf


def logged(model: STORMPlusPG, updates: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    record = model._record_step

    def spy(*arguments: Any) -> None:
        record(*arguments)
        rows.append(dict(model.logger.name_to_value))

    model._record_step = spy  # type: ignore[method-assign]
    model.learn(updates * model.n_steps * model.n_envs)
    return rows


def test_the_step_size_is_the_documented_one_while_no_bound_is_reached() -> None:
    # Noisy gradients, for which the recursion remembers something.
    env = make_vec_env("CartPole-v1", n_envs=2)
    rows = logged(small(env, target_kl=None, reuse_rollouts=2, use_action_values=False), 5)
    assert any(row["train/momentum"] < 0.99 for row in rows)
    total = 0.0
    for row in rows:
        total = 29 / 30 * total + row["train/direction_metric_norm"] ** 2 / max(row["train/momentum"], 0.1)
        assert row["train/step_size"] == pytest.approx(total ** (-1 / 3), rel=1e-5)
        assert row["train/step_bound"] == 0


def test_a_step_beyond_its_bound_is_shortened_to_it_and_says_so() -> None:
    # Of so few transitions the action values may explain nothing, which leaves no step to be shortened.
    for row in logged(small(make_vec_env("CartPole-v1", n_envs=2), target_kl=1e-6, use_action_values=False), 3):
        assert row["train/step_bound"] == 1
        quadratic = 0.5 * (row["train/step_size"] * row["train/direction_metric_norm"]) ** 2
        assert quadratic == pytest.approx(1e-6, rel=1e-4)


def test_the_next_updates_previous_parameters_are_those_before_the_step() -> None:
    model = small(make_vec_env("CartPole-v1", n_envs=2), policy_kwargs={"normalize_observations": False})
    for _ in range(3):
        before = flat(model)
        model.learn(64, reset_num_timesteps=False)
        assert torch.equal(model.recursion.previous_parameters, before)
        assert not torch.equal(flat(model), before)


def test_the_critic_is_fitted_after_the_actor_has_learned_from_it() -> None:
    def trained(spoil: bool) -> torch.Tensor:
        model = small(make_vec_env("CartPole-v1", n_envs=2)).learn(64)
        update_critic = model._update_critic

        def update(networks: Any, batch: Transitions) -> None:
            update_critic(networks, batch)
            if spoil:
                with torch.no_grad():
                    model.policy.value_head.linear.bias.add_(100.0)

        model._update_critic = update  # type: ignore[method-assign]
        model.learn(64, reset_num_timesteps=False)
        return flat(model)

    assert torch.equal(trained(spoil=False), trained(spoil=True))


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ELU], ids=["numpy", "autograd"])
def test_observation_statistics_move_the_policy_at_the_first_update_alone(activation: type[torch.nn.Module]) -> None:
    arguments = {"policy_kwargs": {"activation_fn": activation, "net_arch": [16]}, "use_action_values": False}
    rows: list[float] = []
    model = small(make_vec_env("Pendulum-v1", n_envs=2), **arguments)
    update = model._update_critic

    def spy(networks: Any, batch: Transitions) -> None:
        rows.append(model.logger.name_to_value["train/statistics_kl"])
        update(networks, batch)

    model._update_critic = spy  # type: ignore[method-assign]
    model.learn(64 * 5)
    assert rows[0] > 1e-3
    assert max(rows[1:]) < 1e-5


def test_what_is_remembered_follows_the_statistics() -> None:
    # d_{t-1} and theta_{t-1} in the coordinates of the new statistics: the policy at theta_{t-1} is the same function.
    model = small(make_vec_env("Pendulum-v1", n_envs=2)).learn(64 * 2)
    observations = model.window.observations()
    actor = model.networks().actor(observations)
    previous = copy.copy(actor.distribution(model.recursion.previous_parameters))
    model.recursion.follow_statistics(model.policy, observations * 3.0 + 1.0)
    now = model.networks().actor(observations).distribution(model.recursion.previous_parameters)
    torch.testing.assert_close(now.mode(), previous.mode(), rtol=1e-3, atol=1e-4)
