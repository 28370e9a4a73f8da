"""Fully connected networks differentiated in closed form, in numpy, without autograd's bookkeeping."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[Any]
"""Floating-point, of the parameters' type."""


class DenseNetwork:
    r"""Linear layers with tanh, ReLU or nothing between them, at one parameter vector, on the CPU.

    The same mathematics as autograd on the modules, and the same parameters: the arrays are views of the modules'
    own (:meth:`of`) or of a flat vector (:meth:`at`), in the order of ``module.parameters()``. On networks of a few
    thousand parameters autograd's bookkeeping, the start of each of torch's operations, and its tanh on the CPU cost
    more than the arithmetic.

    Args:
        arrays: Weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer, one after the other.
        activations: ``nn.Tanh``, ``nn.ReLU`` or ``nn.Identity`` after each layer.
    """

    def __init__(self, arrays: Sequence[Array], activations: Sequence[type[nn.Module]]) -> None:
        self.arrays = list(arrays)
        self.activations = list(activations)
        ends = np.cumsum([array.size for array in arrays]).tolist()
        self.n_parameters: int = ends[-1]
        self._places = [(slice(end - array.size, end), array.shape) for array, end in zip(arrays, ends, strict=True)]
        self._weights, self._biases = self.arrays[::2], self.arrays[1::2]
        self._activate = [_ACTIVATIONS[activation][0] for activation in activations]
        self._slope = [_ACTIVATIONS[activation][1] for activation in activations]

    @classmethod
    def of(cls, *modules: nn.Module) -> Self | None:
        """The network that ``modules`` make, one after the other; None if they hold anything but what is known here."""
        arrays: list[Array] = []
        activations: list[type[nn.Module]] = []
        for module in _leaves(modules):
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            # Exact types: a subclass may compute anything.
            if type(module) is nn.Linear and module.bias is not None and _in_numpy(module.weight, module.bias):
                arrays += [module.weight.detach().numpy(), module.bias.detach().numpy()]
                activations.append(nn.Identity)
            elif type(module) in (nn.Tanh, nn.ReLU) and activations and activations[-1] is nn.Identity:
                activations[-1] = type(module)
            else:
                return None
        return cls(arrays, activations) if activations else None

    def at(self, vector: Array) -> Self:
        """The same network with the parameters of a flat vector, ``(n_parameters,)``, which is not copied."""
        return type(self)(self.split(vector), self.activations)

    def split(self, vector: Array) -> list[Array]:
        """Views of a flat vector in the parameters' shapes."""
        return [vector[place].reshape(shape) for place, shape in self._places]

    def flat(self) -> Array:
        """A copy of the parameters as one vector, ``(n_parameters,)``."""
        return np.concatenate([array.reshape(-1) for array in self.arrays])

    def layers(self, n: int) -> list[Array]:
        """Arrays for what the layers give on ``n`` rows, ``(n, n_out)`` each, with nothing in them."""
        return [np.empty((n, len(bias)), dtype=bias.dtype) for bias in self._biases]

    def forward(self, inputs: Array, into: Sequence[Array] | None = None) -> list[Array]:
        """``inputs``, ``(n, n_in)``, and each layer's activations ``(n, n_out)``; the last are the outputs.

        Args:
            inputs: The batch.
            into: Of :meth:`layers`, takes the result; None: new arrays.
        """
        values = [inputs]
        into = self.layers(len(inputs)) if into is None else into
        for weight, bias, activate, layer in zip(self._weights, self._biases, self._activate, into, strict=True):
            np.dot(values[-1], weight.T, out=layer)
            layer += bias
            activate(layer)
            values.append(layer)
        return values

    def slopes(self, values: Sequence[Array], into: Sequence[Array] | None = None) -> list[Array | None]:
        """Derivative of each layer's activation, ``(n, n_out)``; None where it is 1.

        Args:
            values: Of :meth:`forward`.
            into: Of :meth:`layers`, takes the result; None: new arrays.
        """
        into = self.layers(len(values[0])) if into is None else into
        return [slope(layer, out) for slope, layer, out in zip(self._slope, values[1:], into, strict=True)]

    def backward(
        self, slopes: Sequence[Array | None], cotangent: Array, into: Sequence[Array] | None = None
    ) -> list[Array]:
        """What arrives at the linear part of each layer, ``(n, n_out)`` each.

        Args:
            slopes: Of :meth:`slopes`.
            cotangent: Derivative of a scalar in the outputs, ``(n, n_out)`` of the last layer.
            into: Of :meth:`layers`, takes the result; None: new arrays.
        """
        into = self.layers(len(cotangent)) if into is None else into
        delta = cotangent if slopes[-1] is None else np.multiply(cotangent, slopes[-1], out=into[-1])
        deltas = [delta]
        for weight, slope, out in zip(self._weights[:0:-1], slopes[-2::-1], into[-2::-1], strict=True):
            delta = np.dot(delta, weight, out=out)
            if slope is not None:
                delta *= slope
            deltas.append(delta)
        return deltas[::-1]

    def gradient(
        self, values: Sequence[Array], deltas: Sequence[Array], into: Sequence[Array], rows: slice | None = None
    ) -> None:
        """The scalar's gradient in the parameters, by the rows ``rows`` of the batch.

        Args:
            values: Of :meth:`forward`.
            deltas: Of :meth:`backward`.
            into: Takes the result: arrays in the parameters' shapes.
            rows: Rows that count; None: all.
        """
        if rows is not None:
            values, deltas = [layer[rows] for layer in values], [delta[rows] for delta in deltas]
        ones = np.ones(len(values[0]), dtype=values[0].dtype)
        for index, arrived in enumerate(deltas):
            np.dot(arrived.T, values[index], out=into[2 * index])
            # The sum over rows; as a product it is ten times faster.
            np.dot(ones, arrived, out=into[2 * index + 1])


class Jacobian:
    """Derivatives of a network's outputs in its parameters, on a batch: a linear map and its transpose, never held.

    For each state the outputs' derivatives in what arrives at every layer are kept, as long as the outputs are few:
    then a product needs one matrix product a layer, where a pass through the network needs two.

    Args:
        network: The network.
        values: Of its ``forward``; ``n`` states with ``k`` outputs.
        combinations: ``r`` arrays ``(n, k)``: of as many linear combinations of each state's outputs instead, and
            ``r`` stands for ``k`` below. None: of the outputs themselves.
    """

    MAX_OUTPUTS = 8

    def __init__(
        self, network: DenseNetwork, values: Sequence[Array], combinations: Sequence[Array] | None = None
    ) -> None:
        self.network = network
        self.values = list(values)
        self.slopes = network.slopes(values)
        n_states, n_outputs = values[-1].shape
        self._rows: list[Array] | None = None
        if combinations is None and n_outputs <= self.MAX_OUTPUTS:
            combinations = list(np.eye(n_outputs, dtype=values[-1].dtype)[:, None].repeat(n_states, axis=1))
        if combinations is not None:
            of_outputs = [network.backward(self.slopes, unit) for unit in combinations]
            self._rows = [np.stack(layer) for layer in zip(*of_outputs, strict=True)]  # (k, n, n_out) of each layer
            self._moves, self._deltas = network.layers(n_states), network.layers(n_states)

    def times(self, direction: Array) -> Array:
        """Derivative of the outputs along ``direction``, ``(n_parameters,)``: ``(n, k)``."""
        weights_and_biases = _pairs(self.network.split(direction))
        if self._rows is not None:
            result = np.zeros((len(self.values[0]), len(self._rows[0])), dtype=direction.dtype)
            for inputs, rows, move, (weight, bias) in zip(
                self.values, self._rows, self._moves, weights_and_biases, strict=False
            ):
                np.dot(inputs, weight.T, out=move)
                result += np.einsum("knh,nh->nk", rows, move)
                # Cheaper than to add it to every state's move.
                result += np.dot(rows, bias).T
            return result
        passed: Array | None = None
        for inputs, slope, (weight, bias), (own, _) in zip(
            self.values, self.slopes, weights_and_biases, _pairs(self.network.arrays), strict=False
        ):
            move = np.dot(inputs, weight.T)
            move += bias
            if passed is not None:
                move += np.dot(passed, own.T)
            passed = move if slope is None else move * slope
        assert passed is not None
        return passed

    def transposed_times(self, cotangent: Array, into: Array) -> None:
        """Gradient of ``(cotangent * outputs).sum()`` in the parameters.

        Args:
            cotangent: ``(n, k)``.
            into: Takes the result, ``(n_parameters,)``.
        """
        if self._rows is None:
            deltas = self.network.backward(self.slopes, cotangent)
        else:
            deltas = self._deltas
            for rows, delta in zip(self._rows, deltas, strict=True):
                np.einsum("knh,nk->nh", rows, cotangent, out=delta)
        self.network.gradient(self.values, deltas, self.network.split(into))


def _pairs(arrays: Sequence[Array]) -> list[tuple[Array, Array]]:
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def _leaves(modules: Sequence[nn.Module]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for module in modules:
        found += _leaves(list(module)) if type(module) is nn.Sequential else [module]
    return found


def _in_numpy(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)


def _tanh(layer: Array) -> None:
    np.tanh(layer, out=layer)


def _tanh_slope(outputs: Array, out: Array) -> Array:
    np.square(outputs, out=out)
    np.subtract(1.0, out, out=out)
    return out


def _relu(layer: Array) -> None:
    np.maximum(layer, 0.0, out=layer)


def _relu_slope(outputs: Array, out: Array) -> Array:
    np.greater(outputs, 0.0, out=out)
    return out


_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Array], None], Callable[[Array, Array], Array | None]]] = {
    nn.Tanh: (_tanh, _tanh_slope),
    nn.ReLU: (_relu, _relu_slope),
    nn.Identity: (lambda layer: None, lambda outputs, out: None),
}
"""Of each activation: what puts it in the place of its argument; the derivative, from the activation's output, in the
second argument."""
