import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.metric import FisherMetric, conjugate_gradient, fisher_vector_product, mean_kl


def test_the_metric_keeps_an_equal_share_of_distinct_states_of_each_recent_rollout() -> None:
    metric = FisherMetric(damping=0.1, max_steps=10, n_rollouts=2, max_states=8)
    for number in range(3):
        metric.remember(10.0 * number + torch.arange(6.0))
    states = metric.states
    assert isinstance(states, Tensor)
    assert len(set(states.tolist())) == 8
    assert (states // 10.0).tolist() == [1.0] * 4 + [2.0] * 4


def small_network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def fisher_product(old: Distribution, new: Distribution, parameters: list[Tensor], vector: Tensor) -> Tensor:
    divergence = kl_divergence(old, new).reshape(len(new.sample()), -1).sum(dim=1).mean()
    return fisher_vector_product(divergence, parameters)(vector)


def test_product_equals_the_enumerated_outer_products_of_scores_for_a_categorical_policy() -> None:
    network = small_network(3)
    parameters = list(network.parameters())
    states = torch.randn(5, 3, dtype=torch.float64)
    vector = torch.randn(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    expected = torch.zeros_like(vector)
    for state in states:
        policy = Categorical(logits=network(state))
        for action, probability in enumerate(policy.probs.detach()):
            log_prob = policy.log_prob(torch.tensor(action))
            score = flat(torch.autograd.grad(log_prob, parameters, retain_graph=True))
            expected += probability * score * score.dot(vector) / len(states)
    logits = network(states)
    product = fisher_product(Categorical(logits=logits.detach()), Categorical(logits=logits), parameters, vector)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


def test_product_equals_the_analytic_fisher_matrix_of_a_gaussian_policy() -> None:
    network = small_network(2)
    log_std = nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
    parameters = [*network.parameters(), log_std]
    states = torch.randn(4, 3, dtype=torch.float64)
    vector = torch.randn(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    expected = torch.zeros_like(vector)
    for state in states:
        for dimension, precision in enumerate(torch.exp(-2.0 * log_std.detach())):
            mean = network(state)[dimension]
            slope = flat(torch.autograd.grad(mean, parameters, materialize_grads=True))
            expected += precision * slope * slope.dot(vector) / len(states)
    expected[-2:] += 2.0 * vector[-2:]  # The Fisher information of log_std is 2 in each dimension.
    mean, std = network(states), log_std.exp().expand(4, 2)
    product = fisher_product(Normal(mean.detach(), std.detach()), Normal(mean, std), parameters, vector)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


def test_conjugate_gradient_solves_a_positive_definite_system() -> None:
    generator = np.random.default_rng(0)
    root = generator.normal(size=(12, 12))
    matrix = torch.as_tensor(root @ root.T + np.eye(12))
    target = torch.as_tensor(generator.normal(size=12))
    solution = conjugate_gradient(lambda v: matrix @ v, target, max_steps=50, tolerance=1e-24)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 3])
def test_conjugate_gradient_stopped_early_still_descends(iterations: int) -> None:
    matrix = torch.diag(torch.logspace(-3, 3, 20, dtype=torch.float64))
    target = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert target.dot(conjugate_gradient(lambda v: matrix @ v, target, iterations)) > 0.0


def test_conjugate_gradient_of_zero_is_zero() -> None:
    assert not conjugate_gradient(lambda v: v, torch.zeros(3), 10).any()


ACTION_SPACES = (
    spaces.Discrete(3),
    spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
)


def policy_for(action_space: spaces.Space) -> StandardisedActorCriticPolicy:
    torch.manual_seed(0)
    return StandardisedActorCriticPolicy(spaces.Box(-1.0, 1.0, (3,)), action_space, lambda _: 1e-3)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_copied_distribution_survives_the_next_call(action_space: spaces.Space) -> None:
    policy = policy_for(action_space)
    actions = torch.as_tensor(np.stack([action_space.sample()])).float()
    states = torch.ones(1, 3)
    first = copy.copy(policy.get_distribution(states))
    before = first.log_prob(actions).clone()
    with torch.no_grad():
        policy.action_net.weight.mul_(100.0)
    policy.get_distribution(states)
    torch.testing.assert_close(first.log_prob(actions), before)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_mean_kl_agrees_with_sampled_log_ratios(action_space: spaces.Space) -> None:
    policy = policy_for(action_space)
    states = torch.randn(1, 3).expand(40_000, 3)
    with torch.no_grad():
        old = copy.copy(policy.get_distribution(states))
        policy.action_net.weight.mul_(60.0)
        new = copy.copy(policy.get_distribution(states))
        actions = old.sample()
        ratios = old.log_prob(actions) - new.log_prob(actions)
    error = float(ratios.std()) / len(ratios) ** 0.5
    assert abs(float(mean_kl(old, new)) - float(ratios.mean())) < 4.0 * error
    assert mean_kl(old, old) == 0.0
