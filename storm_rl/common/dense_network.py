"""Fully connected networks differentiated in closed form, without autograd's bookkeeping."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

# From an activation's output: the derivative times what arrives there.
Derivative = Callable[[Tensor, Tensor], Tensor]


class DenseNetwork:
    r"""Linear layers with tanh, ReLU or nothing between them, at one parameter vector.

    The same mathematics as autograd on the modules, and the same parameters: the tensors are views of the modules'
    own (:meth:`of`) or of a flat vector (:meth:`at`), in the order of ``module.parameters()``. On networks of a few
    thousand parameters autograd's bookkeeping, and torch's tanh on the CPU, cost more than the arithmetic.

    Args:
        tensors: Weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer, one after the other.
        activations: ``nn.Tanh``, ``nn.ReLU`` or ``nn.Identity`` after each layer.
    """

    def __init__(self, tensors: Sequence[Tensor], activations: Sequence[type[nn.Module]]) -> None:
        self.tensors = list(tensors)
        self.activations = list(activations)
        self.n_parameters = sum(tensor.numel() for tensor in tensors)
        self._weights, self._biases = self.tensors[::2], self.tensors[1::2]
        # Views, made once: on small batches each costs as much as an operation.
        self._transposed = [weight.t() for weight in self._weights]
        self._activate = [_ACTIVATIONS[activation][0] for activation in activations]
        self._derivatives = [_ACTIVATIONS[activation][1] for activation in activations]

    @classmethod
    def of(cls, *modules: nn.Module) -> Self | None:
        """The network that ``modules`` make, one after the other; None if they hold anything but what is known here."""
        tensors: list[Tensor] = []
        activations: list[type[nn.Module]] = []
        for module in _leaves(modules):
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            # Exact types: a subclass may compute anything.
            if type(module) is nn.Linear and module.bias is not None:
                tensors += [module.weight.detach(), module.bias.detach()]
                activations.append(nn.Identity)
            elif type(module) in (nn.Tanh, nn.ReLU) and activations and activations[-1] is nn.Identity:
                activations[-1] = type(module)
            else:
                return None
        return cls(tensors, activations) if activations else None

    def at(self, vector: Tensor) -> Self:
        """The same network with the parameters of a flat vector, ``(n_parameters,)``, which is not copied."""
        return type(self)(self.split(vector), self.activations)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat vector in the parameters' shapes."""
        parts = torch.split(vector, [tensor.numel() for tensor in self.tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, self.tensors, strict=True)]

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """``inputs``, ``(n, n_in)``, and each layer's activations ``(n, n_out)``; the last are the outputs."""
        values = [inputs]
        for weight, bias, activate in zip(self._transposed, self._biases, self._activate, strict=True):
            values.append(activate(torch.addmm(bias, values[-1], weight)))
        return values

    def backward(self, values: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
        """What arrives at the linear part of each layer, ``(n, n_out)`` each.

        Args:
            values: Of :meth:`forward`.
            cotangent: Derivative of a scalar in the outputs, ``(n, n_out)`` of the last layer.
        """
        deltas = []
        for index in reversed(range(len(self._weights))):
            delta = self._derivatives[index](cotangent, values[index + 1])
            deltas.append(delta)
            if index:
                cotangent = delta.mm(self._weights[index])
        return deltas[::-1]

    def gradient(
        self, values: Sequence[Tensor], deltas: Sequence[Tensor], into: Sequence[Tensor], rows: slice | None = None
    ) -> None:
        """The scalar's gradient in the parameters, by the rows ``rows`` of the batch.

        Args:
            values: Of :meth:`forward`.
            deltas: Of :meth:`backward`.
            into: Takes the result: tensors in the parameters' shapes.
            rows: Rows that count; None: all.
        """
        for index, delta in enumerate(deltas):
            arrived, inputs = (delta, values[index]) if rows is None else (delta[rows], values[index][rows])
            torch.mm(arrived.t(), inputs, out=into[2 * index])
            torch.sum(arrived, dim=0, out=into[2 * index + 1])

    def tangent(self, values: Sequence[Tensor], direction: Tensor) -> Tensor:
        """Derivative of the outputs along ``direction``, flat, in the parameters: ``(n, n_out)`` of the last layer."""
        split, result = self.split(direction), None
        for index, derivative in enumerate(self._derivatives):
            moved = torch.addmm(split[2 * index + 1], values[index], split[2 * index].t())
            if result is not None:
                moved.addmm_(result, self._transposed[index])
            result = derivative(moved, values[index + 1])
        assert result is not None
        return result


def _leaves(modules: Sequence[nn.Module]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for module in modules:
        found += _leaves(list(module)) if type(module) is nn.Sequential else [module]
    return found


def _tanh(inputs: Tensor) -> Tensor:
    if inputs.device.type != "cpu" or inputs.dtype is torch.bfloat16:
        return inputs.tanh_()
    # numpy's is vectorised where torch's is not, up to ten times faster.
    array = inputs.numpy()
    np.tanh(array, out=array)
    return inputs


def _tanh_derivative(cotangent: Tensor, outputs: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.tanh_backward(cotangent, outputs)
    return result


def _relu_derivative(cotangent: Tensor, outputs: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward(cotangent, outputs, 0)
    return result


_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Derivative]] = {
    nn.Tanh: (_tanh, _tanh_derivative),
    nn.ReLU: (Tensor.relu_, _relu_derivative),
    nn.Identity: (lambda inputs: inputs, lambda cotangent, outputs: cotangent),
}
