r"""Momentum residual networks, whose activations are computed again from the last ones, and not kept.

.. math::
    v \leftarrow \gamma v + (1 - \gamma) f_l(x), \qquad x \leftarrow x + v, \qquad v = 0 \text{ at first,}

which is undone by :math:`x \leftarrow x - v`, :math:`v \leftarrow (v - (1 - \gamma) f_l(x)) / \gamma`: Sander, Ablin,
Blondel, Peyré, "Momentum Residual Neural Networks", ICML 2021 (arXiv 2102.07870). :math:`\gamma v` loses
:math:`\log_2(1 / \gamma)` bits a layer, of which :math:`1 / \gamma` would make errors. As in the paper they are kept,
by the arithmetic of Maclaurin, Duvenaud, Adams ("Gradient-based hyperparameter optimization through reversible
learning", ICML 2015): :math:`v` is an integer, :math:`\gamma = n / d` a fraction; remainders of the division by ``d``
are pushed onto one more integer, which gives the digits that the product with ``n`` has room for. Here :math:`x` is an
integer as well, so that every step is undone to the last bit. Kept are three integers for each number of ``x``, and its
first value, whatever the depth; the price is one more evaluation of each :math:`f_l`.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

# Of a number's integer: a resolution of 6e-14, and room for the sum of two numbers within the limit.
SCALE = 2.0**44
LIMIT = 2.0**17


def momentum_states(x: Tensor, blocks: Sequence[nn.Module], gamma: float) -> list[Tensor]:
    """``x`` at first and after each block, by plain backpropagation, which keeps all activations."""
    states, velocity = [x], torch.zeros_like(x)
    for block in blocks:
        velocity = gamma * velocity + (1.0 - gamma) * block(states[-1])
        states.append(states[-1] + velocity)
    return states


def momentum_residual(x: Tensor, blocks: Sequence[nn.Module], gamma: float) -> Tensor:
    """The last of :func:`momentum_states`, with the same gradients, in memory that does not grow with depth.

    Where gradients are differentiated once more (``create_graph=True``, for Fisher products) all activations are kept.
    Blocks give their argument's shape, and the same when asked again: no dropout, no batch normalisation. ``gamma`` is
    in (0, 1). Raises ``ValueError`` for more than :func:`largest_depth` blocks, and numbers NaN or above 2^17 in size.
    """
    fraction = _fraction(gamma)
    if len(blocks) > largest_depth(gamma):
        raise ValueError(f"gamma={gamma:g} allows at most {largest_depth(gamma)} blocks, got {len(blocks)}.")
    if not torch.is_grad_enabled():
        return momentum_states(x, blocks, gamma)[-1]
    parameters = {id(each): each for block in blocks for each in block.parameters() if each.requires_grad}
    result: Tensor = _Momentum.apply(x, blocks, fraction, *parameters.values())  # type: ignore[no-untyped-call]
    return result


def largest_depth(gamma: float) -> int:
    """The number of blocks whose lost bits fit into 64-bit integers."""
    fraction, buffer, depth = _fraction(gamma), 0, 0
    while (buffer := buffer * fraction.denominator + fraction.denominator - 1) < 2**63:
        buffer, depth = buffer // fraction.numerator, depth + 1
    return depth


def _fraction(gamma: float) -> Fraction:
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must be in (0, 1), got {gamma!r}.")
    fraction = Fraction(gamma).limit_denominator(1000)
    if not 0 < fraction < 1 or abs(float(fraction) - gamma) > 1e-9:
        raise ValueError(f"gamma must be a fraction with a denominator of at most 1000, as 0.9, got {gamma!r}.")
    return fraction


def _multiplied(value: Tensor, buffer: Tensor, numerator: int, denominator: int) -> tuple[Tensor, Tensor]:
    """``value * numerator / denominator`` and the buffer; undone by the same with the two exchanged."""
    quotient = value.div(denominator, rounding_mode="floor")
    pushed = buffer.mul(denominator).add_(value).sub_(quotient, alpha=denominator)
    buffer = pushed.div(numerator, rounding_mode="floor")
    return quotient.mul_(numerator).add_(pushed).sub_(buffer, alpha=numerator), buffer


def _integers(values: Tensor) -> Tensor:
    return values.double().mul(SCALE).round_().long()


def _checked(values: Tensor, what: str) -> Tensor:
    if not bool((values.abs() <= LIMIT).all()):
        raise ValueError(f"{what} of a momentum residual network must be finite, and at most {LIMIT:g} in size.")
    return values


class _Momentum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[nn.Module], gamma: Fraction, *parameters: Tensor) -> Tensor:
        position = _integers(_checked(x, "inputs"))
        velocity, buffer = torch.zeros_like(position), torch.zeros_like(position)
        for block in blocks:
            change = (1.0 - float(gamma)) * _checked(block(_floats(position, x)), "values")
            velocity, buffer = _multiplied(velocity, buffer, gamma.numerator, gamma.denominator)
            velocity += _integers(change)
            position += velocity
            _checked(_floats(position, x), "values")
        ctx.save_for_backward(x, position, velocity, buffer, *parameters)
        ctx.blocks, ctx.gamma = blocks, gamma
        return _floats(position, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, position, velocity, buffer, *parameters = ctx.saved_tensors
        gamma = float(ctx.gamma)
        if torch.is_grad_enabled():
            wanted = [each for each in (x, *parameters) if each.requires_grad]
            end = momentum_states(x, ctx.blocks, gamma)[-1]
            found = torch.autograd.grad(end, wanted, gradient, create_graph=True)
            return (found[0], None, None, *found[1:]) if x.requires_grad else (None, None, None, *found)
        sums = {id(each): torch.zeros_like(each) for each in parameters}
        by_velocity = torch.zeros_like(gradient)
        for block in reversed(ctx.blocks):
            position = position - velocity
            with torch.enable_grad():
                before = _floats(position, x).requires_grad_()
                value = block(before)
            own = [each for each in block.parameters() if each.requires_grad]
            by_velocity = by_velocity + gradient
            by_value = torch.autograd.grad(value, [before, *own], (1.0 - gamma) * by_velocity)
            for each, part in zip(own, by_value[1:], strict=True):
                sums[id(each)] += part
            gradient, by_velocity = gradient + by_value[0], gamma * by_velocity
            velocity = velocity - _integers((1.0 - gamma) * value.detach())
            velocity, buffer = _multiplied(velocity, buffer, ctx.gamma.denominator, ctx.gamma.numerator)
        return gradient, None, None, *(sums[id(each)] for each in parameters)


def _floats(position: Tensor, like: Tensor) -> Tensor:
    return position.double().div_(SCALE).to(like.dtype)
