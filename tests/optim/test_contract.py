"""What every optimiser of storm_rl.optim owes a user of torch.optim."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storm_rl.optim import STORMPlus
from tests.optim.cases import Closure, Make, batch, closure_of, frozen, network, same, same_state, train, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_run_resumed_from_a_file_equals_the_uninterrupted_one_bit_for_bit(make: Make, dtype: torch.dtype) -> None:
    straight = network(dtype)
    optimizer = make(straight.parameters())
    train(straight, optimizer, range(12))

    first = network(dtype)
    saved_from = make(first.parameters())
    train(first, saved_from, range(5))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": saved_from.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    train(first, saved_from, range(5, 7))  # what was saved must not move with the optimiser
    second = network(dtype, seed=9)
    second.load_state_dict(saved["model"])
    resumed = make(second.parameters())
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(5, 12))
    assert same(values(straight), values(second))
    assert same_state(optimizer.state_dict(), resumed.state_dict())


def test_loading_does_not_share_memory_with_the_source(make: Make) -> None:
    model, other = network(), network()
    optimizer, loaded = make(model.parameters()), make(other.parameters())
    train(model, optimizer, range(3))
    loaded.load_state_dict(optimizer.state_dict())
    before = frozen(loaded)
    train(model, optimizer, range(3, 5))
    assert same_state(before, loaded.state_dict())


def test_global_sums_survive_a_bfloat16_model_in_full_precision() -> None:
    model = network(torch.bfloat16)
    optimizer = STORMPlus(model.parameters())
    train(model, optimizer, range(4))
    exact = optimizer.param_groups[0]["direction_sum"]
    assert float(torch.tensor(exact, dtype=torch.bfloat16)) != exact
    loaded = STORMPlus(network(torch.bfloat16).parameters())
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["direction_sum"] == exact


def test_per_coordinate_sums_of_a_bfloat16_model_stay_float32_when_loaded() -> None:
    model = network(torch.bfloat16)
    optimizer = STORMPlus(model.parameters(), per_coordinate=True)
    train(model, optimizer, range(4))
    loaded = STORMPlus(network(torch.bfloat16).parameters(), per_coordinate=True)
    loaded.load_state_dict(optimizer.state_dict())
    for state in loaded.state.values():
        assert state["noise_sum"].dtype == state["direction_sum"].dtype == torch.float32
        assert state["direction"].dtype == torch.bfloat16


def test_a_step_without_a_closure_is_refused(make: Make) -> None:
    model = network()
    optimizer = make(model.parameters())
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    closure_of(model, 0)()
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("clone", [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy])
def test_pickle_and_deepcopy_continue_like_the_original(make: Make, clone: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = make(model.parameters(), weight_decay=1e-3)
    train(model, optimizer, range(4))
    model_twin, twin = clone((model, optimizer))
    assert twin.param_groups[0]["params"][0] is next(model_twin.parameters())
    train(model, optimizer, range(4, 8))
    train(model_twin, twin, range(4, 8))
    assert same(values(model), values(model_twin))


def test_loss_falls(make: Make) -> None:
    model = network()
    losses = train(model, make(model.parameters()), range(300))
    assert sum(losses[-30:]) < 0.8 * sum(losses[:30])


def test_norms_run_over_all_groups_and_lr_belongs_to_each(make: Make) -> None:
    together, apart = network(), network()
    a = make(together.parameters())
    groups = [{"params": [p]} for p in apart.parameters()]
    b = make(groups)
    train(together, a, range(6))
    train(apart, b, range(6))
    assert same(values(together), values(apart))
    b.param_groups[1]["lr"] = 0.0
    before = values(apart)
    train(apart, b, range(6, 8))
    moved = [not torch.equal(x, y) for x, y in zip(before, values(apart), strict=True)]
    assert moved == [True, False, True, True]


def test_a_group_added_later_starts_with_its_gradient_and_shares_the_sums(make: Make) -> None:
    model = network()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = make(first)
    train(model, optimizer, range(3))
    sums = optimizer.param_groups[0]["noise_sum"]
    optimizer.add_param_group({"params": last, "lr": 0.5})
    assert optimizer.param_groups[1]["noise_sum"] == sums
    assert optimizer.param_groups[1]["lr"] == 0.5
    before = values(model)
    train(model, optimizer, range(3, 4))
    for p in last:
        assert torch.equal(optimizer.state[p]["direction"], p.grad)
    assert not same(before[2:], values(model)[2:])
    train(model, optimizer, range(4, 6))
    if not optimizer.param_groups[0]["per_coordinate"]:
        assert optimizer.param_groups[0]["direction_sum"] == optimizer.param_groups[1]["direction_sum"] > 0


def test_a_single_tensor_and_named_parameters_can_be_added(make: Make) -> None:
    model = network()
    optimizer = make(list(model[0].named_parameters()))
    optimizer.add_param_group({"params": list(model[2].named_parameters())})
    train(model, optimizer, range(2))
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["weight", "bias"]
    alone = make([nn.Parameter(torch.ones(2))])
    alone.add_param_group({"params": nn.Parameter(torch.ones(3))})
    assert len(alone.param_groups) == 2


def test_parameters_without_gradient_stay_and_restart_when_it_returns(make: Make) -> None:
    model = network()
    unused = nn.Parameter(torch.ones(2))
    optimizer = make([*model.parameters(), unused])
    twin = network()
    twin_optimizer = make(twin.parameters())
    train(model, optimizer, range(4))
    train(twin, twin_optimizer, range(4))
    assert torch.equal(unused, torch.ones(2))
    assert same(values(model), values(twin))

    model[0].requires_grad_(False)
    before = values(model)
    train(model, optimizer, range(4, 6))
    assert same(before[:2], values(model)[:2])
    assert "direction" not in optimizer.state[model[0].weight]
    model[0].requires_grad_(True)
    train(model, optimizer, range(6, 7))
    assert torch.equal(optimizer.state[model[0].weight]["direction"], model[0].weight.grad)


def test_a_gradient_that_is_missing_at_the_previous_point_is_zero_there(make: Make) -> None:
    """The loss may not depend on a parameter there: as if its gradient were written as zero."""

    def trained(written: bool) -> tuple[list[Tensor], dict[str, Any]]:
        x, y = (nn.Parameter(torch.tensor(values)) for values in ([2.0, -1.0], [0.5, 3.0]))
        optimizer = make([x, y])
        used = [True, True, False, True, True]  # The third call is at the previous point of the second step.

        def closure() -> Tensor:
            loss = x.square().sum()
            if used.pop(0):
                loss = loss + (y * x).sum()
            elif written:
                loss = loss + 0.0 * y.sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return [x.detach(), y.detach()], optimizer.state_dict()

    (values_missing, missing), (values_written, written) = trained(written=False), trained(written=True)
    assert same(values_missing, values_written)
    assert same_state(missing, written)


def test_direction_where_the_gradient_at_the_previous_point_is_missing() -> None:
    x, y = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    optimizer = STORMPlus([x, y])
    used = [True, True, False]

    def closure() -> Tensor:
        loss = x.square() + (5.0 * y if used.pop(0) else 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    momentum = optimizer.momentum
    optimizer.step(closure)
    assert float(optimizer.state[y]["direction"]) == pytest.approx(5.0 + (1.0 - momentum) * 5.0)


def test_learning_rate_schedulers_scale_the_step(make: Make) -> None:
    model = network()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else 0.0)
    for step in range(2):
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
    before = values(model)
    train(model, optimizer, range(2, 3))
    assert same(before, values(model))


def test_a_tensor_learning_rate_works(make: Make) -> None:
    plain, tensor = network(), network()
    train(plain, make(plain.parameters(), lr=0.5), range(3))
    train(tensor, make(tensor.parameters(), lr=torch.tensor(0.5)), range(3))
    assert same(values(plain), values(tensor))


def test_hooks_run_once_a_step(make: Make) -> None:
    model = network()
    optimizer = make(model.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, range(2))
    assert calls == ["before", "after"] * 2


def test_maximize_climbs_what_minimising_descends(make: Make) -> None:
    down, up = network(), network()
    train(down, make(down.parameters()), range(5))
    optimizer = make(up.parameters(), maximize=True)
    for step in range(5):
        inputs, targets = batch(step)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            value = -nn.functional.mse_loss(up(inputs), targets)
            value.backward()
            return value

        optimizer.step(closure)
    assert same(values(down), values(up))


def test_decay_shrinks_parameters_before_the_step(make: Make) -> None:
    model, decayed = network(), network()
    train(model, make(model.parameters(), lr=0.5), range(1))
    train(decayed, make(decayed.parameters(), lr=0.5, weight_decay=0.2), range(1))
    start = values(network())
    for x, y, x_0 in zip(values(model), values(decayed), start, strict=True):
        torch.testing.assert_close(x - y, 0.5 * 0.2 * x_0)


def test_gradients_after_the_step_are_those_of_the_current_point(make: Make) -> None:
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    reference = copy.deepcopy(model)
    closure_of(reference, 3)()
    train(model, optimizer, range(3, 4))
    for p, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, expected.grad)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_clears_gradients_itself_changes_nothing(make: Make, set_to_none: bool) -> None:
    plain, clearing = network(), network()
    train(plain, make(plain.parameters()), range(4))
    optimizer = make(clearing.parameters())
    for step in range(4):
        inner = closure_of(clearing, step)

        def closure(inner: Closure = inner) -> Tensor:
            optimizer.zero_grad(set_to_none=set_to_none)
            return inner()

        optimizer.step(closure)
    assert same(values(plain), values(clearing))


def test_printing_shows_the_options(make: Make) -> None:
    text = repr(make(network().parameters(), lr=0.25))
    assert "lr: 0.25" in text
    assert "per_coordinate" in text


def test_channels_last_and_non_contiguous_parameters_work(make: Make) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 64, 5), nn.Flatten(), nn.LazyLinear(1)).double()
    # In float64, since the two layouts take two kernels, and four steps grow what those round differently.
    inputs = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    plain(inputs)
    strided = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert not strided[0].weight.is_contiguous()
    for model in (plain, strided):
        optimizer = make(model.parameters())

        def closure(model: nn.Module = model) -> Tensor:
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
    for x, y in zip(values(plain), values(strided), strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(make: Make) -> None:
    cpu, cuda = network(torch.float64), network(torch.float64).cuda()
    train(cpu, make(cpu.parameters()), range(10))
    optimizer = make(cuda.parameters())
    for step in range(10):
        inputs, targets = (tensor.cuda() for tensor in batch(step, torch.float64))

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = nn.functional.mse_loss(cuda(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    for x, y in zip(values(cpu), values(cuda), strict=True):
        torch.testing.assert_close(x, y.cpu(), atol=1e-9, rtol=1e-9)
