"""The closed form of the actor's derivatives against autograd, for every action distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from storm_rl.common.distributions import mean_kl
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.actor import ActorOnStates, DenseActorOnStates, actor_on_states, roots

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
CASES = {
    "discrete": (spaces.Discrete(3), {}),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), {}),
    "multibinary": (spaces.MultiBinary(3), {}),
    "box": (BOX, {}),
    "gsde": (BOX, {"use_sde": True}),
    "gsde, one for all, squashed": (BOX, {"use_sde": True, "full_std": False, "squash_output": True}),
    "relu": (spaces.Discrete(3), {"activation_fn": nn.ReLU}),
    "no hidden layer": (BOX, {"net_arch": []}),
}
PARTS = [slice(0, 4), slice(4, 9), slice(9, 12)]


@pytest.fixture(params=CASES, ids=list(CASES))
def actors(request: pytest.FixtureRequest) -> tuple[ActorOnStates, ActorOnStates]:
    torch.manual_seed(0)
    action_space, arguments = CASES[request.param]
    policy = StandardisedActorCriticPolicy(spaces.Box(-1, 1, (4,)), action_space, lambda _: 1e-3, **arguments)
    policy.set_training_mode(False)
    # Away from the start, where logits are nearly 0 and the noise is the same everywhere.
    with torch.no_grad():
        for parameter in policy.actor_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    observations = torch.randn(12, 4)
    policy.update_observation_statistics(observations)
    fast = actor_on_states(policy, observations)
    assert isinstance(fast, DenseActorOnStates)
    return fast, ActorOnStates(policy, observations)


def objective_of(actions: Tensor) -> Any:
    def objective(distribution: Distribution, part: slice) -> Tensor:
        log_prob = distribution.log_prob(actions[part])
        entropy = distribution.entropy()
        return log_prob * torch.arange(12.0)[part] - (log_prob if entropy is None else entropy)

    return objective


@pytest.mark.parametrize("elsewhere", [False, True])
def test_gradients_of_parts(actors: tuple[ActorOnStates, ActorOnStates], elsewhere: bool) -> None:
    fast, plain = actors
    with torch.no_grad():
        actions = plain.distribution().sample()
    theta = parameters_to_vector(plain.parameters).detach()
    at = theta + 0.1 * torch.randn_like(theta) if elsewhere else None
    expected = plain.part_gradients(objective_of(actions), PARTS, at)
    assert expected.shape == (3, theta.numel())
    torch.testing.assert_close(fast.part_gradients(objective_of(actions), PARTS, at), expected, rtol=1e-4, atol=1e-4)
    assert (parameters_to_vector(plain.parameters) == theta).all()


def test_distributions(actors: tuple[ActorOnStates, ActorOnStates]) -> None:
    fast, plain = actors
    theta = parameters_to_vector(plain.parameters).detach()
    for at in (None, theta + 0.1 * torch.randn_like(theta)):
        assert float(mean_kl(fast.distribution(at), plain.distribution(at))) == pytest.approx(0.0, abs=1e-6)
    assert float(mean_kl(fast.distribution(), fast.distribution(at))) > 1e-5


def test_fisher_products(actors: tuple[ActorOnStates, ActorOnStates]) -> None:
    fast, plain = actors
    fast_product, product = fast.fisher_product(), plain.fisher_product()
    for _ in range(2):
        vector = torch.randn(sum(parameter.numel() for parameter in plain.parameters))
        torch.testing.assert_close(fast_product(vector), product(vector), rtol=1e-4, atol=1e-4)


def categorical_blocks(scale: float) -> np.ndarray:
    logits = scale * torch.randn(200, 4)
    logits[0], logits[1] = torch.tensor([0.0, -200.0, -200.0, -200.0]), torch.tensor([0.0, 0.0, -15.0, -16.0])
    probabilities = torch.softmax(logits, dim=1)
    blocks = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    return np.asarray(blocks)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_roots_of_a_categoricals_blocks_are_one_column_short(scale: float) -> None:
    torch.manual_seed(0)
    blocks = categorical_blocks(scale)
    columns = roots(blocks)
    assert len(columns) == 3
    assert all(column.dtype == np.float32 for column in columns)
    np.testing.assert_allclose(sum(c[:, :, None] * c[:, None, :] for c in columns), blocks, atol=1e-6)


def test_roots_do_not_blow_up_what_rounding_left_of_a_pivot() -> None:
    blocks = np.array([[[0.0, 1e-20, -1e-20], [1e-20, 0.5, 0.1], [-1e-20, 0.1, 0.5]]])
    blocks = np.concatenate([blocks, [[[-1e-18, 1e-18, 0.0], [1e-18, 0.5, 0.1], [0.0, 0.1, 0.5]]], [np.eye(3)]])
    columns = roots(blocks)
    np.testing.assert_allclose(sum(c[:, :, None] * c[:, None, :] for c in columns), blocks, atol=1e-15)


def test_roots_of_blocks_with_nothing_to_leave_out() -> None:
    factors = np.random.default_rng(0).standard_normal((50, 3, 3))
    blocks = factors @ factors.transpose(0, 2, 1)
    columns = roots(blocks)
    assert len(columns) == 3
    np.testing.assert_allclose(sum(c[:, :, None] * c[:, None, :] for c in columns), blocks, atol=1e-12)


def test_fisher_matrix_of_a_policy_that_has_become_deterministic_is_zero() -> None:
    policy = StandardisedActorCriticPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), lambda _: 1e-3)
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([0.0, 500.0, 0.0]))
    product = actor_on_states(policy, torch.randn(12, 4)).fisher_product()
    vector = torch.randn(sum(parameter.numel() for parameter in policy.actor_parameters()))
    assert torch.equal(product(vector), torch.zeros_like(vector))


def test_other_policies_are_differentiated_by_autograd() -> None:
    policy = StandardisedActorCriticPolicy(
        spaces.Box(-1, 1, (4,)), spaces.Discrete(2), lambda _: 1e-3, activation_fn=nn.ELU
    )
    assert type(actor_on_states(policy, torch.randn(3, 4))) is ActorOnStates
