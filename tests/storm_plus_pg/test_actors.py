"""The closed form of the actor's derivatives against autograd, for every action distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.actor_critic import Actor
from storm_rl.storm_plus_pg.metric import mean_kl
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActor, NumpyActorCritic

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
CASES = {
    "discrete": (spaces.Discrete(3), {}),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), {}),
    "many outputs": (spaces.Discrete(12), {}),
    "multibinary": (spaces.MultiBinary(3), {}),
    "box": (BOX, {}),
    "gsde": (BOX, {"use_sde": True}),
    "gsde, one for all, squashed": (BOX, {"use_sde": True, "full_std": False, "squash_output": True}),
    "relu": (spaces.Discrete(3), {"activation_fn": nn.ReLU}),
    "no hidden layer": (BOX, {"net_arch": []}),
}
PARTS = [slice(0, 4), slice(4, 9), slice(9, 12)]


@pytest.fixture(params=CASES, ids=list(CASES))
def actors(request: pytest.FixtureRequest) -> tuple[NumpyActor, Actor]:
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
    networks = NumpyActorCritic.from_policy(policy)
    assert networks is not None
    return networks.actor(observations), Actor(policy, observations)


def objective_of(actions: Tensor) -> Any:
    def objective(distribution: Distribution, part: slice) -> Tensor:
        log_prob = distribution.log_prob(actions[part])
        entropy = distribution.entropy()
        return log_prob * torch.arange(12.0)[part] - (log_prob if entropy is None else entropy)

    return objective


@pytest.mark.parametrize("elsewhere", [False, True])
def test_gradients_of_parts(actors: tuple[NumpyActor, Actor], elsewhere: bool) -> None:
    fast, plain = actors
    with torch.no_grad():
        actions = plain.distribution().sample()
    theta = parameters_to_vector(plain.parameters).detach()
    at = theta + 0.1 * torch.randn_like(theta) if elsewhere else None
    expected = plain.part_gradients(objective_of(actions), PARTS, at)
    assert expected.shape == (3, theta.numel())
    torch.testing.assert_close(fast.part_gradients(objective_of(actions), PARTS, at), expected, rtol=1e-4, atol=1e-4)
    assert (parameters_to_vector(plain.parameters) == theta).all()


def test_distributions(actors: tuple[NumpyActor, Actor]) -> None:
    fast, plain = actors
    theta = parameters_to_vector(plain.parameters).detach()
    for at in (None, theta + 0.1 * torch.randn_like(theta)):
        assert float(mean_kl(fast.distribution(at), plain.distribution(at))) == pytest.approx(0.0, abs=1e-6)
    assert float(mean_kl(fast.distribution(), fast.distribution(at))) > 1e-5


def test_fisher_products(actors: tuple[NumpyActor, Actor]) -> None:
    fast, plain = actors
    fast_product, product = fast.fisher_product(), plain.fisher_product()
    for _ in range(2):
        vector = torch.randn(sum(parameter.numel() for parameter in plain.parameters))
        torch.testing.assert_close(fast_product(vector), product(vector), rtol=1e-4, atol=1e-4)


def test_fisher_matrix_of_a_policy_that_has_become_deterministic_is_zero() -> None:
    policy = StandardisedActorCriticPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), lambda _: 1e-3)
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([0.0, 500.0, 0.0]))
    networks = NumpyActorCritic.from_policy(policy)
    assert networks is not None
    product = networks.actor(torch.randn(12, 4)).fisher_product()
    vector = torch.randn(sum(parameter.numel() for parameter in policy.actor_parameters()))
    assert torch.equal(product(vector), torch.zeros_like(vector))
