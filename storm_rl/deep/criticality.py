r"""Weights at which signals neither explode nor die with depth, and how they do in a network that is there.

With weights of variance :math:`C_W / n` (``n`` inputs) and biases of variance :math:`C_b`, the mean square :math:`K` of
a wide network's preactivations :math:`z_{l+1} = b + W \sigma(z_l)`, and small differences of its inputs, follow

.. math::
    K_{l+1} = C_b + C_W \langle \sigma^2 \rangle_{K_l}, \quad
    \chi_\parallel = \frac{C_W}{2 K^2} \langle \sigma(z)^2 (z^2 - K) \rangle_K, \quad
    \chi_\perp = C_W \langle \sigma'(z)^2 \rangle_K,

with Gaussian :math:`z` of variance :math:`K`. Criticality is :math:`\chi_\parallel = \chi_\perp = 1` at the fixed
point: Roberts, Yaida, Hanin, "The Principles of Deep Learning Theory", Cambridge 2022 (arXiv 2106.10165), chapter 5.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from storm_rl.common.checks import check_integer

CRITICAL: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (1.0, 0.0),  # K* = 0: preactivations shrink, but as slowly as 1 / depth.
    nn.ReLU: (2.0, 0.0),  # Any K is a fixed point.
    nn.GELU: (1.98305826, 0.17292239),  # K* = (3 + sqrt(17)) / 2.
}
""":math:`(C_W, C_b)` by activation: sections 5.2 to 5.4."""


@torch.no_grad()
def critical_(network: nn.Module, activation_fn: type[nn.Module], share: float = 1.0) -> nn.Module:
    """Draw the parameters of all linear and convolutional layers anew, at criticality; returns ``network``.

    Args:
        network: Its layers are linear, or convolutions, whose inputs are those of a patch.
        activation_fn: ``nn.Tanh``, ``nn.ReLU`` or ``nn.GELU``.
        share: Of the variances. 1 / depth for residual branches, whose sum is then bounded at any depth (Hayou et al.,
            "Stable ResNet", AISTATS 2021).
    """
    if activation_fn not in CRITICAL:
        known = ", ".join(sorted(kind.__name__ for kind in CRITICAL))
        raise ValueError(f"critical variances are known for {known}, got activation_fn={activation_fn!r}.")
    weight_variance, bias_variance = CRITICAL[activation_fn]
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            n_inputs = layer.weight[0].numel()
            layer.weight.normal_(0.0, (share * weight_variance / n_inputs) ** 0.5)
            if layer.bias is not None:
                layer.bias.normal_(0.0, (share * bias_variance) ** 0.5)
    return network


class Layer(NamedTuple):
    r"""What arrives at a layer: the mean square of its preactivations ``z_l``, over units and inputs; and its Jacobian.

    :math:`\frac{1}{n_l} \lVert \partial z_l / \partial z_1 \rVert_F^2`, mean over inputs; 1 of the first layer.
    """

    variance: float
    jacobian: float


class Propagation(list[Layer]):
    """The layers, the first one first; ``print`` makes a table of them."""

    def __str__(self) -> str:
        rows = [f"{number:5d}  {layer.variance:12.4g}  {layer.jacobian:14.4g}" for number, layer in enumerate(self, 1)]
        return "\n".join(["layer      variance  jacobian norm", *rows])


def propagation(network: nn.Module, inputs: Tensor, n_probes: int = 16) -> Propagation:
    """Variances and partial-Jacobian norms of each layer of a network.

    The norms are those of Doshi, He, Gromov ("Critical initialization of wide and deep neural networks through partial
    Jacobians", NeurIPS 2023), estimated by random projections of ``z_l``.

    Args:
        network: A :class:`DeepFeatures`: what flows from block to block. Or any other, as
            ``policy.mlp_extractor.policy_net``: what its linear and convolutional layers give.
        inputs: What the network takes, ``(n, ...)``.
        n_probes: Number of projections.
    """
    check_integer("n_probes", n_probes, 1)
    with torch.enable_grad(), _outputs(network) as found:
        layers: Any = getattr(network, "layers", None)
        values = layers(inputs) if layers else (network(inputs), found)[1]
        if not values:
            raise ValueError(f"{type(network).__name__} has no linear and no convolutional layer.")
        result = Propagation()
        for value in values:
            norm = sum(_projected(value, values[0]) for _ in range(n_probes)) / n_probes
            result.append(Layer(float(value.detach().square().mean()), norm))
    return result


def _projected(value: Tensor, first: Tensor) -> float:
    # Of E |J^T u|^2 = |J|_F^2 / n for u of variance 1 / n.
    probe = torch.randn_like(value) / value[0].numel() ** 0.5
    (gradient,) = torch.autograd.grad(value, first, probe, retain_graph=True)
    return float(gradient.square().sum()) / len(value)


@contextmanager
def _outputs(network: nn.Module) -> Iterator[Sequence[Tensor]]:
    found: list[Tensor] = []
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_hook(lambda _, __, output: found.append(output)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
