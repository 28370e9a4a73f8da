import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from storm_rl.storm_plus_pg.numpy_actor_critic import mlp_from_modules
from storm_rl.storm_plus_pg.numpy_mlp import Jacobian, NumpyMLP


def networks(activation: type[nn.Module]) -> tuple[nn.Sequential, NumpyMLP]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation())
    module = nn.Sequential(body, nn.Linear(4, 2)).double()
    network = mlp_from_modules(body, module[1])
    assert network is not None
    return module, network


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def assert_close(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_outputs_and_gradients_are_those_of_autograd(activation: type[nn.Module]) -> None:
    module, network = networks(activation)
    inputs, cotangent = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    outputs = module(inputs)
    values = network.forward(inputs.numpy())
    assert_close(values[-1], outputs)

    out = np.zeros((2, network.n_parameters))
    deltas = network.backward(network.activation_derivatives(values), cotangent.numpy())
    for part, rows in zip(out, (slice(0, 3), slice(3, 7)), strict=True):
        network.gradient(values, deltas, network.split(part), rows)
        expected = torch.autograd.grad((outputs * cotangent)[rows].sum(), list(module.parameters()), retain_graph=True)
        assert_close(part, flat(expected))


@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_arrays_to_work_in_change_no_number(activation: type[nn.Module], last: type[nn.Module]) -> None:
    _, plain = networks(activation)
    network = NumpyMLP(plain.arrays, [*plain.activations[:-1], last])
    layers, derivatives, deltas = (network.empty_layers(7) for _ in range(3))
    for _ in range(2):  # The second time in the arrays of the first.
        inputs, cotangent = torch.randn(7, 3).double().numpy(), torch.randn(7, 2).double().numpy()
        values, expected = network.forward(inputs), np.zeros(network.n_parameters)
        network.gradient(
            values, network.backward(network.activation_derivatives(values), cotangent), network.split(expected)
        )

        in_place, out = network.forward(inputs, layers), np.zeros(network.n_parameters)
        for found, layer in zip(in_place, values, strict=True):
            np.testing.assert_array_equal(found, layer)
        arrived = network.backward(network.activation_derivatives(in_place, derivatives), cotangent, deltas)
        network.gradient(in_place, arrived, network.split(out))
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
        assert in_place[0] is inputs


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_jacobian_products_are_those_of_autograd(activation: type[nn.Module]) -> None:
    module, network = networks(activation)
    inputs = torch.randn(7, 3).double()
    jacobian = Jacobian(network, network.forward(inputs.numpy()))

    def outputs_at(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [parameter.numel() for parameter in module.parameters()])
        named = {
            name: part.view(parameter.shape)
            for part, (name, parameter) in zip(parts, module.named_parameters(), strict=True)
        }
        outputs: Tensor = torch.func.functional_call(module, named, (inputs,))
        return outputs

    theta = parameters_to_vector(module.parameters()).detach()
    direction, cotangent = torch.randn(network.n_parameters).double(), torch.randn(7, 2).double()
    _, tangent = torch.func.jvp(outputs_at, (theta,), (direction,))
    assert_close(jacobian.jvp(direction.numpy()), tangent)
    _, pull_back = torch.func.vjp(outputs_at, theta)
    out = np.zeros(network.n_parameters)
    jacobian.vjp(cotangent.numpy(), out)
    assert_close(out, pull_back(cotangent)[0])


def test_reads_the_modules_parameters_and_any_other_vector() -> None:
    module, network = networks(nn.Tanh)
    inputs = torch.randn(4, 3).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    assert_close(network.forward(inputs.numpy())[-1], module(inputs))
    assert_close(network.flat(), parameters_to_vector(module.parameters()))
    vector = torch.randn(network.n_parameters).double()
    at_vector = network.with_parameters(vector.numpy()).forward(inputs.numpy())[-1]
    nn.utils.vector_to_parameters(vector, module.parameters())
    assert_close(at_vector, module(inputs))


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2.0 * super().forward(inputs)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 2), nn.ELU()),
        nn.Sequential(nn.Linear(3, 2), nn.Dropout()),
        nn.Sequential(nn.Tanh(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Tanh()),
        nn.Linear(3, 2, bias=False),
        nn.Sequential(),
        nn.Linear(3, 2).bfloat16(),
        nn.Linear(3, 2, device="meta"),
        Doubled(3, 2),
    ],
)
def test_says_so_where_a_network_is_of_another_kind(module: nn.Module) -> None:
    assert mlp_from_modules(module) is None
