"""Time and peak memory of a step, from 1e4 to 1e8 parameters, in one run."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from storm_rl.optim import STORM, MetaSTORM, STORMPlus

BATCH = 64
LAYERS = 4

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

# A step of length zero costs the same, and keeps the timed networks where they are.
OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-9),
    "STORM+": lambda params: STORMPlus(params, lr=1e-9),
    "STORM+ no replay": lambda params: STORMPlus(params, lr=1e-9, replay=False),
    "STORM+ per coord.": lambda params: STORMPlus(params, lr=1e-9, per_coordinate=True),
    "STORM": lambda params: STORM(params, lr=1e-9),
    "META-STORM": lambda params: MetaSTORM(params, lr=1e-9),
}


def sizes(quick: bool) -> list[int]:
    """Numbers of parameters that are measured."""
    return [10**4, 10**5] if quick else [10**4, 10**5, 10**6, 10**7, 10**8]


def build(parameters: int) -> tuple[nn.Sequential, Callable[[], Tensor]]:
    """A tanh network of about so many parameters and a closure on a batch of 64."""
    torch.manual_seed(0)
    width = round((parameters / LAYERS) ** 0.5)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers)
    inputs = torch.randn(BATCH, width)

    def closure() -> Tensor:
        model.zero_grad()
        loss: Tensor = model(inputs).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return model, closure


def times(parameters: int, budget: float) -> list[dict[str, Any]]:
    """Lower quartile of processor seconds, the optimisers taking turns; other work on a machine only adds.

    ``ratio`` is to two forward-backward passes plus a step of Adam (the optimiser alone).
    """
    model, closure = build(parameters)
    closure()
    optimizers = {name: make(list(model.parameters())) for name, make in OPTIMIZERS.items()}
    calls: dict[str, Callable[[], Any]] = {"forward-backward": closure}
    for name, optimizer in optimizers.items():
        if name == "Adam":
            calls[name] = optimizer.step
        elif parameters < 10**8 or name == "STORM+":
            # Six optimisers with their state at 1e8 parameters would not fit in memory.
            calls[name] = partial(optimizer.step, closure)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    rounds = 0
    while rounds < 2 or time.perf_counter() - start < budget:
        for name, call in calls.items():
            for turn in range(4):
                begin = time.process_time()
                call()
                # The first round allocates state; the first call of a turn finds others' data in the cache.
                if rounds and turn:
                    taken[name].append(time.process_time() - begin)
        rounds += 1
    typical = {name: sorted(values)[len(values) // 4] for name, values in taken.items()}
    bar = 2 * typical["forward-backward"] + typical["Adam"]
    count = sum(p.numel() for p in model.parameters())
    return [
        {
            "parameters": count,
            "method": name,
            "timed steps": len(taken[name]),
            "seconds": value,
            "ratio": None if name in ("forward-backward", "Adam") else value / bar,
        }
        for name, value in typical.items()
    ]


def _peak() -> float:
    """Peak resident memory of this process since the last reset, in bytes (Linux)."""
    with open("/proc/self/status") as status:
        return float(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def _reset_peak() -> None:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def _memory_in_this_process(parameters: int, method: str) -> float:
    torch.set_num_threads(1)
    # A first network warms the libraries up, whose memory is not the optimiser's.
    for size in (10**4, parameters):
        model, closure = build(size)
        count = sum(p.numel() for p in model.parameters())
        for _ in range(2):
            closure()
        _reset_peak()
        closure()
        own = _peak()
        optimizer = OPTIMIZERS[method](list(model.parameters()))
        for _ in range(4):
            if method == "Adam":
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)  # type: ignore[arg-type]
    return (_peak() - own) / (4 * count)


def memory(parameters: int, method: str) -> float:
    """Peak beyond what forward and backward take (parameters, gradients, activations), in parameters' size.

    Each in a fresh process, since an allocator keeps what a former one has used.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_in_this_process, (parameters, method))


def measure(parameters: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of one size."""
    torch.set_num_threads(1)
    rows = times(parameters, 0.5 if quick else 8.0)
    for row in rows:
        # Below a million the resident memory is that of the libraries' own warming up.
        if row["method"] != "forward-backward" and parameters >= 10**6:
            row["memory"] = memory(parameters, row["method"])
    return rows
