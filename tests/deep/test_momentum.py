"""Reversible networks: inverted to the last bit, gradients of plain backpropagation, memory that does not grow."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import Tensor, nn

from storm_rl import STORMPlusPG
from storm_rl.deep import DeepFeatures, momentum, momentum_residual
from storm_rl.deep.momentum import largest_depth, momentum_states
from tests.contract.cases import RandomEnv

IMAGE = spaces.Box(0, 255, (2, 8, 12), dtype=np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,))


def blocks(depth: int, width: int = 4) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Tanh(), nn.Linear(width, width)).double() for _ in range(depth)]


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output.sin().sum(), inputs))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("depth", [1, 3, 18])
def test_values_and_gradients_are_those_of_plain_backpropagation(gamma: float, depth: int) -> None:
    functions = blocks(depth)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(parameter for function in functions for parameter in function.parameters())]
    plain, reversible = momentum_states(x, functions, gamma)[-1], momentum_residual(x, functions, gamma)
    assert torch.allclose(plain, reversible, rtol=0.0, atol=1e-9)
    for ours, reference in zip(gradients(reversible, inputs), gradients(plain, inputs), strict=True):
        assert torch.allclose(ours, reference, rtol=0.0, atol=1e-9)


def test_the_recursion_is_the_papers() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64)
    double: Any = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(double.weight, 2.0)
    # v = .25 * 2 = .5, x = 1.5; v = .75 * .5 + .25 * 3 = 1.125, x = 2.625.
    assert momentum_residual(x, [double, double], 0.75).item() == pytest.approx(2.625, abs=1e-10)


def test_layers_that_share_their_parameters_add_their_gradients() -> None:
    (function,) = blocks(1)
    x = torch.randn(5, 4, dtype=torch.float64)
    inputs = list(function.parameters())
    plain, reversible = momentum_states(x, [function] * 6, 0.9)[-1], momentum_residual(x, [function] * 6, 0.9)
    for ours, reference in zip(gradients(reversible, inputs), gradients(plain, inputs), strict=True):
        assert torch.allclose(ours, reference, rtol=0.0, atol=1e-9)


def test_gradients_can_be_differentiated_once_more() -> None:
    functions = blocks(4)
    weight = functions[1][1].weight  # type: ignore[index]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    products = []
    for output in (momentum_states(x, functions, 0.9)[-1], momentum_residual(x, functions, 0.9)):
        first = torch.autograd.grad(output.sin().sum(), [weight, x], create_graph=True)
        products.append(torch.autograd.grad(first[0].square().sum() + first[1].sin().sum(), [weight, x]))
    for ours, reference in zip(products[1], products[0], strict=True):
        assert torch.allclose(ours, reference, rtol=0.0, atol=1e-9)


def test_every_layer_is_undone_to_the_last_bit_at_the_largest_depth() -> None:
    generator = torch.Generator().manual_seed(0)
    for gamma in (0.5, 0.9, 0.99):
        numerator, denominator = momentum._fraction(gamma).as_integer_ratio()
        depth = largest_depth(gamma)
        states = [(torch.randint(-(2**50), 2**50, (100,), generator=generator), torch.zeros(100, dtype=torch.int64))]
        for _ in range(depth):
            value, buffer = momentum._multiplied(*states[-1], numerator, denominator)
            assert bool((buffer >= 0).all())
            # Off by the remainder only.
            assert torch.allclose(value.double(), gamma * states[-1][0].double(), rtol=0.0, atol=2.0 * denominator)
            states.append((value, buffer))
        for before, after in zip(reversed(states[:-1]), reversed(states[1:]), strict=True):
            undone = momentum._multiplied(*after, denominator, numerator)
            assert torch.equal(undone[0], before[0])
            assert torch.equal(undone[1], before[1])


def test_without_the_lost_bits_gradients_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    functions, x = blocks(30), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    plain = gradients(momentum_states(x, functions, 0.25)[-1], [x])[0]

    def rounded(value: Tensor, buffer: Tensor, numerator: int, denominator: int) -> tuple[Tensor, Tensor]:
        return value.double().mul(numerator / denominator).round().long(), buffer

    assert torch.allclose(gradients(momentum_residual(x, functions, 0.25), [x])[0], plain, atol=1e-9)
    monkeypatch.setattr(momentum, "_multiplied", rounded)
    assert not torch.allclose(gradients(momentum_residual(x, functions, 0.25), [x])[0], plain, atol=1e-3)


def kept(features: nn.Module, observations: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward one, parameters apart."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in features.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = features(observations)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_memory_does_not_grow_with_depth(space: spaces.Box) -> None:
    observations = torch.rand(16, *space.shape)
    shallow, deep = (
        {depth: kept(DeepFeatures(space, depth, 8, wiring=wiring), observations) for depth in (4, 64)}
        for wiring in ("momentum", "residual")
    )
    assert shallow[64] == shallow[4]
    assert deep[64] > 10 * deep[4]


@pytest.mark.parametrize("wiring", ["plain", "residual", "momentum"])
@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_features_are_those_of_the_formula(space: spaces.Box, wiring: Any) -> None:
    features = DeepFeatures(space, 3, 6, nn.GELU, wiring).double()
    observations = torch.rand(5, *space.shape, dtype=torch.float64)
    z = features.first(observations)
    velocity = torch.zeros_like(z)
    for block in features.blocks:
        change = block[1](nn.functional.gelu(z))
        velocity = 0.9 * velocity + 0.1 * change
        z = {"plain": change, "residual": z + change, "momentum": z + velocity}[wiring]
    expected = nn.functional.gelu(z).flatten(1)
    assert torch.allclose(features(observations), expected, rtol=0.0, atol=1e-9)
    assert features.features_dim == expected.shape[1]
    assert torch.allclose(features.layers(observations)[-1], z, rtol=0.0, atol=1e-9)


def test_a_convolutional_networks_gradients_are_those_of_plain_backpropagation() -> None:
    torch.manual_seed(0)
    features = DeepFeatures(IMAGE, 5, 4, wiring="momentum").double()
    observations = torch.rand(3, *IMAGE.shape, dtype=torch.float64)
    parameters = list(features.parameters())
    plain = features.last(features.layers(observations)[-1])
    for ours, reference in zip(
        gradients(features(observations), parameters), gradients(plain, parameters), strict=True
    ):
        assert torch.allclose(ours, reference, rtol=0.0, atol=1e-9)


def test_a_frozen_layer_stays_and_the_others_learn() -> None:
    features = DeepFeatures(VECTOR, 4, 6, wiring="momentum")
    features.blocks[2].requires_grad_(False)
    features.first.requires_grad_(False)
    features(torch.rand(5, 3)).sum().backward()
    assert features.blocks[2][1].weight.grad is None
    assert float(features.blocks[1][1].weight.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("algorithm", [PPO, STORMPlusPG])
@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_algorithms_train_it_save_and_load_it(algorithm: Any, space: spaces.Box, tmp_path: Any) -> None:
    kwargs = {"features_extractor_class": DeepFeatures, "net_arch": []}
    kwargs["features_extractor_kwargs"] = {"depth": 3, "width": 4, "wiring": "momentum"}
    policy = "CnnPolicy" if space is IMAGE else "MlpPolicy"
    model = algorithm(policy, RandomEnv(None, space), policy_kwargs=kwargs, n_steps=16, seed=0, device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16)
    moved = [name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])]
    assert any("blocks.0" in name for name in moved)
    model.save(tmp_path / "model")
    observation = space.sample()
    again = algorithm.load(tmp_path / "model", device="cpu")
    assert np.array_equal(
        again.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


def test_bad_arguments_and_numbers_are_refused() -> None:
    functions, x = blocks(3), torch.zeros(2, 4, dtype=torch.float64)
    for gamma in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\)"):
            momentum_residual(x, functions, gamma)
    with pytest.raises(ValueError, match="denominator of at most 1000"):
        momentum_residual(x, functions, 2.0**-0.5)
    assert largest_depth(0.9) >= 64
    with pytest.raises(ValueError, match=f"gamma=0.1 allows at most {largest_depth(0.1)} blocks, got 50"):
        momentum_residual(x, functions[:1] * 50, 0.1)
    for bad in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="inputs of a momentum residual network must be finite"):
            momentum_residual(x + bad, functions, 0.9)
        nn.init.constant_(functions[1][1].bias, bad)  # type: ignore[index]
        with pytest.raises(ValueError, match="values of a momentum residual network must be finite"):
            momentum_residual(x, functions, 0.9)
    with pytest.raises(ValueError, match="wiring must be one of plain, residual, momentum, got 'dense'"):
        DeepFeatures(VECTOR, wiring="dense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start must be one of critical, orthogonal, got 'zero'"):
        DeepFeatures(VECTOR, start="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be an integer of at least 1, got 0"):
        DeepFeatures(VECTOR, depth=0)
    with pytest.raises(TypeError, match="must be a Box, got Discrete"):
        DeepFeatures(spaces.Discrete(3))
