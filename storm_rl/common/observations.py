"""Batches of observations: a tensor, or a dict of tensors for Dict spaces."""

import torch
from torch import Tensor

ObservationBatch = Tensor | dict[str, Tensor]


def batch_size(observations: ObservationBatch) -> int:
    """Number of observations."""
    return len(_any_part(observations))


def select(observations: ObservationBatch, index: Tensor) -> ObservationBatch:
    """The rows ``index``, entry by entry for Dict observations."""
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    return observations[index]


def subsample(observations: ObservationBatch, size: int) -> ObservationBatch:
    """At most ``size`` observations, drawn without replacement."""
    available = batch_size(observations)
    if available <= size:
        return observations
    return select(observations, torch.randperm(available)[:size].to(_any_part(observations).device))


def concatenate(batches: list[ObservationBatch]) -> ObservationBatch:
    """One batch after the other."""
    dicts = [batch for batch in batches if isinstance(batch, dict)]
    if dicts:
        return {key: torch.cat([batch[key] for batch in dicts]) for key in dicts[0]}
    return torch.cat([batch for batch in batches if not isinstance(batch, dict)])


def _any_part(observations: ObservationBatch) -> Tensor:
    return next(iter(observations.values())) if isinstance(observations, dict) else observations
