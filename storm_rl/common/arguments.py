"""Checks of constructor arguments; their messages hold the value and what would be right."""

import math
import numbers
from typing import Any


def check_integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as Python's int (numpy's is taken too), if it is an integer of at least ``minimum``.

    Raises:
        TypeError: It is no number.
        ValueError: It is a fraction, or too small.
    """
    _check_number(name, value, f"an integer of at least {minimum}")
    if not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def check_range(name: str, value: Any, low: float, high: float = math.inf, low_included: bool = True) -> None:
    """Raise unless ``value`` is a number between ``low`` and ``high``, which is included; NaN never is.

    Raises:
        TypeError: It is no number.
        ValueError: It is outside.
    """
    right = f"at least {low:g}" if low_included else f"greater than {low:g}"
    if high < math.inf:
        right = f"a number in {'[' if low_included else '('}{low:g}, {high:g}]"
    _check_number(name, value, right)
    if not (low <= value <= high if low_included else low < value <= high):
        raise ValueError(_message(name, right, value))


def check_learning_rate(name: str, value: Any) -> Any:
    """``value`` if it is a schedule, or as Python's float if it is a number in [0, 1e6].

    Raises:
        TypeError: It is neither.
        ValueError: It is negative, NaN, or so large that a float32 may not hold a step.
    """
    if callable(value):
        return value
    _check_number(name, value, "a number in [0, 1e6] or a schedule")
    if not 0.0 <= value <= 1e6:
        raise ValueError(_message(name, "a number in [0, 1e6] or a schedule", value))
    return float(value)


def _check_number(name: str, value: Any, right: str) -> None:
    # A bool is an integer to Python, and never meant as one here.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, right, value))


def _message(name: str, right: str, value: Any) -> str:
    return f"{name} must be {right}, got {value!r}."
