"""One closure, two points, one sample: what has to be put back between the two evaluations."""

import random
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Closure = Callable[[], Tensor | float]


class RandomState:
    """The global random states that a closure may draw from: torch's, Python's and numpy's.

    On CUDA the states of the given devices. Generators that a program keeps for itself are out of reach.
    """

    def __init__(self, devices: Collection[torch.device]) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
        self._python = random.getstate()
        # numpy is looked up and not imported: a program that never imported it cannot have drawn from it.
        self._numpy: Any = sys.modules.get("numpy")
        self._numpy_state: Any = self._numpy.random.get_state(legacy=False) if self._numpy else None

    def now(self) -> "RandomState":
        """The present states of the same generators."""
        return RandomState(self._cuda)

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self._torch)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy:
            self._numpy.random.set_state(self._numpy_state)


class Buffers:
    """Values of the buffers of modules, such as the running statistics of BatchNorm."""

    def __init__(self) -> None:
        self._saved: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}

    def save(self, module: nn.Module) -> None:
        """Copy the buffers of ``module`` and its children, those already copied excepted."""
        for child in module.modules():
            for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
                if (child, name) not in self._saved:
                    self._saved[child, name] = (buffer, buffer.detach().clone())

    def now(self) -> "Buffers":
        """The present values of the same modules' buffers."""
        present = Buffers()
        for child in {child for child, _ in self._saved}:
            present.save(child)
        return present

    def restore(self) -> None:
        """Put values back, and the tensors themselves where a module has replaced them."""
        for (child, name), (buffer, value) in self._saved.items():
            buffer.copy_(value)
            setattr(child, name, buffer)


@contextmanager
def watch_buffers() -> Iterator[Buffers]:
    """Save the buffers of every module that is called inside the block, before its first call.

    The closure is opaque to the optimiser, and a reference to the model would be lost in pickling; a hook on
    module calls sees what the closure uses without being told. Calls of ``module.forward`` go unseen.
    """
    buffers = Buffers()
    # By number: torch.compile traces the hook inside a compiled module, and cannot if a set holds that module.
    seen: dict[int, nn.Module] = {}
    thread = threading.get_ident()

    def hook(module: nn.Module, args: object) -> None:
        if id(module) not in seen and threading.get_ident() == thread:
            with torch.no_grad():
                buffers.save(module)
            seen.update((id(child), child) for child in module.modules())

    handle = register_module_forward_pre_hook(hook)
    try:
        yield buffers
    finally:
        handle.remove()


def swap(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """Exchange values in place."""
    for one, other in zip(left, right, strict=True):
        held = one.clone()
        one.copy_(other)
        other.copy_(held)
