"""A fully connected policy on the CPU without autograd, for all that needs no graph: acting, values, distributions."""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from storm_rl.common.dense_network import Array, DenseNetwork
from storm_rl.common.observations import ObservationBatch
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.common.running_statistics import RunningMeanStd, StandardisedFeatures

# Where a subclass has its own, the networks are not all there is to the policy.
_OWN_METHODS = (
    "forward",
    "extract_features",
    "get_distribution",
    "_get_action_dist_from_latent",
    "predict_values",
    "scaled_values",
)

Features = Callable[[ObservationBatch], Array]


class DensePolicy:
    """The policy as it is now: its parameters are followed only while they stay in their place in memory.

    Answers to the methods of SB3's policies by the same names, without gradients.

    Args:
        policy: The policy.
        actor: Its network from features to logits or means.
        critic: Its network from features to scaled values.
    """

    def __init__(self, policy: StandardisedActorCriticPolicy, actor: DenseNetwork, critic: DenseNetwork) -> None:
        self.policy = policy
        self.actor = actor
        self.critic = critic
        log_std = getattr(policy, "log_std", None)
        self.log_std: Tensor | None = None if log_std is None else log_std.detach()
        self.value_scale = policy.value_scale
        self.actor_features = features_of(policy, policy.pi_features_extractor)
        shared = policy.vf_features_extractor is policy.pi_features_extractor
        self.critic_features = self.actor_features if shared else features_of(policy, policy.vf_features_extractor)
        self._is_categorical = type(policy.action_dist) is CategoricalDistribution

    @classmethod
    def of(cls, policy: StandardisedActorCriticPolicy) -> Self | None:
        """The closed form of ``policy``; None if it is on another device, or more than this package's own class."""
        own, base = type(policy), StandardisedActorCriticPolicy
        if any(getattr(own, name) is not getattr(base, name) for name in _OWN_METHODS):
            return None
        if policy._forward_hooks or policy._forward_pre_hooks or type(policy.mlp_extractor) is not MlpExtractor:
            return None
        if getattr(policy.action_dist, "learn_features", False):
            return None
        actor = DenseNetwork.of(policy.mlp_extractor.policy_net, policy.action_net)
        critic = DenseNetwork.of(policy.mlp_extractor.value_net, policy.value_head.linear)
        if actor is None or critic is None:
            return None
        log_std = getattr(policy, "log_std", None)
        n_noise = log_std.numel() if isinstance(log_std, nn.Parameter) else 0
        # More parameters than these are a features extractor's.
        if actor.n_parameters + n_noise != _size(policy.actor_parameters()):
            return None
        return cls(policy, actor, critic) if critic.n_parameters == _size(policy.critic_parameters()) else None

    @torch.no_grad()
    def __call__(self, observations: ObservationBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled actions ``(n, ...)``, values ``(n, 1)`` and log-probabilities ``(n,)``: the policy's ``forward``."""
        features = self.actor_features(observations)
        layers = self.actor.forward(features)
        outputs = torch.from_numpy(layers[-1])
        if self._is_categorical:
            # The same samples from the same random stream as by torch's Categorical, which takes several times as long.
            actions = torch.multinomial(torch.softmax(outputs, dim=1), 1)
            log_prob = torch.log_softmax(outputs, dim=1).gather(1, actions).flatten()
            actions = actions.flatten()
        else:
            distribution = self.policy.distribution_of(outputs, torch.from_numpy(layers[-2]), self.log_std)
            actions = distribution.get_actions()
            log_prob = distribution.log_prob(actions)
            actions = actions.reshape(-1, *(self.policy.action_space.shape or ()))
        if self.critic_features is not self.actor_features:
            features = self.critic_features(observations)
        return actions, self._values(features), log_prob

    def predict_values(self, observations: ObservationBatch) -> Tensor:
        """Values in units of return, ``(n, 1)``."""
        return self._values(self.critic_features(observations))

    @torch.no_grad()
    def get_distribution(self, observations: ObservationBatch) -> Distribution:
        """The action distribution: the policy's own object."""
        layers = self.actor.forward(self.actor_features(observations))
        return self.policy.distribution_of(torch.from_numpy(layers[-1]), torch.from_numpy(layers[-2]), self.log_std)

    def _values(self, features: Array) -> Tensor:
        values = self.critic.forward(features)[-1]
        values *= self.value_scale
        return torch.from_numpy(values)


Evaluated = StandardisedActorCriticPolicy | DensePolicy
"""A policy, or its closed form, where no gradients are needed."""


def features_of(policy: StandardisedActorCriticPolicy, extractor: BaseFeaturesExtractor) -> Features:
    """What a network of ``policy`` sees of raw observations, ``(n, features_dim)``, by the present statistics."""
    space = policy.observation_space
    inner = extractor.extractor if type(extractor) is StandardisedFeatures else extractor
    if type(inner) is FlattenExtractor and isinstance(space, spaces.Box) and not is_image_space(space):
        return _flat_features(extractor)

    @torch.no_grad()
    def extracted(observations: ObservationBatch) -> Array:
        found: Array = BaseModel.extract_features(policy, observations, extractor).numpy()
        return found

    return extracted


def _flat_features(extractor: BaseFeaturesExtractor) -> Features:
    if not isinstance(extractor, StandardisedFeatures):
        return _flattened
    (statistics,) = extractor.statistics.running.values()
    assert isinstance(statistics, RunningMeanStd)
    clip = extractor.statistics.clip
    mean, std = _flattened(statistics.mean.unsqueeze(0)), _flattened(statistics.std.unsqueeze(0))

    def standardised(observations: ObservationBatch) -> Array:
        features = _flattened(observations) - mean
        features /= std
        np.maximum(features, -clip, out=features)
        np.minimum(features, clip, out=features)
        return features

    return standardised


def _flattened(observations: ObservationBatch) -> Array:
    assert isinstance(observations, Tensor)
    array: Array = observations.float().numpy()
    return array.reshape(len(array), -1)


def _size(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
