"""Clipping by the norms of slices of every length and memory order, compared with float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support.fresh_python import run as run_in_fresh_python

LENGTHS = [1, 2, 3, 8, 31, 32, 33, 63, 64, 65, 300]


def clipped(x: Any, bound: float, axis: int, order: float) -> Any:
    wide = np.abs(x.astype(np.float64))
    with np.errstate(all="ignore"):
        largest = np.max(wide, axis=axis, keepdims=True)
        scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        norms = largest
        if order != np.inf:
            norms = scale * np.sum((wide / scale) ** order, axis=axis, keepdims=True) ** (1 / order)
        factor = np.where(norms > bound, bound / np.where(norms > bound, norms, 1.0), 1.0)
        factor = np.where(np.isfinite(norms), factor, np.nan)
    return x.astype(np.float64) * factor


@pytest.mark.parametrize("order", [2, 1, np.inf, 3, 0.5, 2.2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("length", LENGTHS)
def test_slices_of_every_length(length: int, dtype: Any, order: float) -> None:
    rng = np.random.default_rng(length)
    x = (rng.standard_normal((length, 517)) * rng.choice([1e-3, 1.0, 50.0], 517)).astype(dtype)
    x[length // 2, 5], x[0, 300] = np.nan, np.inf
    x[:, 100] = 0
    bound = 0.7 * length ** (1 / order)
    want = clipped(x, bound, 0, order)
    for array, axis in [(x, 0), (x.T, 1), (np.ascontiguousarray(x.T), 1), (x[:, ::-1], 0)]:
        expected = want if axis == 0 else want.T
        expected = expected[:, ::-1] if array.strides[1] < 0 else expected
        got = fastclip.clip_by_norm(array, bound, axes=[axis], ord=order)
        assert got.dtype == dtype
        assert got.shape == array.shape
        np.testing.assert_allclose(
            got.astype(np.float64),
            expected,
            rtol={2: 1e-3, 4: 3e-7, 8: 1e-13}[np.dtype(dtype).itemsize],
            atol=1e-7 if dtype == np.float16 else 0,
        )
        other = array.copy(order="K")
        assert fastclip.clip_by_norm(other, bound, axes=[axis], ord=order, out=other) is other
        assert other.tobytes() == got.tobytes()


@pytest.mark.parametrize("length", [3, 40, 200])
@pytest.mark.parametrize("magnitude", [1e-200, 1e200, 1e-300, 1e300])
@pytest.mark.parametrize("order", [2, 3, 1])
def test_float64_beyond_the_range_of_its_powers(length: int, magnitude: float, order: float) -> None:
    x = np.random.default_rng(0).standard_normal((length, 50)) * magnitude
    for axis in (0, 1):
        array = x if axis == 0 else np.ascontiguousarray(x.T)
        got = fastclip.clip_by_norm(array, 0.1 * magnitude, axes=[axis], ord=order)
        np.testing.assert_allclose(got, clipped(array, 0.1 * magnitude, axis, order), rtol=1e-13)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9)),
    axes=st.sets(st.integers(0, 2), min_size=1, max_size=3),
    order=st.permutations(range(3)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_layouts_and_axes(
    shape: tuple[int, ...], axes: set[int], order: list[int], threads: int, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    array = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    norms = np.sqrt(np.sum(np.square(x.astype(np.float64)), axis=tuple(axes), keepdims=True))
    with fastclip.threads(threads):
        got = fastclip.clip_by_norm(array, 1.0, axes=sorted(axes))
    np.testing.assert_allclose(got, x / np.maximum(norms, 1.0), rtol=3e-7, atol=1e-30)


def test_bounds_per_slice_and_per_element() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((600, 7)).astype(np.float32)
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for dtype in (np.float32, np.float64, np.float16, np.int64):
        for shape in [(600, 1), (600, 7), (1, 7)]:
            bounds = (rng.random(shape) * 4 - 0.2).astype(dtype)
            copy = bounds.copy()
            limit = np.maximum(bounds.astype(np.float64), 0)
            got = fastclip.clip_by_norm(x, bounds, axes=[1])
            want = x * np.where(norms > limit, limit / norms, 1.0)
            np.testing.assert_allclose(got, want, rtol=3e-7)
            assert np.array_equal(bounds, copy)
        with pytest.raises(ValueError, match="NaN"):
            fastclip.clip_by_norm(x, np.array([[np.nan]] * 600, np.float32), axes=[1])


def test_slices_of_two_pieces_take_little_memory() -> None:
    script = """
        import resource
        import numpy as np, fastclip
        x = np.ones((1_000_000, 2, 8), np.float32)
        fastclip.clip_by_norm(x[:1000], 1.0, axes=[1], out=x[:1000])
        fastclip.clip_by_norm(x[:200_000], 1.0, axes=[1], out=x[:200_000])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fastclip.clip_by_norm(x, 1.0, axes=[1], out=x)
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / x.nbytes)
    """
    assert float(run_in_fresh_python(script).stdout) < 0.1
