"""The order of a norm, and the scalar type it is returned in."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip._arguments.arrays import as_number

__all__ = ["norms_dtype", "parse_order"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def parse_order(ord: float) -> float:
    """Return the order of a norm as a float.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is not above 0, or has dimensions.
    """
    if type(ord) is int and ord == 2:
        return 2.0
    order = as_number(ord, "ord", "a number above 0, or inf")
    if not order > 0:
        raise ValueError(f"ord is {ord!r}; it takes a number above 0, or inf")
    return order


def norms_dtype(largest: float, wide: bool) -> type[np.floating[Any]]:
    """The type that norms are returned in.

    float64 if an input is, else float32; but float64 as well if a finite norm would be infinite in float32.
    """
    return np.float64 if wide or _FLOAT32_MAX < largest < float("inf") else np.float32
