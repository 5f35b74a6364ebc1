"""Hyper-parameters that may change between steps, and their current values."""

from __future__ import annotations

from typing import Any

from fastclip._arguments.arrays import as_bound

__all__ = ["HyperParameter", "current", "positive"]

#: A number, a 0-d array, a 0-d `Variable`, or a function without parameters that returns one of these. It is
#: read in each step.
HyperParameter = Any


def current(value: HyperParameter, name: str) -> float:
    """Return the current value of a hyper-parameter.

    Raises
    ------
    TypeError
        If the value is not a real number.
    ValueError
        If it is NaN, or an array that is not 0-d.
    """
    if type(value) is float and value == value:
        return value
    return as_bound(value() if callable(value) else value, name)


def positive(value: HyperParameter, name: str) -> float:
    """Return the current value of a hyper-parameter that must be positive.

    Raises
    ------
    TypeError
        If the value is not a real number.
    ValueError
        If it is NaN, 0 or negative, or an array that is not 0-d.
    """
    number = current(value, name)
    if number <= 0.0:
        raise ValueError(f"{name} must be positive: {value}")
    return number
