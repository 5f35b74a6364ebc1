"""The dtypes that fastclip accepts, and marks that run a test for each of them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
REAL_DTYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.float16),
    BFLOAT16,
    np.dtype(np.float32),
    np.dtype(np.float64),
)
COMPLEX_DTYPES: tuple[np.dtype[Any], ...] = (np.dtype(np.complex64), np.dtype(np.complex128))
FLOAT_DTYPES = REAL_DTYPES + COMPLEX_DTYPES
#: Dtypes whose reals have less precision than float64.
NARROW_DTYPES = REAL_DTYPES[:3] + COMPLEX_DTYPES[:1]
INTEGER_DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)


def dtype_id(dtype: object) -> str:
    """Returns the name of a dtype, for the id of a test."""
    return str(dtype)


def real_counterpart(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the dtype of the real and imaginary parts of a complex dtype, and a real dtype unchanged."""
    parts: dict[Any, np.dtype[Any]] = {np.dtype("c8"): np.dtype("f4"), np.dtype("c16"): np.dtype("f8")}
    return parts.get(dtype, dtype)


EVERY_FLOAT = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_id)
EVERY_REAL = pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
EVERY_NARROW = pytest.mark.parametrize("dtype", NARROW_DTYPES, ids=dtype_id)
EVERY_INTEGER = pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=dtype_id)
