"""The law of a policy's actions as a function of its parameters, and which parameters that are."""

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.func import functional_call


class ActionLaw(nn.Module):
    """A policy's action distribution as a module of its own, to be evaluated at other parameters.

    Parameters are named as in the policy, behind ``policy.``.

    Args:
        policy: The policy; its parameters are shared, not copied.
        observation: One batch of observations, as ``policy.obs_to_tensor`` gives; only its shape matters.

    Attributes:
        actor_names: Names of the parameters that the law depends on.
        critic_names: Names of those that only the values depend on. Layers that both share belong to the actor: the
            law of an anchor must not move behind its back.
    """

    def __init__(self, policy: ActorCriticPolicy, observation: Any) -> None:
        super().__init__()
        self.policy = policy
        # As when acting; a batch normalisation would also refuse a single observation otherwise.
        policy.set_training_mode(False)
        distribution = policy.get_distribution(observation)
        # The mode, so that no random number is drawn.
        log_prob = distribution.log_prob(distribution.get_actions(deterministic=True))
        self.actor_names = self._names_behind(log_prob)
        behind_values = self._names_behind(policy.predict_values(observation))
        self.critic_names = [name for name in behind_values if name not in self.actor_names]

    def forward(self, observations: Any, actions: Tensor | None = None) -> Tensor:
        """Log-probabilities of ``actions``, shape ``(n,)``, or sampled actions if there are none."""
        distribution = self.policy.get_distribution(observations)
        return distribution.get_actions() if actions is None else distribution.log_prob(actions)

    def at(self, point: dict[str, Tensor], observations: Any, actions: Tensor | None = None) -> Tensor:
        """As a call, at the parameters (and statistics) of ``point``; the policy keeps its own.

        SB3 and the policies here register one module under several names (``features_extractor`` and
        ``pi_features_extractor``). `torch.func.functional_call` ties those names by default, and after the call leaves
        the policy with the point's tensors in place of its own; one name of each is enough.
        """
        result: Tensor = functional_call(self, point, (observations, actions), tie_weights=False)
        return result

    def named(self, names: list[str]) -> dict[str, nn.Parameter]:
        """The parameters of these names, in this order."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in names}

    def point(self) -> dict[str, Tensor]:
        """All that the law depends on, detached: the actor's parameters and the policy's statistics."""
        statistics = {name: values for name, values in self.named_buffers() if values.is_floating_point()}
        return {name: values.detach() for name, values in self.named(self.actor_names).items()} | statistics

    def _names_behind(self, output: Tensor) -> list[str]:
        """Names of the parameters that ``output`` depends on, found by its graph and not by their names."""
        named = [(name, values) for name, values in self.named_parameters() if values.requires_grad]
        found = torch.autograd.grad(output.sum(), [values for _, values in named], allow_unused=True)
        return [name for (name, _), gradient in zip(named, found, strict=True) if gradient is not None]
