"""The observation statistics move and the policy stays the function that it was."""

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.nn.utils import parameters_to_vector

from storm_rl.common.policies import StandardisedActorCriticPolicy, StandardisedMultiInputActorCriticPolicy
from storm_rl.storm_plus_pg.metric import mean_kl
from storm_rl.storm_plus_pg.recursion import PolicyRecursion, move_observation_statistics

VECTOR = spaces.Box(-10.0, 10.0, (3,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), "uint8")
DICT = spaces.Dict({"a": spaces.Box(-10.0, 10.0, (2, 2)), "image": IMAGE, "kind": spaces.Discrete(3), "z": VECTOR})


class Own(FlattenExtractor):
    """A features extractor of which nothing is known."""


def observations(space: spaces.Space[Any], scale: float, n: int = 40) -> Any:
    space.seed(0)
    if isinstance(space, spaces.Dict):
        return {key: observations(part, scale, n) for key, part in space.items()}
    samples = torch.stack([torch.as_tensor(space.sample()) for _ in range(n)])
    return samples * scale + scale if samples.is_floating_point() else samples


def policy_after_one_batch(space: spaces.Space[Any], action: spaces.Space[Any], **arguments: Any) -> Any:
    torch.manual_seed(0)
    kind = StandardisedMultiInputActorCriticPolicy if isinstance(space, spaces.Dict) else StandardisedActorCriticPolicy
    policy = kind(space, action, lambda _: 1e-3, **arguments)
    policy.update_observation_statistics(observations(space, 1.0))
    # Away from the start, where logits hardly depend on what is observed.
    for parameter in policy.actor_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return policy


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["vector", "dict"])
@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        (spaces.Discrete(3), {}),
        (spaces.Box(-1.0, 1.0, (2,)), {}),
        (spaces.Box(-1.0, 1.0, (2,)), {"use_sde": True}),
        (spaces.Discrete(3), {"net_arch": []}),
    ],
    ids=["discrete", "box", "gsde", "linear"],
)
def test_the_first_layers_make_up_for_other_statistics(
    space: spaces.Space[Any], action: spaces.Space[Any], arguments: dict[str, Any]
) -> None:
    def moved(made_up_for: bool) -> tuple[float, float]:
        policy, seen = policy_after_one_batch(space, action, **arguments), observations(space, 1.0)
        before, values = copy.copy(policy.get_distribution(seen)), policy.predict_values(seen)
        if made_up_for:
            assert move_observation_statistics(policy, observations(space, 3.0)) is not None
        else:
            policy.update_observation_statistics(observations(space, 3.0))
        difference = (policy.predict_values(seen) - values).detach()
        return float(mean_kl(before, policy.get_distribution(seen)).detach()), float(difference.abs().mean())

    kl, difference = moved(made_up_for=False)
    kept_kl, kept_difference = moved(made_up_for=True)
    assert kl > 3e-5
    assert abs(kept_kl) < 0.01 * kl
    assert kept_difference < 0.01 * difference


def test_a_gradient_follows_by_the_chain_rule() -> None:
    policy = policy_after_one_batch(VECTOR, spaces.Discrete(3))
    seen, actions = observations(VECTOR, 1.0), torch.arange(40) % 3
    parameters = policy.actor_parameters()

    def gradient() -> torch.Tensor:
        log_prob = policy.get_distribution(seen).log_prob(actions).sum()
        return parameters_to_vector(torch.autograd.grad(log_prob, parameters))

    before = gradient()
    change = move_observation_statistics(policy, observations(VECTOR, 3.0))
    assert change is not None
    after = gradient()
    assert not torch.allclose(after, before, rtol=0.1)
    torch.testing.assert_close(change.gradient(before), after, rtol=1e-3, atol=1e-3)


def test_the_recursion_begins_again_with_the_first_statistics_only() -> None:
    policy = StandardisedActorCriticPolicy(VECTOR, spaces.Discrete(3), lambda _: 1e-3)
    recursion, theta = PolicyRecursion(), parameters_to_vector(policy.actor_parameters()).detach()
    for first in (True, False):
        recursion.next_direction(theta, torch.ones(2, len(theta)), None)
        recursion.follow_statistics(policy, observations(VECTOR, 3.0))
        assert recursion.needs_previous is not first


def test_own_extractors_and_unstandardised_observations_have_nothing_to_make_up_for() -> None:
    own = policy_after_one_batch(VECTOR, spaces.Discrete(2), features_extractor_class=Own)
    plain = policy_after_one_batch(VECTOR, spaces.Discrete(2), normalize_observations=False)
    for policy in (own, plain):
        before = parameters_to_vector(policy.parameters()).detach().clone()
        assert move_observation_statistics(policy, observations(VECTOR, 3.0)) is None
        assert torch.equal(parameters_to_vector(policy.parameters()), before)


def test_values_outlast_another_unit_of_theirs() -> None:
    policy = policy_after_one_batch(VECTOR, spaces.Discrete(2))
    seen = observations(VECTOR, 1.0)
    values = policy.predict_values(seen).detach()
    policy.set_value_scale(5.0, preserve=True)
    assert policy.value_scale == 5.0
    torch.testing.assert_close(policy.predict_values(seen).detach(), values)
    policy.set_value_scale(10.0)
    torch.testing.assert_close(policy.predict_values(seen).detach(), 2.0 * values)
