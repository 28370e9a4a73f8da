"""Policies whose forbidden actions have probability 0."""

from typing import Any

import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from storm_rl.common.policies import (
    StandardisedActorCriticCnnPolicy,
    StandardisedActorCriticPolicy,
    StandardisedMultiInputActorCriticPolicy,
    batch_size,
)
from storm_rl.maskable.masks import check_masks, choices, split_masks, with_masks

# The logit of a forbidden action, sb3-contrib's: its exponential is 0, and as a finite number it leaves no NaN in a
# gradient, an entropy or a KL divergence.
FORBIDDEN = -1e8


class MaskableActorCriticPolicy(StandardisedActorCriticPolicy):
    """:class:`StandardisedActorCriticPolicy` with action masks.

    An observation may have its mask as one more entry, as those that are learned from, or be plain. ``action_masks``
    says what is allowed: flat booleans, as in sb3-contrib's policies. Without either every action is allowed.

    MultiBinary actions are choices between 0 and 1, with a logit for each, because a mask can forbid either.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        if isinstance(self.action_space, spaces.MultiBinary):
            self.action_dist = MultiCategoricalDistribution(choices(self.action_space))
        super()._build(lr_schedule)

    def get_distribution(self, obs: Any, action_masks: Any = None) -> Distribution:
        """The action distribution in each state of a batch.

        Raises:
            ValueError: ``action_masks`` of a wrong size, or with a state in which nothing is allowed.
        """
        observations, masks = split_masks(obs)
        if action_masks is not None:
            masks = self._tensor_of(action_masks, batch_size(observations))
        features = BaseModel.extract_features(self, observations, self.pi_features_extractor)
        latent = self.mlp_extractor.forward_actor(features)
        logits = self.action_net(latent)
        if masks is not None:
            logits = torch.where(masks.bool(), logits, FORBIDDEN)
        return self.distribution_of(logits, latent, None)

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``(n, ...)``, values ``(n, 1)`` and log-probabilities ``(n,)``."""
        distribution = self.get_distribution(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape(-1, *(self.action_space.shape or ())), self.predict_values(obs), log_prob

    def evaluate_actions(
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values ``(n, 1)``, log-probabilities and entropies ``(n,)``."""
        distribution = self.get_distribution(obs, action_masks)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Any) -> Tensor:
        """Values ``(n, 1)``, whatever is allowed."""
        return super().predict_values(split_masks(obs)[0])

    def critic_features(self, observations: Any) -> Tensor:
        """As the base class's."""
        return super().critic_features(split_masks(observations)[0])

    def update_observation_statistics(self, observations: Any) -> None:
        """As the base class's; masks have none."""
        super().update_observation_statistics(split_masks(observations)[0])

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """As SB3's; a mask is checked and stays an entry."""
        plain, masks = split_masks(observation)
        tensors, vectorized = super().obs_to_tensor(plain)
        if masks is not None:
            tensors = with_masks(tensors, self._tensor_of(masks, batch_size(tensors)))
        return tensors, vectorized

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """As that of :class:`~storm_rl.maskable.MaskableSTORMPlusPG`."""
        # SB3 has a message for the tuple that `reset` of a gymnasium environment gives.
        if action_masks is not None and not isinstance(observation, tuple):
            observation = with_masks(split_masks(observation)[0], action_masks)
        return super().predict(observation, state, episode_start, deterministic)

    def _tensor_of(self, masks: Any, n: int) -> Tensor:
        return torch.as_tensor(check_masks(masks, self.action_space, n), device=self.device)


class MaskableActorCriticCnnPolicy(MaskableActorCriticPolicy, StandardisedActorCriticCnnPolicy):
    """:class:`MaskableActorCriticPolicy` for images: ``NatureCNN`` features."""


class MaskableMultiInputActorCriticPolicy(MaskableActorCriticPolicy, StandardisedMultiInputActorCriticPolicy):
    """:class:`MaskableActorCriticPolicy` for Dict observations: SB3's ``CombinedExtractor``."""
