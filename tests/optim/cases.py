"""The optimisers and the small problem that their tests share."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from storm_rl.optim import STORM, MetaSTORM, STORMPlus
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer

Make = Callable[..., RecursiveOptimizer]
Closure = Callable[[], Tensor]

OPTIMIZERS: dict[str, tuple[type[RecursiveOptimizer], dict[str, Any]]] = {
    "STORMPlus": (STORMPlus, {}),
    "STORMPlus-per_coordinate": (STORMPlus, {"per_coordinate": True}),
    "STORM": (STORM, {}),
    "MetaSTORM": (MetaSTORM, {}),
    "MetaSTORM-gradient": (MetaSTORM, {"variant": "gradient"}),
    "MetaSTORM-none": (MetaSTORM, {"variant": "none"}),
    "MetaSTORM-per_coordinate": (MetaSTORM, {"per_coordinate": True}),
}


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(8, 3, generator=generator)
    return inputs.to(dtype), inputs.sum(1, keepdim=True).sin().to(dtype)


def closure_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Closure:
    inputs, targets = batch(step, dtype)

    def closure() -> Tensor:
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: RecursiveOptimizer, steps: range) -> list[float]:
    dtype = next(model.parameters()).dtype
    return [float(optimizer.step(closure_of(model, step, dtype))) for step in steps]


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def frozen(optimizer: RecursiveOptimizer) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


def same_state(left: dict[str, Any], right: dict[str, Any]) -> bool:
    if left["param_groups"] != right["param_groups"] or left["state"].keys() != right["state"].keys():
        return False
    return all(
        state.keys() == right["state"][i].keys()
        and all(torch.equal(value, right["state"][i][key]) for key, value in state.items())
        for i, state in left["state"].items()
    )
