"""States of the global generators that training draws from: torch's, on CUDA of given devices, numpy's and Python's."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def random_state(devices: Iterable[torch.device]) -> dict[str, Any]:
    """The states by library. Generators that a program keeps for itself are out of reach."""
    cuda = {str(device): torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  # SB3's wrappers draw from it.
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave; the states of CUDA devices that are not there are left out."""
    torch.set_rng_state(state["torch"])
    for device, values in (state["cuda"] or {}).items() if torch.cuda.is_available() else ():
        torch.cuda.set_rng_state(values, device)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
