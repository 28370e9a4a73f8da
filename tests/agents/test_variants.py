"""Variants of STORM+PG for ablations, and the paper's STORM+ among them."""

from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from agents.variants import PAPER, PlainScheduledMomentum, STORMPlusPGVariant, segment_weights
from storm_rl import STORMPlusPG
from storm_rl.common.importance_weights import per_decision_weights, trajectory_weights
from storm_rl.storm_plus_pg.rollouts import Transitions

SMALL: dict[str, Any] = {"n_steps": 32, "critic_steps": 4, "reuse_rollouts": 1, "seed": 0, "device": "cpu"}


def small(env: Any, **arguments: Any) -> STORMPlusPG:
    return STORMPlusPG("MlpPolicy", env, **{**SMALL, **arguments})


def variant(env: Any, **arguments: Any) -> STORMPlusPGVariant:
    return STORMPlusPGVariant("MlpPolicy", env, **{**SMALL, **arguments})


def transitions_of(model: STORMPlusPG) -> tuple[Any, Transitions]:
    networks = model.networks()
    actor = networks.actor(model.window.observations())
    batch = model.window.transitions(actor.observations, networks, model.gamma, model.gae_lambda)
    return actor, batch


def test_euclidean_without_floor_and_cap_takes_the_papers_step() -> None:
    # Without observation statistics, whose first batch restarts the recursion.
    policy_kwargs = {"normalize_observations": False}
    model = variant(make_vec_env("CartPole-v1", n_envs=2), policy_kwargs=policy_kwargs, **PAPER)
    before = parameters_to_vector(model.policy.actor_parameters()).detach().clone()
    gradients: list[torch.Tensor] = []
    part_gradients = model._part_gradients

    def spy(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        parts, weights = part_gradients(*arguments)
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


@pytest.mark.parametrize("kind", ["per_decision", "trajectory"])
def test_products_of_ratios_as_weights(kind: str) -> None:
    model = variant(make_vec_env("CartPole-v1", n_envs=2), weights=kind, reuse_rollouts=2, max_weight=None)
    model.learn(64 * 4)
    actor, batch = transitions_of(model)
    _, weights = model._part_gradients(actor, batch)
    with torch.no_grad():
        ratios = model.policy.get_distribution(batch.observations).log_prob(batch.actions) - batch.behaviour_log_prob
    start = 0
    for end in model._segment_ends(len(ratios)).nonzero().flatten().tolist():
        part = ratios[start : end + 1]
        expected = part.cumsum(0) if kind == "per_decision" else part.sum().expand(len(part))
        torch.testing.assert_close(weights[start : end + 1], expected.exp(), rtol=1e-4, atol=1e-6)
        start = end + 1
    assert start == len(ratios)
    assert not torch.allclose(weights, torch.ones_like(weights), atol=1e-3)


def test_small_advantages_are_not_blown_up_to_unit_scale() -> None:
    model = variant(make_vec_env("CartPole-v1", n_envs=4), advantage_floor=0.1)
    model.learn(128)
    plain = transitions_of(model)[1].advantages
    ratio = float(plain.std()) / model.return_statistics.scale
    for floor, expected in ((0.0, 1.0), (0.5 * ratio, 1.0), (min(1.0, 2.0 * ratio), ratio / min(1.0, 2.0 * ratio))):
        model.advantage_floor = floor
        advantages = model._standardised(plain)
        assert float(advantages.std()) == pytest.approx(expected, rel=1e-4)
        assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"advantage_floor": -0.1}, "advantage_floor must be a number in"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"metric": "euclidean"}, "target_kl='auto' .*must be None"),
        ({"weights": "episode"}, "weights must be .*'episode'"),
        ({"fisher_states": 2}, "fisher_states"),
        ({"momentum": 2.0}, "momentum must be"),
        ({"momentum": "adam"}, "momentum must be"),
        ({"step_memory": 0.5}, "step_memory .*must be"),
        ({"step_kl": 0.0}, "step_kl .*must be greater than 0"),
    ],
)
def test_bad_argument_of_a_variant_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variant("CartPole-v1", **arguments)


def test_variant_with_its_defaults_is_the_agent() -> None:
    trained = [
        parameters_to_vector(make(make_vec_env("CartPole-v1", n_envs=2)).learn(192).policy.parameters())
        for make in (small, variant)
    ]
    assert torch.equal(*trained)


def test_steps_of_a_constant_kl() -> None:
    model = variant(make_vec_env("CartPole-v1", n_envs=2), step_kl=0.003)
    model.set_logger(configure(None, []))
    for size, square in ((0.1, 2.0), (100.0, 1e-4)):
        step_size = model._bounded(size, square)
        assert 0.5 * step_size**2 * square == pytest.approx(0.003)


def test_without_the_correction_it_is_plain_momentum() -> None:
    recursion = PlainScheduledMomentum(0.25)
    recursion.next_direction(torch.zeros(2), torch.ones(1, 2), None)
    direction = recursion.next_direction(torch.zeros(2), torch.tensor([[3.0, -1.0]]), torch.full((1, 2), 100.0))
    torch.testing.assert_close(direction, torch.tensor([1.5, 0.5]))


def log_probs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


MASK = torch.tensor([[True, True, True], [True, False, False]])
TARGET = log_probs([0.5, 0.4, 0.2], [0.9, 0.1, 0.1])
BEHAVIOUR = log_probs([0.25, 0.8, 0.1], [0.3, 0.1, 0.7])


def test_weights_of_trajectories_in_a_row_are_those_of_padded_ones() -> None:
    target, behaviour = TARGET[MASK], BEHAVIOUR[MASK]
    ends = torch.tensor([False, False, True, True])
    decisions = segment_weights(target, behaviour, ends, per_decision=True)
    torch.testing.assert_close(decisions, per_decision_weights(TARGET, BEHAVIOUR, MASK)[MASK])
    whole = segment_weights(target, behaviour, ends, per_decision=False)
    torch.testing.assert_close(whole, trajectory_weights(TARGET, BEHAVIOUR, MASK)[torch.tensor([0, 0, 0, 1])])
    assert float(segment_weights(target, behaviour, ends, per_decision=True, max_weight=1.5).max()) == 1.5
    with pytest.raises(ValueError, match="last step"):
        segment_weights(target, behaviour, torch.tensor([True, False, False, False]), per_decision=True)
