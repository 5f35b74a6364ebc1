"""Arrays for property tests, of every dtype, shape, memory layout and range of values.

Hypothesis draws the seed of a random generator rather than each element: this is a hundred times faster, and
a failing example is reported as a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.dtypes import COMPLEX_DTYPES, FLOAT_DTYPES, real_counterpart

Array = npt.NDArray[Any]

#: Settings of every property test: the same examples on every run, and no deadline.
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

#: Layouts in which every element has memory of its own, so that they can be written.
WRITABLE_LAYOUTS = ("C", "F", "permuted", "stepped", "reversed", "offset", "misaligned")
LAYOUTS = (*WRITABLE_LAYOUTS, "broadcast")

#: Distributions of finite values; `finite_values` generates them.
FINITE_KINDS = ("normal", "wide", "tiny", "huge", "constant", "sparse")


def finite_values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: npt.DTypeLike, kind: str = "normal"
) -> Array:
    """Returns finite elements of one ``kind``, whose norm fits float64 for a few thousand of them."""
    dtype = np.dtype(dtype)
    if dtype in COMPLEX_DTYPES:
        part = real_counterpart(dtype)
        values = np.empty(shape, dtype)
        values.real = finite_values(rng, shape, part, kind)
        values.imag = finite_values(rng, shape, part, kind)
        return values
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    largest, smallest = float(info.max), float(info.smallest_subnormal)
    if dtype == np.float64:
        largest = 1e304
    signs = rng.choice([-1.0, 1.0], shape)
    if kind == "normal":
        wide = rng.standard_normal(shape)
    elif kind == "wide":
        wide = signs * np.exp2(rng.uniform(np.log2(smallest), np.log2(largest), shape))
    elif kind == "tiny":
        wide = signs * smallest * rng.integers(0, 200, shape)
    elif kind == "huge":
        wide = signs * largest * rng.uniform(0.5, 1.0, shape)
    elif kind == "constant":
        wide = np.full(shape, float(rng.standard_normal()))
    elif kind == "sparse":
        wide = rng.standard_normal(shape) * (rng.random(shape) < 0.1)
    else:
        raise ValueError(kind)
    return np.asarray(np.clip(wide, -largest, largest).astype(dtype))


def laid_out(values: Array, layout: str) -> Array:
    """Copies values to memory of another layout; ``broadcast`` repeats the first along axis 0.

    Gaps between elements hold NaN (99 for integers), so that results show if a gap was read.
    """
    values = np.asarray(values)
    shape, dtype = values.shape, values.dtype
    view: Array
    gap: Any = np.nan if dtype.kind not in "iu" else 99
    if layout == "C":
        return values.copy(order="C")
    if layout == "F":
        return values.copy(order="F")
    if layout == "permuted":
        if values.ndim < 2:
            return values.copy()
        return np.moveaxis(np.moveaxis(values, 0, -1).copy(order="C"), -1, 0)
    if layout == "stepped":
        every_second: Any = (..., *(slice(None, None, 2) for _ in shape))
        view = np.full(tuple(2 * side for side in shape), gap, dtype)[every_second]
    elif layout == "reversed":
        backwards: Any = (..., *(slice(None, None, -1) for _ in shape))
        view = np.empty(shape, dtype)[backwards]
    elif layout == "offset":
        view = np.full(values.size + 2, gap, dtype)[1:-1].reshape(shape)
    elif layout == "misaligned":
        memory = bytearray(values.nbytes + dtype.itemsize)
        view = np.ndarray(shape, dtype, memory, offset=1)
    elif layout == "broadcast":
        if values.ndim == 0 or values.size == 0:
            return np.broadcast_to(values, shape)
        return np.broadcast_to(values[:1], shape)
    else:
        raise ValueError(layout)
    view[...] = values
    return view


def read_only(array: Array) -> Array:
    """Returns a read-only view of an array."""
    view = array.view()
    view.flags.writeable = False
    return view


def shapes(max_side: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Draws 0-d, empty and small shapes, and vectors longer than several SIMD registers."""
    small = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=max_side)
    vectors = st.integers(0, 200).map(lambda length: (length,))
    return small | vectors


@st.composite
def arrays(
    draw: st.DrawFn,
    dtypes: Sequence[np.dtype[Any]] = FLOAT_DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    kinds: Sequence[str] = FINITE_KINDS,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
) -> Array:
    """Draws an array of finite values."""
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = draw(shapes() if shape is None else shape)
    values = finite_values(rng, sides, dtype, draw(st.sampled_from(kinds)))
    return laid_out(values, draw(st.sampled_from(layouts)))


def array_lists(
    dtypes: Sequence[np.dtype[Any]] = FLOAT_DTYPES,
    layouts: Sequence[str] = LAYOUTS,
    kinds: Sequence[str] = FINITE_KINDS,
    min_size: int = 0,
) -> st.SearchStrategy[list[Array]]:
    """Draws a list of at most four arrays of different dtypes and layouts."""
    return st.lists(arrays(dtypes, layouts, kinds), min_size=min_size, max_size=4)


@st.composite
def nonfinite_arrays(
    draw: st.DrawFn,
    dtypes: Sequence[np.dtype[Any]] = FLOAT_DTYPES,
    layouts: Sequence[str] = WRITABLE_LAYOUTS,
) -> Array:
    """Draws an array with one to three elements replaced by NaN or an infinity."""
    shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=7)
    array = draw(arrays(dtypes, layouts, shape=shape))
    bad: list[Any] = [np.nan, np.inf, -np.inf]
    if array.dtype in COMPLEX_DTYPES:
        bad += [complex(1, np.nan), complex(np.inf, 2), complex(0, -np.inf)]
    places = draw(st.lists(st.integers(0, array.size - 1), min_size=1, max_size=3))
    for place in places:
        array[np.unravel_index(place, array.shape)] = draw(st.sampled_from(bad))
    return array


#: Limits relative to the norm: zero, far below, just below, equal, above, infinite.
limit_factors = st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 0.999999, 1.0, 1.0000001, 3.0, 1e6, np.inf])
