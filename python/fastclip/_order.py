"""The order of a norm, and the scalar type it is returned in."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["norm_scalar", "norms_dtype", "parse_order"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def parse_order(ord: float) -> float:
    """Return the order of a norm as a float.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is not above 0.
    """
    if ord == 2 and type(ord) is int:
        return 2.0
    if isinstance(ord, (bool, str)):
        raise TypeError(f"ord is {ord!r}; it takes a number above 0, or inf")
    try:
        order = float(ord)
    except OverflowError:
        raise ValueError(
            "ord is a whole number beyond float64; np.inf is the largest absolute value"
        ) from None
    except (TypeError, ValueError):
        raise TypeError(f"ord is {ord!r}; it takes a number above 0, or inf") from None
    if not order > 0:
        raise ValueError(f"ord is {ord!r}; it takes a number above 0, or inf")
    return order


def norms_dtype(largest: float, wide: bool) -> type[np.floating[Any]]:
    """The type that norms are returned in.

    float64 if an input is, else float32; but float64 as well if a finite norm would be infinite in float32.
    """
    return np.float64 if wide or _FLOAT32_MAX < largest < float("inf") else np.float32


def norm_scalar(norm: float, wide: bool) -> np.floating[Any]:
    """A norm as a NumPy scalar of the type it is returned in."""
    if not wide and norm <= _FLOAT32_MAX:
        return np.float32(norm)
    return norms_dtype(norm, wide)(norm)
