"""Fully connected networks differentiated in closed form, in numpy, without autograd's bookkeeping."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[Any]
"""Floating-point, of the parameters' type."""

_ones = functools.lru_cache(maxsize=16)(np.ones)


class NumpyMLP:
    r"""Linear layers with tanh, ReLU or nothing between them, at one parameter vector, on the CPU.

    On networks of a few thousand parameters autograd's bookkeeping, the start of each of torch's operations, and its
    tanh on the CPU cost more than the arithmetic.

    ``arrays``, which are not copied, are weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer, in the order of
    ``module.parameters()``; ``activations``, ``nn.Tanh``, ``nn.ReLU`` or ``nn.Identity``, follow each layer.

    Methods with an argument ``out`` write there, into arrays of :meth:`empty_layers`; None makes new ones.
    """

    def __init__(self, arrays: Sequence[Array], activations: Sequence[type[nn.Module]]) -> None:
        self.arrays = list(arrays)
        self.activations = list(activations)
        ends = np.cumsum([array.size for array in arrays]).tolist()
        self.n_parameters: int = ends[-1]
        self._places = [(slice(end - array.size, end), array.shape) for array, end in zip(arrays, ends, strict=True)]
        self._weights, self._biases = self.arrays[::2], self.arrays[1::2]
        self._activate = [_ACTIVATIONS[activation][0] for activation in activations]
        self._differentiate = [_ACTIVATIONS[activation][1] for activation in activations]

    def with_parameters(self, vector: Array) -> Self:
        """The same network with the parameters of a flat vector, ``(n_parameters,)``, which is not copied."""
        return type(self)(self.split(vector), self.activations)

    def split(self, vector: Array) -> list[Array]:
        """Views of a flat vector in the parameters' shapes."""
        return [vector[place].reshape(shape) for place, shape in self._places]

    def flat(self) -> Array:
        """A copy of the parameters as one vector, ``(n_parameters,)``."""
        return np.concatenate([array.reshape(-1) for array in self.arrays])

    def empty_layers(self, n: int) -> list[Array]:
        """Arrays for what the layers give on ``n`` rows, ``(n, n_out)`` each, with nothing in them."""
        return [np.empty((n, len(bias)), dtype=bias.dtype) for bias in self._biases]

    def forward(self, inputs: Array, out: Sequence[Array] | None = None) -> list[Array]:
        """``inputs``, ``(n, n_in)``, and each layer's activations ``(n, n_out)``; the last are the outputs."""
        values = [inputs]
        out = self.empty_layers(len(inputs)) if out is None else out
        for weight, bias, activate, layer in zip(self._weights, self._biases, self._activate, out, strict=True):
            np.dot(values[-1], weight.T, out=layer)
            layer += bias
            activate(layer)
            values.append(layer)
        return values

    def activation_derivatives(self, values: Sequence[Array], out: Sequence[Array] | None = None) -> list[Array | None]:
        """Derivative of each layer's activation, ``(n, n_out)``, from ``values`` of :meth:`forward`; None for 1."""
        out = self.empty_layers(len(values[0])) if out is None else out
        return [derivative(*pair) for derivative, *pair in zip(self._differentiate, values[1:], out, strict=True)]

    def backward(
        self, derivatives: Sequence[Array | None], cotangent: Array, out: Sequence[Array] | None = None
    ) -> list[Array]:
        """What arrives at each layer's linear part, ``(n, n_out)`` each, of a scalar's derivative in the outputs."""
        out = self.empty_layers(len(cotangent)) if out is None else out
        delta = cotangent if derivatives[-1] is None else np.multiply(cotangent, derivatives[-1], out=out[-1])
        deltas = [delta]
        for weight, derivative, layer in zip(self._weights[:0:-1], derivatives[-2::-1], out[-2::-1], strict=True):
            delta = np.dot(delta, weight, out=layer)
            if derivative is not None:
                delta *= derivative
            deltas.append(delta)
        return deltas[::-1]

    def gradient(
        self, values: Sequence[Array], deltas: Sequence[Array], out: Sequence[Array], rows: slice = slice(None)
    ) -> None:
        """Write the scalar's gradient in the parameters, by ``rows`` of the batch, to ``out``, in their shapes.

        ``values`` are of :meth:`forward`, ``deltas`` of :meth:`backward`.
        """
        values, deltas = [layer[rows] for layer in values], [delta[rows] for delta in deltas]
        ones = _ones(len(values[0]), values[0].dtype)
        for index, delta in enumerate(deltas):
            np.dot(delta.T, values[index], out=out[2 * index])
            # The sum over rows; as a product it is ten times faster.
            np.dot(ones, delta, out=out[2 * index + 1])


class Jacobian:
    """Derivatives of a network's outputs in its parameters, on a batch: a linear map and its transpose, never held.

    For each state the outputs' derivatives in what arrives at every layer are kept, so that a product needs one matrix
    product a layer, where a pass through the network needs two.
    """

    def __init__(self, network: NumpyMLP, values: Sequence[Array]) -> None:
        self.network = network
        self.values = list(values)
        n_states, n_outputs = values[-1].shape
        units = np.eye(n_outputs, dtype=values[-1].dtype)[:, None].repeat(n_states, axis=1)
        derivatives = network.activation_derivatives(values)
        by_output = [network.backward(derivatives, unit) for unit in units]
        self._rows = [np.stack(layer) for layer in zip(*by_output, strict=True)]  # (k, n, n_out) of each layer
        self._moves, self._deltas = network.empty_layers(n_states), network.empty_layers(n_states)

    def jvp(self, tangent: Array) -> Array:
        """Derivative of the outputs along ``tangent``, ``(n_parameters,)``: ``(n, k)``."""
        arrays = self.network.split(tangent)
        result = np.zeros((len(self.values[0]), len(self._rows[0])), dtype=tangent.dtype)
        layers = zip(self.values[:-1], self._rows, self._moves, arrays[::2], arrays[1::2], strict=True)
        for inputs, rows, move, weight, bias in layers:
            np.dot(inputs, weight.T, out=move)
            result += np.einsum("knh,nh->nk", rows, move)
            # Cheaper than to add it to every state's move.
            result += np.dot(rows, bias).T
        return result

    def vjp(self, cotangent: Array, out: Array) -> None:
        """Write the gradient of ``(cotangent * outputs).sum()``, ``cotangent`` ``(n, k)``, to ``out``, flat."""
        for rows, delta in zip(self._rows, self._deltas, strict=True):
            np.einsum("knh,nk->nh", rows, cotangent, out=delta)
        self.network.gradient(self.values, self._deltas, self.network.split(out))


def _tanh_derivative(outputs: Array, out: Array) -> Array:
    return np.subtract(1.0, np.square(outputs, out=out), out=out)


_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Array], object], Callable[[Array, Array], Array | None]]] = {
    nn.Tanh: (lambda layer: np.tanh(layer, out=layer), _tanh_derivative),
    nn.ReLU: (
        lambda layer: np.maximum(layer, 0.0, out=layer),
        lambda outputs, out: np.greater(outputs, 0.0, out=out),
    ),
    nn.Identity: (lambda layer: None, lambda outputs, out: None),
}
"""What puts each activation in its argument's place, and its derivative, from its output, in the second argument."""
