"""Hyper-parameters that may change between steps, and their current values."""

from __future__ import annotations

from typing import Any

from fastclip._arguments.arrays import as_bound

__all__ = ["HyperParameter", "current", "positive"]

#: A number, an array of no dimensions or a `Variable` that holds one, or a function without parameters that
#: returns one. It is read at each step.
HyperParameter = Any


def current(value: HyperParameter, name: str) -> float:
    """Return the current value of a hyper-parameter.

    Raises
    ------
    TypeError
        If it is no real number.
    ValueError
        If it is NaN, or an array with dimensions.
    """
    if type(value) is float and value == value:
        return value
    return as_bound(value() if callable(value) else value, name)


def positive(value: HyperParameter, name: str) -> float:
    """Return the current value of a hyper-parameter that must be above 0.

    Raises
    ------
    TypeError
        If it is no real number.
    ValueError
        If it is not above 0.
    """
    number = current(value, name)
    if number <= 0.0:
        raise ValueError(f"{name} must be positive: {value}")
    return number
