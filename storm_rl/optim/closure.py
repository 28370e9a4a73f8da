"""One closure, two points, one sample: what has to be put back between the two evaluations."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Closure = Callable[[], Tensor | float]


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
