import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from storm_rl.common.dense_network import DenseNetwork


def networks(activation: type[nn.Module]) -> tuple[nn.Sequential, DenseNetwork]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation())
    module = nn.Sequential(body, nn.Linear(4, 2)).double()
    network = DenseNetwork.of(body, module[1])
    assert network is not None
    return module, network


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_outputs_gradients_and_tangents_are_those_of_autograd(activation: type[nn.Module]) -> None:
    module, network = networks(activation)
    inputs, cotangent = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    outputs = module(inputs)
    values = network.forward(inputs)
    torch.testing.assert_close(values[-1], outputs.detach(), rtol=0, atol=1e-14)

    into = torch.zeros(2, network.n_parameters).double()
    deltas = network.backward(values, cotangent)
    for part, rows in zip(into, (slice(0, 3), slice(3, 7)), strict=True):
        network.gradient(values, deltas, network.split(part), rows)
        expected = torch.autograd.grad((outputs * cotangent)[rows].sum(), list(module.parameters()), retain_graph=True)
        torch.testing.assert_close(part, flat(expected), rtol=0, atol=1e-13)

    direction = torch.randn(network.n_parameters).double()
    theta = parameters_to_vector(module.parameters()).detach()
    _, tangent = torch.func.jvp(
        lambda vector: torch.func.functional_call(
            module, dict(zip(dict(module.named_parameters()), network.split(vector), strict=True)), (inputs,)
        ),
        (theta,),
        (direction,),
    )
    torch.testing.assert_close(network.tangent(values, direction), tangent, rtol=0, atol=1e-13)


def test_reads_the_modules_parameters_and_any_other_vector() -> None:
    module, network = networks(nn.Tanh)
    inputs = torch.randn(4, 3).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(network.forward(inputs)[-1], module(inputs).detach(), rtol=0, atol=1e-14)
    vector = torch.randn(network.n_parameters).double()
    at_vector = network.at(vector).forward(inputs)[-1]
    nn.utils.vector_to_parameters(vector, module.parameters())
    torch.testing.assert_close(at_vector, module(inputs).detach(), rtol=0, atol=1e-14)


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2.0 * super().forward(inputs)


def hooked() -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_forward_hook(lambda module, inputs, outputs: 2.0 * outputs)
    return module


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 2), nn.ELU()),
        nn.Sequential(nn.Linear(3, 2), nn.Dropout()),
        nn.Sequential(nn.Tanh(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Tanh()),
        nn.Linear(3, 2, bias=False),
        nn.Sequential(),
        Doubled(3, 2),
        hooked(),
    ],
)
def test_says_so_where_a_network_is_of_another_kind(module: nn.Module) -> None:
    assert DenseNetwork.of(module) is None
