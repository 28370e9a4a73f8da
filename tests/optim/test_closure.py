"""The two evaluations of a step: same random numbers, buffers once, parameters in place."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storm_rl.optim import STORMPlus


def test_dropout_masks_agree_between_the_two_evaluations() -> None:
    torch.manual_seed(0)
    x = nn.Parameter(torch.ones(64))
    masks: list[Tensor] = []
    optimizer = STORMPlus([x])

    def closure() -> Tensor:
        mask = nn.functional.dropout(torch.ones(64), 0.5)
        masks.append(mask)
        loss = ((x - 1.5) * mask).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    first, now, again, later, later_again = masks
    assert torch.equal(now, again)
    assert torch.equal(later, later_again)
    assert not torch.equal(first, now)
    assert not torch.equal(now, later)


def draw() -> tuple[float, float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())  # noqa: NPY002


def test_torch_python_and_numpy_draw_the_same_and_move_on_as_after_one_evaluation() -> None:
    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002

    seed()
    once = [draw() for _ in range(3)]
    seed()
    draws = []
    x = nn.Parameter(torch.ones(2))
    optimizer = STORMPlus([x])

    def closure() -> Tensor:
        draws.append(draw())
        loss = x.square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert draws == [once[0], once[1], once[1]]
    assert draw() == once[2]


def test_replay_off_draws_anew() -> None:
    torch.manual_seed(0)
    draws = []
    x = nn.Parameter(torch.ones(2))
    optimizer = STORMPlus([x], replay=False)

    def closure() -> Tensor:
        draws.append(float(torch.rand(())))
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert len(set(draws)) == 3


def batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()), nn.Linear(4, 1))


def test_batch_norm_statistics_are_updated_once_and_from_the_current_point() -> None:
    model = batch_norm()
    optimizer = STORMPlus(model.parameters())
    for _ in range(4):
        inputs = torch.randn(16, 3)
        expected = copy.deepcopy(model)
        expected(inputs)

        def closure(inputs: Tensor = inputs) -> Tensor:
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        for (name, buffer), (_, wanted) in zip(model.named_buffers(), expected.named_buffers(), strict=True):
            assert torch.equal(buffer, wanted), name
    assert int(model[1][0].num_batches_tracked) == 4


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning", "ignore:Dynamo does not know:UserWarning")
@pytest.mark.parametrize("which", ["model", "submodule", "in place", "function"])
def test_a_compiled_model_takes_the_steps_of_the_plain_one(which: str) -> None:
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(inputs)
        return graph.forward

    torch.compiler.reset()
    plain, model = batch_norm(), batch_norm()
    calls: dict[nn.Module, Callable[[Tensor], Tensor]] = {plain: plain, model: model}
    if which == "model":
        calls[model] = torch.compile(model, backend=backend)
    elif which == "submodule":
        model[1] = torch.compile(model[1], backend=backend)
    elif which == "in place":
        model.compile(backend=backend)
    else:
        calls[model] = torch.compile(lambda inputs: model(inputs), backend=backend)
    optimizers = {each: STORMPlus(each.parameters()) for each in calls}
    compiled = []
    for _ in range(5):
        inputs = torch.randn(16, 3)
        for each, optimizer in optimizers.items():

            def closure(call: Callable[[Tensor], Tensor] = calls[each], inputs: Tensor = inputs) -> Tensor:
                loss = call(inputs).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
        compiled.append(len(graphs))
    assert compiled[0] > 0
    assert compiled[1] == compiled[-1], "compiled anew at every step"
    for tensor, wanted in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted)


def test_batch_norm_statistics_survive_a_failure_at_the_previous_point() -> None:
    model = batch_norm()
    optimizer = STORMPlus(model.parameters())
    inputs, calls = torch.randn(16, 3), []

    def closure() -> Tensor:
        calls.append(1)
        loss = model(inputs).square().mean()
        if len(calls) == 3:
            raise ZeroDivisionError
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert int(model[1][0].num_batches_tracked) == 2


class Counter(nn.Module):
    """Replaces its buffer instead of writing to it, and lets the buffer change the output."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return x * self.seen


def test_the_second_evaluation_starts_from_the_buffers_of_the_first() -> None:
    x, counter = nn.Parameter(torch.ones(3)), Counter()
    optimizer = STORMPlus([x])
    outputs = []

    def closure() -> Tensor:
        loss = counter(x).sum()
        loss.backward()
        outputs.append(x.grad.clone())
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert [float(output[0]) for output in outputs] == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert float(counter.seen) == 3.0


def test_modules_outside_the_closure_are_left_alone() -> None:
    x, outside = nn.Parameter(torch.ones(3)), batch_norm()
    optimizer = STORMPlus([x])

    def closure() -> Tensor:
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    outside(torch.randn(8, 3))
    assert int(outside[1][0].num_batches_tracked) == 1
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_parameters_keep_their_memory_and_the_second_evaluation_sees_the_previous_point() -> None:
    x = nn.Parameter(torch.full((3,), 2.0))
    address = x.data_ptr()
    optimizer = STORMPlus([x])
    points = []

    def closure() -> Tensor:
        points.append(x.detach().clone())
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    after_one = x.detach().clone()
    loss = optimizer.step(closure)
    after_two = x.detach().clone()
    optimizer.step(closure)
    assert x.data_ptr() == address
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(float(after_one.square().sum()))
    assert not loss.requires_grad
    expected = [torch.full((3,), 2.0), after_one, torch.full((3,), 2.0), after_two, after_one]
    assert all(torch.equal(a, b) for a, b in zip(points, expected, strict=True))


def test_noise_that_both_points_share_cancels_so_the_error_follows_a_alone() -> None:
    # With g_t = x_t + noise_t the error e_t = d_t - x_t obeys e_t = (1 - a_t) e_{t-1} + a_t noise_t.
    torch.manual_seed(0)
    x = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    optimizer = STORMPlus([x])
    error = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        noise = torch.randn(2, dtype=torch.float64)

        def closure(noise: Tensor = noise) -> Tensor:
            loss = (x**2).sum() / 2 + (noise * x).sum()
            loss.backward()
            return loss

        momentum = optimizer.momentum  # 1 before the first step
        point = x.detach().clone()
        optimizer.step(closure)
        error = (1 - momentum) * error + momentum * noise
        torch.testing.assert_close(optimizer.state[x]["direction"] - point, error)


def test_another_bit_generator_of_numpy_is_replayed(recwarn: pytest.WarningsRecorder) -> None:
    own = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        draws = []
        x = nn.Parameter(torch.ones(2))
        optimizer = STORMPlus([x])

        def closure() -> Tensor:
            draws.append(float(np.random.rand()))  # noqa: NPY002
            loss = x.square().sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
    finally:
        np.random.set_bit_generator(own)
    assert draws[1] == draws[2] != draws[0]
    assert not recwarn
