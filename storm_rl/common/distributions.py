"""Keeping and comparing SB3's action distributions."""

import copy

from stable_baselines3.common.distributions import Distribution, kl_divergence
from torch import Tensor


def kept(distribution: Distribution) -> Distribution:
    """A copy of ``distribution`` that later calls of ``policy.get_distribution`` do not overwrite.

    An SB3 policy owns one mutable distribution: each call puts new content into it. The copy keeps the content
    (and its graph, if it was computed with gradients).
    """
    return copy.copy(distribution)


def mean_kl(old: Distribution, new: Distribution) -> Tensor:
    """Mean over states of KL(old || new), in nats, summed over action dimensions; a scalar."""
    divergence = kl_divergence(old, new)
    return divergence.reshape(divergence.shape[0], -1).sum(dim=1).mean()
