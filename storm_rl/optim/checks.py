"""Bad input, said clearly: options, losses and gradients."""

import math
from typing import Any

import torch
from torch import Tensor


def nonnegative(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number of the wanted sign, at most ``most``."""
    try:
        number = float(value + 0)  # A text of digits is no number.
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0.0 or (positive and number == 0.0) or number > most:
        right = f"{'positive' if positive else '0 or more'}{f', at most {most:g}' if most < math.inf else ''}"
        raise ValueError(f"{name} must be finite and {right}, got {value!r}")


def checked_loss(loss: object, optimizer: str) -> Tensor | float:
    """The closure's loss without its graph; raises what is wrong with it."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"{optimizer}: the closure returned a loss of shape {tuple(loss.shape)}; "
                "reduce it to one number, for example with loss.mean()"
            )
        loss = loss.detach()
    elif isinstance(loss, bool) or not isinstance(loss, (int, float)):
        raise TypeError(
            f"{optimizer}: the closure returned {type(loss).__name__} {loss!r}; it must compute the "
            "loss, call loss.backward() and return the loss as a tensor or float"
        )
    if not math.isfinite(float(loss)):
        raise ValueError(
            f"{optimizer}: the loss is {float(loss)}; parameters and state were left as they were. "
            "Look for a division by zero or a logarithm of zero in the closure"
        )
    return loss


def checked_gradient(gradient: Tensor, optimizer: str) -> Tensor:
    """The gradient; raises if it is sparse or complex."""
    if gradient.layout != torch.strided:
        raise TypeError(
            f"{optimizer}: a gradient of layout {gradient.layout} is not supported; it must be dense "
            "(nn.Embedding(..., sparse=False))"
        )
    if gradient.is_complex():
        raise TypeError(
            f"{optimizer}: a gradient of dtype {gradient.dtype} is not supported; it must be real "
            "(optimise torch.view_as_real of a complex parameter)"
        )
    return gradient
