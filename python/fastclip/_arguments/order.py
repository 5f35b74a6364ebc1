"""Order of a norm, and the dtype that norms are returned in."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip._arguments.arrays import as_number

__all__ = ["norms_dtype", "parse_order"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def parse_order(ord: float) -> float:
    """Returns the order of a norm as a float.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not above 0, or is an array with dimensions.
    """
    if type(ord) is int and ord == 2:
        return 2.0
    order = as_number(ord, "ord", "a number above 0, or inf")
    if not order > 0:
        raise ValueError(f"ord is {ord!r}; it takes a number above 0, or inf")
    return order


def norms_dtype(largest: float, is_float64: bool) -> type[np.floating[Any]]:
    """Returns the dtype of norms: float64 or float32.

    Parameters
    ----------
    largest : float
        The largest finite norm. If float32 cannot hold it, the dtype is float64.
    is_float64 : bool
        Whether an input is float64 or complex128, which makes the dtype float64.
    """
    return np.float64 if is_float64 or _FLOAT32_MAX < largest < float("inf") else np.float32
