"""The closed form of a policy against the policy itself."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from storm_rl.common.policies import (
    StandardisedActorCriticCnnPolicy,
    StandardisedActorCriticPolicy,
    StandardisedMultiInputActorCriticPolicy,
)
from storm_rl.storm_plus_pg.actor_critic import ActorCritic
from storm_rl.storm_plus_pg.metric import mean_kl
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic

VECTOR = spaces.Box(-1, 1, (4,))
BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
ACTIONS = {
    "discrete": (spaces.Discrete(3), {}),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), {}),
    "multibinary": (spaces.MultiBinary(3), {}),
    "box": (BOX, {}),
    "box with a shape": (spaces.Box(-1.0, 1.0, (2, 1), np.float32), {}),
    "gsde": (BOX, {"use_sde": True}),
    "gsde, one for all, squashed": (BOX, {"use_sde": True, "full_std": False, "squash_output": True}),
    "relu": (spaces.Discrete(3), {"activation_fn": nn.ReLU}),
    "no hidden layer": (BOX, {"net_arch": []}),
    "statistics off": (spaces.Discrete(3), {"normalize_observations": False}),
    "an extractor for each": (spaces.Discrete(3), {"share_features_extractor": False}),
}
OBSERVATIONS = {
    "float64": spaces.Box(-1, 1, (4,), np.float64),
    "matrix": spaces.Box(-1, 1, (3, 2)),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}),
}


def make(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], **arguments: Any) -> Any:
    torch.manual_seed(0)
    observation_space.seed(0)
    is_dict = isinstance(observation_space, spaces.Dict)
    kind = StandardisedMultiInputActorCriticPolicy if is_dict else StandardisedActorCriticPolicy
    policy = kind(observation_space, action_space, lambda _: 1e-3, **arguments)
    policy.set_training_mode(False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    policy.set_value_scale(3.0)
    observations = observations_of(observation_space)
    policy.update_observation_statistics(observations)
    return policy, observations


def observations_of(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part) for key, part in space.spaces.items()}
    return torch.as_tensor(np.stack([space.sample() for _ in range(12)]))


def assert_same(policy: Any, observations: Any) -> None:
    networks = NumpyActorCritic.from_policy(policy)
    assert networks is not None
    results = []
    for form in (networks, ActorCritic(policy), None):
        torch.manual_seed(1)
        policy.reset_noise(12) if policy.use_sde else None
        if form is None:
            with torch.no_grad():
                actions, values, log_prob = policy(observations)
            results.append((actions, log_prob, values.flatten()))
        else:
            results.append((*form.act(observations), form.values(observations)))
    for fast, plain, forward in zip(*results, strict=True):
        assert fast.dtype == plain.dtype == forward.dtype
        torch.testing.assert_close(plain, forward, rtol=0.0, atol=0.0)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        divergence = mean_kl(networks.actor(observations).distribution(), policy.get_distribution(observations))
    assert float(divergence) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("case", ACTIONS)
def test_is_the_policy_for_every_action_distribution(case: str) -> None:
    action_space, arguments = ACTIONS[case]
    assert_same(*make(VECTOR, action_space, **arguments))


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_is_the_policy_for_every_observation_space(kind: str) -> None:
    assert_same(*make(OBSERVATIONS[kind], spaces.Discrete(3)))


def test_observations_far_from_the_mean_are_clipped_and_stay_as_they_are() -> None:
    policy, _ = make(VECTOR, spaces.Discrete(2))
    observations = torch.full((12, 4), 1e6)
    assert_same(policy, observations)
    assert (observations == 1e6).all()


class OwnForward(StandardisedActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        return super().forward(2.0 * obs, deterministic)


class OwnDistribution(StandardisedActorCriticPolicy):
    def get_distribution(self, obs: Any) -> Distribution:
        return super().get_distribution(2.0 * obs)


class OwnValues(StandardisedActorCriticPolicy):
    def predict_values(self, obs: Any) -> Tensor:
        return 2.0 * super().predict_values(obs)


def test_acting_runs_the_actor_alone_and_a_forward_of_ones_own() -> None:
    policy, observations = make(VECTOR, spaces.Discrete(3))
    policy.value_head.forward = None  # The critic cannot be called.
    torch.manual_seed(1)
    actions, log_prob = ActorCritic(policy).act(observations)
    own = OwnForward(VECTOR, spaces.Discrete(3), lambda _: 1e-3)
    own.load_state_dict(policy.state_dict())
    torch.manual_seed(1)
    own_actions, own_log_prob = ActorCritic(own).act(observations / 2.0)
    assert torch.equal(actions, own_actions)
    assert torch.equal(log_prob, own_log_prob)


def test_images_reach_convolutions_with_channels_last_and_the_same_numbers() -> None:
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    space.seed(0)
    policy = StandardisedActorCriticCnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3)
    images = observations_of(space)
    seen: list[Tensor] = []
    policy.pi_features_extractor.cnn[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    policy.get_distribution(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen[0], images.float() / 255.0)


@pytest.mark.parametrize(
    ("policy_class", "arguments"),
    [
        (OwnForward, {}),
        (OwnDistribution, {}),
        (OwnValues, {}),
        (StandardisedActorCriticPolicy, {"activation_fn": nn.ELU}),
    ],
)
def test_says_so_where_a_policy_is_more_than_its_networks(policy_class: Any, arguments: dict[str, Any]) -> None:
    assert NumpyActorCritic.from_policy(policy_class(VECTOR, spaces.Discrete(2), lambda _: 1e-3, **arguments)) is None
