"""The units in which a policy's network gives Box actions."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def action_units(action_space: spaces.Space[Any], squashed: bool = False) -> tuple[Tensor, Tensor]:
    """Middle and half of the range of each Box action, ``(n_actions,)``; 0 and 1 where there is none to speak of.

    Bounds of 1e10 and more count as infinite; the middle is then the number within the bounds that is nearest to 0.
    Squashed actions are in [-1, 1] already.
    """
    if squashed or not isinstance(action_space, spaces.Box):
        return torch.zeros(1), torch.ones(1)
    low, high = (bound.astype(np.float64).ravel() for bound in (action_space.low, action_space.high))
    finite = (np.maximum(np.abs(low), np.abs(high)) < 1e10) & (low < high)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = np.where(finite, (low + high) / 2, np.clip(0.0, low, high))
        unit = np.where(finite, (high - low) / 2, 1.0)
    return torch.as_tensor(middle, dtype=torch.float32), torch.as_tensor(unit, dtype=torch.float32)
