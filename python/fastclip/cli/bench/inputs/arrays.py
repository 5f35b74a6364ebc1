"""Arrays that the benchmark works on: their dtypes and the numbers that fill them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip.cli.errors import CommandError

Array = npt.NDArray[Any]


def array_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of "f32", "f16" or "bf16".

    Raises
    ------
    CommandError
        If `name` is "bf16" and ml_dtypes, which provides bfloat16, is not installed.
    """
    if name != "bf16":
        return np.dtype({"f32": np.float32, "f16": np.float16}[name])
    try:
        import ml_dtypes
    except ImportError:
        raise CommandError("bf16 needs the package ml_dtypes: pip install 'fastclip-grad[cli]'") from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def normal_block(seed: int, elements: int, deviation: float) -> Array:
    """Return float32 normal numbers with mean 0 and the given standard deviation.

    There are as many as `elements`, but at most 1,000,003 and at least 1: repeated by `filled`, a block of
    prime length is random enough for timing, and drawing it takes little time.
    """
    random = np.random.default_rng(seed)
    block = random.standard_normal(min(1_000_003, max(elements, 1)), dtype=np.float32)
    block *= np.float32(deviation)
    return block


def filled(array: Array, block: Array) -> Array:
    """Fill `array` with copies of `block`, one after the other, and return it."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, block.size):
        part = flat[start : start + block.size]
        part[...] = block[: part.size]
    return array


def sum_of_squares(array: Array) -> float:
    """Return the sum of the squares of all elements, computed in float64."""
    flat = array.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, 1 << 20):
        part = flat[start : start + (1 << 20)].astype(np.float64)
        total += float(np.dot(part, part))
    return total
