"""What a hyper-parameter may be, and what it is now."""

from __future__ import annotations

from typing import Any

from fastclip._arguments.arrays import as_bound

__all__ = ["HyperParameter", "current"]

#: A number, an array of no dimensions or a `Variable` that holds one, or a function without parameters that
#: returns one: what may change is read at each step.
HyperParameter = Any


def current(value: HyperParameter, name: str) -> float:
    """Return what a hyper-parameter is now.

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
