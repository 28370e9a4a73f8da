"""Escaping saddles: curvature against eigenvalues, no step where there is none, all else left as it was."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storm_rl.negative_curvature import SaddleEscape
from storm_rl.optim import STORM, MetaSTORM, STORMPlus

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda params, **options: torch.optim.SGD(params, lr=0.5, **options),
    "STORMPlus": STORMPlus,
    "STORM": STORM,
    "MetaSTORM": MetaSTORM,
}
SMALL: dict[str, Any] = {"max_gradient_norm": 1e-2, "min_curvature": 5e-3}


def quadratic(eigenvalues: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A Hessian with these eigenvalues in random directions, and its eigenvectors, as columns."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T, basis


def closure_of(parts: list[nn.Parameter], hessian: Tensor, quartic: float = 0.0, sign: float = 1.0) -> Any:
    def closure() -> Tensor:
        for part in parts:
            part.grad = None
        x = torch.cat([part.flatten() for part in parts])
        loss = sign * (0.5 * x @ hessian @ x + quartic * x.pow(4).sum())
        loss.backward()
        return loss

    return closure


def parts_of(x: Tensor) -> list[nn.Parameter]:
    """Several tensors: directions and norms must run over all of them together."""
    return [nn.Parameter(x[:2].clone()), nn.Parameter(x[2:].reshape(-1, 2).clone())]


@pytest.mark.parametrize("eigenvalues", [[-0.5, 0.1, 0.7, 3.0], [-2.0, -1.0, 0.0, 1.0], [-1e-2, 1.0, 1.0, 1.0]])
@pytest.mark.parametrize("at", [0.0, 0.3])
def test_the_curvature_found_is_the_smallest_eigenvalue(eigenvalues: list[float], at: float) -> None:
    hessian, basis = quadratic(eigenvalues)
    parts = parts_of(torch.full((4,), at, dtype=torch.float64))
    escape = SaddleEscape(torch.optim.SGD(parts), max_gradient_norm=1.0, min_curvature=1e6, max_iterations=400)
    found = escape.search(closure_of(parts, hessian))
    assert found.value == pytest.approx(min(eigenvalues), abs=1e-6)
    assert found.value == pytest.approx(float(found.direction @ hessian @ found.direction), abs=1e-9)
    assert abs(float(found.direction @ basis[:, 0])) == pytest.approx(1.0, abs=1e-5)


def test_it_is_the_power_method_of_the_paper() -> None:
    """Algorithm 1 with the known bound in the first gradient's place, and the iterate never scaled."""
    hessian, _ = quadratic([-0.3, 0.4, 1.0, 2.0])
    parts = parts_of(torch.zeros(4, dtype=torch.float64))
    arguments: dict[str, Any] = {"max_gradient_norm": 1.0, "min_curvature": 1e6}
    start = SaddleEscape(torch.optim.SGD(parts), max_iterations=1, **arguments).search(closure_of(parts, hessian))
    found = SaddleEscape(torch.optim.SGD(parts), max_iterations=7, **arguments).search(closure_of(parts, hessian))
    y, smoothness = start.direction, 0.0
    for _ in range(6):
        unit = y / y.norm()
        smoothness = max(smoothness, float((hessian @ unit).norm()))
        y = y - y.norm() / smoothness * (hessian @ unit)
    torch.testing.assert_close(found.direction.abs(), (y / y.norm()).abs(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("eigenvalues", [[0.1, 0.5, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_is_taken_without_negative_curvature(optimizer: str, eigenvalues: list[float]) -> None:
    hessian, _ = quadratic(eigenvalues)
    start = torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64) * 1e-3
    plain, watched = parts_of(start), parts_of(start)
    alone, inner = OPTIMIZERS[optimizer](plain), OPTIMIZERS[optimizer](watched)
    escape = SaddleEscape(inner, max_gradient_norm=1.0, min_curvature=1e-9, wait=0)
    for _ in range(10):
        alone.step(closure_of(plain, hessian))
        escape.step(closure_of(watched, hessian))
    assert escape.last is not None
    assert escape.escapes == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain, watched, strict=True))  # type: ignore[arg-type]


def steps_to_leave(optimizer: str, escaping: bool) -> int:
    """Steps until the loss is below half of the least, after arriving at the saddle along its stable directions."""
    hessian = torch.diag(torch.tensor([-0.01, *[1.0] * 9], dtype=torch.float64))
    start = torch.full((10,), 0.1, dtype=torch.float64)
    start[0] = 1e-6
    parts = parts_of(start)
    inner = OPTIMIZERS[optimizer](parts)
    stepping: Any = SaddleEscape(inner, **SMALL) if escaping else inner

    def closure() -> Tensor:
        for part in parts:
            part.grad = None
        x = torch.cat([part.flatten() for part in parts])
        loss = 0.5 * x @ hessian @ x + x[0] ** 4 / 16
        loss.backward()
        return loss

    for step in range(400):
        if float(stepping.step(closure).detach()) < -0.5e-4:
            return step
    return 400


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_saddle_is_left_in_less_than_half_of_the_steps(optimizer: str) -> None:
    assert steps_to_leave(optimizer, escaping=True) < 0.5 * steps_to_leave(optimizer, escaping=False)


@pytest.mark.parametrize("maximize", [False, True])
def test_a_step_goes_downhill_and_lowers_the_loss(maximize: bool) -> None:
    hessian, _ = quadratic([-1.0, 0.5, 1.0, 2.0])
    for seed in range(4):
        x = 1e-4 * torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        parts = parts_of(x)
        closure = closure_of(parts, hessian, quartic=50.0, sign=-1.0 if maximize else 1.0)
        before = float(closure().detach())
        escape = SaddleEscape(torch.optim.SGD(parts, maximize=maximize), step_length=4.0, **SMALL)
        found = escape.search(closure)
        # The quartic makes steps of 4 too long: halved to 1/8 the loss falls.
        assert 0.0 < found.step < 1.0
        assert (float(closure().detach()) - before) * (-1.0 if maximize else 1.0) < 0.0
        moved = torch.cat([part.detach().flatten() for part in parts]) - x
        torch.testing.assert_close(moved, found.step * found.direction, atol=1e-12, rtol=0)
        assert float(found.direction @ hessian @ x) <= 0.0


def test_a_search_leaves_random_states_buffers_and_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    frozen = nn.Parameter(torch.ones(2))
    inputs = torch.randn(16, 3)
    calls: list[float] = []

    def closure() -> Tensor:
        for p in model.parameters():
            p.grad = None
        loss = model(inputs).square().mean()
        calls.append(float(loss.detach()))
        loss.backward()
        return loss

    closure()
    escape = SaddleEscape(
        torch.optim.SGD([*model.parameters(), frozen]),
        max_gradient_norm=1.0,
        min_curvature=1e6,
        radius=1e-4,
        max_iterations=3,
    )
    before = [tensor.clone() for tensor in model.state_dict().values()]
    gradients = [p.grad for p in model.parameters()]
    state = torch.get_rng_state()
    calls.clear()
    escape.search(closure)
    torch.set_rng_state(state)
    assert calls == pytest.approx([calls[0]] * 4, rel=0.01)  # Each with the same units dropped.
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert frozen.grad is None
    closure()
    assert calls[-1] == calls[0]  # Dropout drew the same.


def test_searches_wait_and_large_gradients_start_none() -> None:
    hessian, _ = quadratic([1.0, 1.0, 1.0, 1.0])
    parts = parts_of(torch.full((4,), 1e-3, dtype=torch.float64))
    escape = SaddleEscape(torch.optim.SGD(parts, lr=0.0), wait=3, **SMALL)
    searched = []
    for _ in range(9):
        escape.last = None
        escape.step(closure_of(parts, hessian))
        searched.append(escape.last is not None)
    assert [i for i, was in enumerate(searched) if was] == [0, 4, 8]
    escape = SaddleEscape(torch.optim.SGD(parts, lr=0.0), max_gradient_norm=1.9e-3, min_curvature=0.1)
    escape.step(closure_of(parts, hessian))
    assert escape.last is None


def test_a_search_ends_when_the_curvature_is_enough() -> None:
    hessian, _ = quadratic([-0.5, 0.1, 0.7, 3.0])
    counts = []
    for enough in (0.1, 1e6):
        parts = parts_of(torch.zeros(4, dtype=torch.float64))
        closure, calls = closure_of(parts, hessian), []
        escape = SaddleEscape(torch.optim.SGD(parts), max_gradient_norm=1.0, min_curvature=enough)
        escape.search(lambda closure=closure, calls=calls: calls.append(0) or closure())  # type: ignore[misc]
        counts.append(len(calls))
    # One gradient where it begins, and 100 others if it is never enough; a step has one more.
    assert counts[1] == 101
    assert 3 <= counts[0] < 30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_what_is_not_finite_is_refused_and_nothing_moves(bad: float, of: str) -> None:
    parts = [nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = -parts[0].square().sum()
        parts[0].grad = -2.0 * parts[0].detach() + (0.0 if of == "loss" or calls < 3 else bad)
        return loss * (bad if of == "loss" and calls >= 3 else 1.0)

    escape = SaddleEscape(torch.optim.SGD(parts), **SMALL)
    with pytest.raises(ValueError, match=f"SaddleEscape: (the|a) {of} is"):
        escape.step(closure)
    assert not parts[0].any()


@pytest.mark.parametrize(
    "arguments",
    [{"max_gradient_norm": 0.0}, {"min_curvature": -1.0}, {"step_length": math.nan}, {"radius": 0.0}, {"wait": -1}],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SaddleEscape(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **{**SMALL, **arguments})


def test_descent_ascent_is_refused() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "maximize": sign} for sign in (True, False)]
    with pytest.raises(ValueError, match="maximise"):
        SaddleEscape(torch.optim.SGD(groups), **SMALL)
