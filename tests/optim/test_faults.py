"""Bad input: what raises, and what it leaves as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storm_rl.optim import STORM, MetaSTORM, STORMPlus
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer
from tests.optim.cases import Make, closure_of, frozen, network, same, same_state, train, values


class ClosureError(Exception):
    pass


def bad_closures(model: nn.Module) -> dict[str, tuple[Any, type[Exception], str]]:
    good = closure_of(model, 50)
    parameter = next(model.parameters())

    def nan_gradient() -> Tensor:
        loss = good()
        parameter.grad[0, 0] = torch.nan
        return loss

    def infinite_gradient() -> Tensor:
        loss = good()
        parameter.grad.fill_(torch.inf)
        return loss

    def sparse() -> Tensor:
        loss = good()
        parameter.grad = parameter.grad.to_sparse()
        return loss

    def no_gradient() -> Tensor:
        return torch.ones((), requires_grad=True) * 2

    def vector() -> Tensor:
        good()
        return torch.ones(3)

    def raising() -> Tensor:
        good()
        raise ClosureError

    calls = []

    def raising_at_the_previous_point() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ClosureError
        return good()

    seen = []

    def nan_at_the_previous_point() -> Tensor:
        seen.append(1)
        return nan_gradient() if len(seen) == 2 else good()

    memory = torch.zeros_like(parameter)

    def one_memory() -> Tensor:
        loss = good()
        memory.copy_(parameter.grad)
        parameter.grad = memory
        return loss

    return {
        "none": (None, TypeError, "closure"),
        "not_callable": (3.0, TypeError, "closure"),
        "returns_none": (lambda: None, TypeError, "NoneType"),
        "returns_text": (lambda: "loss", TypeError, "str"),
        "vector": (vector, ValueError, r"\(3,\)"),
        "nan_loss": (lambda: good() * torch.nan, ValueError, "nan"),
        "infinite_loss": (lambda: float("inf"), ValueError, "inf"),
        "nan_gradient": (nan_gradient, ValueError, "NaN"),
        "infinite_gradient": (infinite_gradient, ValueError, "infinite"),
        "sparse": (sparse, TypeError, "sparse"),
        "no_gradient": (no_gradient, ValueError, "gradient in any"),
        "raising": (raising, ClosureError, ""),
        "raising_at_the_previous_point": (raising_at_the_previous_point, ClosureError, ""),
        "nan_at_the_previous_point": (nan_at_the_previous_point, ValueError, "NaN"),
        "one_memory": (one_memory, ValueError, "same memory"),
    }


@pytest.mark.parametrize("case", bad_closures(network()))
def test_a_bad_closure_raises_and_leaves_parameters_and_state_untouched(make: Make, case: str) -> None:
    model, twin = network(), network()
    optimizer, twin_optimizer = make(model.parameters()), make(twin.parameters())
    train(model, optimizer, range(4))
    train(twin, twin_optimizer, range(4))
    closure, error, message = bad_closures(model)[case]
    before, state = values(model), frozen(optimizer)
    with pytest.raises(error, match=message or None):
        optimizer.step(closure)
    assert same(before, values(model))
    assert same_state(state, optimizer.state_dict())
    train(model, optimizer, range(4, 7))
    train(twin, twin_optimizer, range(4, 7))
    assert same(values(model), values(twin))


def test_an_overflowing_direction_leaves_the_parameters_and_restarts(make: Make) -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = make([x])
    scale = [1.0]

    def closure() -> Tensor:
        loss = (x * x).sum()
        loss.backward()
        x.grad.mul_(scale[0])
        return loss

    optimizer.step(closure)
    before = x.detach().clone()
    # Finite gradients of 3e38 at the two points, of opposite sign, whose difference is not.
    scale[0] = 1.0

    def opposite() -> Tensor:
        loss = closure()
        x.grad = torch.full_like(x, -3e38 if scale[0] > 0 else 3e38)
        scale[0] *= -1
        return loss

    with pytest.raises(ValueError, match=r"overflow|too large"):
        optimizer.step(opposite)
    assert torch.equal(before, x)
    scale[0] = 1.0
    optimizer.step(closure)
    assert torch.isfinite(x).all()


def sums(optimizer: RecursiveOptimizer) -> list[Any]:
    names = ("noise_sum", "direction_sum")
    found = [optimizer.param_groups[0][name] for name in names]
    return found + [state[name].tolist() for state in optimizer.state.values() for name in names if name in state]


def test_a_sum_that_overflows_is_reported_and_never_stored(make: Make) -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = make([x])
    slope = [1.0]

    def closure() -> Tensor:
        loss = (slope[0] * x).sum()
        loss.backward()
        return loss

    before: list[Any] = []

    def huge_steps() -> None:
        # The square of each gradient is a float, and the sum of some, or of one divided by a small a, is not.
        for sign in (1.0, 1.0, 1.0, -1.0, -1.0):
            before[:] = [x.detach().clone(), sums(optimizer)]
            slope[0] = sign * 9e153
            optimizer.step(closure)

    optimizer.step(closure)
    with pytest.raises(ValueError, match="overflow"):
        huge_steps()
    assert torch.equal(before[0], x)
    assert sums(optimizer) == before[1]
    assert "inf" not in str(before[1])
    slope[0] = 1.0
    optimizer.step(closure)
    assert torch.equal(optimizer.state[x]["direction"], x.grad)
    if not optimizer.param_groups[0]["per_coordinate"]:
        assert optimizer.momentum > 0.0
        assert optimizer.step_size > 0.0


def test_a_first_gradient_whose_weighted_square_overflows_is_reported() -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = STORMPlus([x])

    def closure() -> Tensor:
        loss = 1e150 * x.sum()
        loss.backward()
        return loss

    for _ in range(2):
        with pytest.raises(ValueError, match="direction_sum overflows"):
            optimizer.step(closure)
    assert sums(optimizer) == [0.0, 0.0]
    assert torch.equal(x, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("cls", "options", "slope"),
    [
        (STORMPlus, {}, 1e-170),
        (STORMPlus, {"per_coordinate": True}, 1e-170),
        (MetaSTORM, {"variant": "gradient", "a_0": 1e-300}, 1e10),
        (MetaSTORM, {"variant": "gradient", "a_0": 1e-300, "per_coordinate": True}, 1e10),
    ],
)
def test_a_step_size_that_underflows_is_reported(
    cls: type[RecursiveOptimizer], options: dict[str, Any], slope: float
) -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = cls([x], **options)

    def closure(slope: float = slope) -> Tensor:
        loss = slope * x.sum()
        loss.backward()
        return loss

    for _ in range(2):
        with pytest.raises(ValueError, match="step size is 0"):
            optimizer.step(closure)
    assert torch.equal(x, torch.ones(2, dtype=torch.float64))
    assert sums(optimizer) == [0.0, 0.0]
    optimizer.step(lambda: closure(0.0))
    assert torch.equal(x, torch.ones(2, dtype=torch.float64)), "gradients of exactly 0 are no failure"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_a_step_size_that_overflows_is_reported(per_coordinate: bool, dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = STORM([x], k=1e6, w=1e-120, per_coordinate=per_coordinate)

    def closure() -> Tensor:
        loss = 1e-30 * x.float().sum()
        loss.backward()
        x.grad = torch.full_like(x, 1e-38)
        return loss

    for _ in range(2):
        with pytest.raises(ValueError, match="step size overflows"):
            optimizer.step(closure)
    assert torch.equal(x, torch.ones(2, dtype=dtype))
    assert sums(optimizer) == [0.0, 0.0]


@pytest.mark.parametrize("cls", [STORMPlus, STORM, MetaSTORM])
def test_a_coordinate_that_overflows_float32_leaves_all_sums_as_they_were(cls: type[RecursiveOptimizer]) -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = cls([first, second], per_coordinate=True)
    scale = [1.0]

    def closure() -> Tensor:
        loss = first.square().sum() + scale[0] * second[1]
        loss.backward()
        scale[0] *= -1.0
        return loss

    optimizer.step(closure)
    before, before_sums = [first.detach().clone(), second.detach().clone()], sums(optimizer)
    scale[0] = 1e20
    for _ in range(2):  # With a previous point and, after the first failure, without.
        with pytest.raises(ValueError, match="overflow"):
            optimizer.step(closure)
        assert same(before, [first, second])
        assert sums(optimizer) == before_sums


def test_complex_parameters_are_refused(make: Make) -> None:
    with pytest.raises(TypeError, match="complex64"):
        make([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("lr", -1.0, ValueError),
        ("lr", float("nan"), ValueError),
        ("lr", "fast", TypeError),
        ("weight_decay", -0.1, ValueError),
        ("weight_decay", float("inf"), ValueError),
        ("momentum_floor", 1.5, ValueError),
        ("momentum_floor", -0.5, ValueError),
        ("momentum_floor", float("nan"), ValueError),
        ("momentum_floor", "low", TypeError),
        ("momentum_floor", "0.5", TypeError),
        ("lr", 10**400, TypeError),
        ("lr", 1e300, ValueError),
    ],
)
def test_options_out_of_range_are_refused(make: Make, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        make(network().parameters(), **{option: value})


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (STORM, {"k": 0.0}),
        (STORM, {"k": 1e300}),
        (STORM, {"w": -1.0}),
        (STORM, {"c": -1.0}),
        (MetaSTORM, {"p": 0.1}),
        (MetaSTORM, {"p": 0.6}),
        (MetaSTORM, {"a_0": 0.0}),
        (MetaSTORM, {"b_0": -1.0}),
        (MetaSTORM, {"variant": "fast"}),
    ],
)
def test_constants_out_of_range_are_refused(cls: type[RecursiveOptimizer], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(network().parameters(), **options)


def test_an_option_of_the_whole_optimizer_cannot_differ_between_groups(make: Make) -> None:
    optimizer = make([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="momentum_floor"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentum_floor": 0.5})
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    with pytest.raises(TypeError, match="list"):
        optimizer.add_param_group([nn.Parameter(torch.ones(2))])  # type: ignore[arg-type]
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD, STORMPlus, STORM, MetaSTORM])
def test_a_state_dict_of_another_optimizer_is_refused(make: Make, other: Any) -> None:
    optimizer = make(network().parameters())
    if isinstance(optimizer, other):
        pytest.skip("the same optimizer")
    before = frozen(optimizer)
    with pytest.raises(ValueError, match="state_dict was saved by"):
        optimizer.load_state_dict(other(network().parameters()).state_dict())
    assert same_state(before, optimizer.state_dict())


def test_a_state_dict_of_other_shapes_is_refused(make: Make) -> None:
    wide = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1))
    source = make(wide.parameters())
    train(wide, source, range(2))
    optimizer = make(network().parameters())
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state_dict(source.state_dict())
    assert not optimizer.state_dict()["state"]
