"""The norm of gradients that was computed before a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastclip._arguments.arrays import as_number
from fastclip._norm_accumulator import NormAccumulator
from fastclip.train._gradient_options import CLIP

__all__ = ["known_norm"]


def known_norm(norm: Any, settings: Mapping[str, Any]) -> tuple[float, int]:
    """Return the argument `norm` of a step as a mantissa and an exponent of two.

    Raises
    ------
    TypeError
        If it is neither a number nor a `NormAccumulator`.
    ValueError
        If it is negative, of another order than 2, or of no use, because each gradient is clipped by its
        own norm.
    """
    option, _ = settings[CLIP] or (None, None)
    if option == "clipnorm":
        raise ValueError("norm is that of all gradients together, and clipnorm clips each by its own norm")
    if isinstance(norm, NormAccumulator):
        if norm.ord != 2.0:
            raise ValueError(f"norm is a NormAccumulator of order {norm.ord}; it takes one of order 2")
        mantissa, exponent, _ = norm._combined()
        return mantissa, exponent
    number = as_number(norm, "norm")
    if number < 0:
        raise ValueError(f"norm is {number}; a norm is 0 or more")
    return number, 0
