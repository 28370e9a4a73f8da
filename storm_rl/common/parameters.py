"""Which parameters are the actor's and which the critic's: asked of autograd's graph, whatever the modules' names."""

import warnings
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


def parameters_behind(policy: ActorCriticPolicy, part: Literal["actor", "critic"]) -> list[nn.Parameter]:
    """What the action distribution or the values depend on, frozen or not, in the order of ``policy.parameters()``."""
    zeros: Any = create_empty_array(policy.observation_space, fn=np.zeros)
    parameters = [parameter for parameter in policy.parameters() if parameter.is_floating_point()]
    frozen = nn.ParameterList(parameter for parameter in parameters if not parameter.requires_grad)
    training = policy.training
    # As when acting; a batch normalisation would also refuse a single observation otherwise.
    policy.set_training_mode(False)
    frozen.requires_grad_(True)
    try:
        with torch.enable_grad():
            observation, _ = policy.obs_to_tensor(zeros)
            if part == "critic":
                output = policy.predict_values(observation)
            else:
                distribution = policy.get_distribution(observation)
                # The mode, so that no random number is drawn.
                output = distribution.log_prob(distribution.get_actions(deterministic=True))
            found = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    finally:
        frozen.requires_grad_(False)
        policy.set_training_mode(training)
    return [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is not None]


def check_parts(policy: ActorCriticPolicy, actor: list[nn.Parameter], critic: list[nn.Parameter]) -> None:
    """Refuse trainable parameters that are in both parts, and warn of those that are in none."""
    parts = [{id(parameter) for parameter in part} for part in (actor, critic)]
    names = {id(parameter): name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if shared := [name for each, name in names.items() if each in parts[0] & parts[1]]:
        raise ValueError(f"actor and critic must not share parameters here, and both depend on {', '.join(shared)}.")
    if untrained := [name for each, name in names.items() if each not in parts[0] | parts[1]]:
        warnings.warn(f"nothing trains {', '.join(untrained)}: no action and no value depends on them.", stacklevel=2)
