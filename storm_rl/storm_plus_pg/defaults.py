"""Defaults of STORM+PG that follow the number of environments, and whether a features extractor is trained."""

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from storm_rl.common.checks import check_integer
from storm_rl.common.policies import StandardisedActorCriticPolicy

# Transitions of a rollout, also of images, and vector steps of it at least; nats of a step at most.
ROLLOUT_TRANSITIONS = 512
IMAGE_TRANSITIONS = 1024
MIN_STEPS = 16
NOISY_KL = 0.02
SAFE_KL = 0.1
# Rollouts that the action values are fitted to.
MEMORY_ROLLOUTS = 16


def rollout_steps(n_steps: int | None, n_envs: int, observation_space: spaces.Space[Any]) -> int:
    """Steps of each environment per rollout: ``n_steps``, or for None what makes the same number of transitions."""
    if n_steps is None:
        space = observation_space
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        transitions = IMAGE_TRANSITIONS if any(map(is_image_space, parts)) else ROLLOUT_TRANSITIONS
        return max(MIN_STEPS, -(-transitions // n_envs))
    n_steps = check_integer("n_steps (None for the default)", n_steps, 1)
    if n_steps * n_envs < 2:
        raise ValueError(
            f"a rollout of one transition (n_steps={n_steps}, n_envs={n_envs}) leaves no advantage after "
            "standardisation; n_steps * n_envs must be at least 2."
        )
    return n_steps


def largest_entropy(policy: StandardisedActorCriticPolicy) -> float:
    """Entropy, in nats, at which the bonus ends: that of noise with twice the variance that it starts with.

    Actions beyond the bounds are clipped, so that nothing else would stop it. Choices have a largest entropy anyway.
    """
    if not isinstance(policy.action_space, spaces.Box):
        return math.inf
    at_start = policy.log_std_of_actions(torch.tensor(policy.log_std_init))
    return float((at_start + 0.5 * math.log(2.0) + 0.5 * math.log(2.0 * math.pi * math.e)).sum())


def target_kl(size: int, action_values: bool) -> float:
    """Largest KL of a step from a rollout of ``size`` transitions, in nats.

    Of a gradient with action values it only keeps the first steps from going far; of a noisy one it sets the step.
    """
    return SAFE_KL if action_values else NOISY_KL * min(2.0, max(1.0, size / ROLLOUT_TRANSITIONS))


def memory(size: int, reuse_rollouts: int, action_values: bool) -> int:
    """Rollouts of ``size`` transitions that are kept: those that the actor learns from, or more for action values."""
    kept = min(MEMORY_ROLLOUTS, max(1, round(MEMORY_ROLLOUTS * ROLLOUT_TRANSITIONS / size))) if action_values else 1
    return max(reuse_rollouts, kept)


def work(size: int, batch_size: int, learns_features: bool) -> tuple[int, int, int]:
    """Rollouts of ``size`` transitions that an update learns from, steps of the critic, states of the Fisher matrix.

    Of images an update costs the passes through the features extractor.
    """
    if learns_features:
        return 1, min(160, -(-size // batch_size)), 64
    return min(4, max(1, round(4 * ROLLOUT_TRANSITIONS / size))), 160, 1024
