"""clip_by_value: ``max(min(t, high), low)``."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support import oracle
from support.dtypes import BFLOAT16, EVERY_INTEGER, EVERY_REAL, REAL_DTYPES, dtype_id
from support.strategies import LAYOUTS, PROPERTY, arrays, finite_values, laid_out, nonfinite_arrays


def assert_equal(got: Any, expected: Any) -> None:
    """Checks dtype, shape and values; NaN equals NaN, and 0 equals -0."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if got.dtype.kind in "iu":
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_array_equal(oracle.float64_parts(got), oracle.float64_parts(expected))


def test_signature() -> None:
    parameters = inspect.signature(fastclip.clip_by_value).parameters
    assert list(parameters) == ["t", "clip_value_min", "clip_value_max", "name", "out"]
    assert parameters["name"].default is None
    assert parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY


def test_documented_example_of_tensorflow() -> None:
    t = np.array([[-10.0, -1.0, 0.0], [0.0, 2.0, 10.0]], np.float32)
    got = fastclip.clip_by_value(t, clip_value_min=-1, clip_value_max=1, name="clipped")
    assert_equal(got, np.array([[-1, -1, 0], [0, 1, 1]], np.float32))


@PROPERTY
@given(array=arrays(REAL_DTYPES), bounds=st.tuples(*[st.floats(-3, 3)] * 2))
def test_scalar_bounds_on_any_array(array: Any, bounds: tuple[float, float]) -> None:
    before = array.copy()
    got = fastclip.clip_by_value(array, *bounds)
    assert_equal(got, oracle.clip_by_value(array, *bounds))
    assert oracle.same_bits(array, before)


@PROPERTY
@given(array=nonfinite_arrays(REAL_DTYPES), bounds=st.tuples(*[st.floats(-3, 3)] * 2))
def test_nan_is_kept_and_infinities_are_clipped(array: Any, bounds: tuple[float, float]) -> None:
    got = fastclip.clip_by_value(array, *bounds)
    assert_equal(got, oracle.clip_by_value(array, *bounds))
    nan = np.isnan(oracle.float64_parts(array))
    np.testing.assert_array_equal(np.isnan(oracle.float64_parts(got)), nan)


@EVERY_INTEGER
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_integer_width_and_layout(dtype: np.dtype[Any], layout: str) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    values = rng.integers(info.min, info.max, (5, 7, 3), dtype, endpoint=True)
    values[0, :2, 0] = info.min, info.max
    array = laid_out(values, layout)
    low, high = int(info.min) // 3 + 5, int(info.max) // 2
    got = fastclip.clip_by_value(array, low, high)
    assert_equal(got, np.clip(array, low, high))
    assert bool((np.asarray(got) == high).any())


@EVERY_INTEGER
def test_integer_extremes_as_bounds_change_nothing(dtype: np.dtype[Any]) -> None:
    info = np.iinfo(dtype)
    array = np.array([info.min, info.min + 1, 0, info.max - 1, info.max], dtype)
    assert_equal(fastclip.clip_by_value(array, int(info.min), int(info.max)), array)
    assert_equal(fastclip.clip_by_value(array, int(info.max), int(info.max)), np.full(5, info.max, dtype))


@EVERY_INTEGER
@pytest.mark.parametrize("side", ["low", "high"])
def test_integer_bound_beyond_the_dtype_overflows_as_in_numpy(dtype: np.dtype[Any], side: str) -> None:
    info = np.iinfo(dtype)
    array = np.zeros(3, dtype)
    bounds = (int(info.min) - 1, 0) if side == "low" else (0, int(info.max) + 1)
    with pytest.raises(OverflowError):
        fastclip.clip_by_value(array, *bounds)


@EVERY_INTEGER
@pytest.mark.parametrize(
    "bound", [1.0, np.float32(2), np.array([1.5, 2.0, 3.0]), np.float64(np.nan)], ids=repr
)
def test_float_bound_for_integers_is_a_type_error(dtype: np.dtype[Any], bound: Any) -> None:
    array = np.ones(3, dtype)
    with pytest.raises(TypeError, match="clip_value_max"):
        fastclip.clip_by_value(array, 0, bound)
    with pytest.raises(TypeError, match="clip_value_min"):
        fastclip.clip_by_value(array, bound, 5)


@pytest.mark.parametrize("bound", [1j, np.complex64(1), "1", None, [1.0, "x"]], ids=repr)
def test_bound_of_a_wrong_kind_is_a_type_error(bound: Any) -> None:
    array = np.ones(2, np.float32)
    with pytest.raises(TypeError, match="clip_value_min"):
        fastclip.clip_by_value(array, bound, 1.0)
    with pytest.raises(TypeError, match="clip_value_max"):
        fastclip.clip_by_value(array, 0.0, bound)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "bool"])
def test_complex_and_bool_are_type_errors(dtype: str) -> None:
    with pytest.raises(TypeError, match=dtype):
        fastclip.clip_by_value(np.ones((2, 3), dtype), 0, 1)


@EVERY_REAL
@pytest.mark.parametrize(
    "shape", [(), (1,), (4,), (3, 1), (1, 4), (3, 4), (2, 3, 4), (2, 1, 1), (1, 1, 1)], ids=str
)
def test_bounds_broadcast(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    array = finite_values(rng, (2, 3, 4), dtype)
    low = finite_values(rng, shape, dtype) - np.ones((), dtype)
    high = finite_values(rng, shape, dtype) + np.ones((), dtype)
    assert_equal(fastclip.clip_by_value(array, low, high), oracle.clip_by_value(array, low, high))
    assert_equal(fastclip.clip_by_value(array, -0.5, high), oracle.clip_by_value(array, -0.5, high))
    assert_equal(fastclip.clip_by_value(array, low, 0.5), oracle.clip_by_value(array, low, 0.5))


@PROPERTY
@given(
    array=arrays(REAL_DTYPES, shape=st.just((4, 5))),
    low=arrays(REAL_DTYPES, kinds=["normal"], shape=st.sampled_from([(4, 5), (5,), (4, 1), ()])),
    high=arrays(REAL_DTYPES, kinds=["normal"], shape=st.sampled_from([(4, 5), (5,), (4, 1), ()])),
)
def test_bounds_of_any_layout_are_cast_to_the_dtype(array: Any, low: Any, high: Any) -> None:
    got = fastclip.clip_by_value(array, low, high)
    assert_equal(got, oracle.clip_by_value(array, low, high))


@pytest.mark.parametrize(
    ("shape", "bound_shape"),
    [((), (1,)), ((3,), (1, 3)), ((1, 3), (2, 3)), ((2, 3), (1, 2, 3)), ((0, 3), (1, 1, 3))],
    ids=str,
)
def test_bounds_that_would_enlarge_the_result_are_refused(
    shape: tuple[int, ...], bound_shape: tuple[int, ...]
) -> None:
    array, bound = np.ones(shape, np.float32), np.zeros(bound_shape, np.float32)
    with pytest.raises(ValueError, match="clip_value_min"):
        fastclip.clip_by_value(array, bound, 1.0)
    with pytest.raises(ValueError, match="clip_value_max"):
        fastclip.clip_by_value(array, 0.0, bound)


def test_bounds_that_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2,\)"):
        fastclip.clip_by_value(np.ones((4, 3)), np.zeros(2), 1.0)


@EVERY_REAL
def test_low_above_high_gives_low(dtype: np.dtype[Any]) -> None:
    array = np.array([-5, 0, 1, 5], dtype)
    assert_equal(fastclip.clip_by_value(array, 2.0, -2.0), np.full(4, 2, dtype))


def test_low_above_high_gives_low_for_integers() -> None:
    array = np.array([-5, 0, 5], np.int16)
    assert_equal(fastclip.clip_by_value(array, 3, -3), np.full(3, 3, np.int16))


@EVERY_REAL
def test_nan_bound_gives_nan(dtype: np.dtype[Any]) -> None:
    array = np.arange(20).astype(dtype)
    assert oracle.all_nan(fastclip.clip_by_value(array, np.nan, 1.0))
    assert oracle.all_nan(fastclip.clip_by_value(array, 0.0, np.nan))
    row = np.array([0.0, np.nan, 0.0, 0.0])
    got = fastclip.clip_by_value(array.reshape(5, 4), row, 7.0)
    assert_equal(got, oracle.clip_by_value(array.reshape(5, 4), row, 7.0))
    assert oracle.all_nan(np.asarray(got)[:, 1])


@EVERY_REAL
def test_infinite_bounds_change_no_bit(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(3)
    array = finite_values(rng, (1003,), dtype, "wide")
    array[::7] = -0.0
    assert oracle.same_bits(fastclip.clip_by_value(array, -np.inf, np.inf), array)


@pytest.mark.parametrize("dtype", REAL_DTYPES[:3], ids=dtype_id)
def test_bounds_beyond_the_range_act_as_infinite(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(4), (50,), dtype, "huge")
    assert oracle.same_bits(fastclip.clip_by_value(array, -1e300, 1e300), array)
    assert oracle.same_bits(fastclip.clip_by_value(array, np.float64(-1e300), np.full(50, 1e300)), array)


@EVERY_REAL
def test_elements_within_the_bounds_keep_their_bits(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(5), (999,), dtype, "normal")
    got = np.asarray(fastclip.clip_by_value(array, -0.5, 0.5))
    inside = np.abs(oracle.float64_parts(array)) < 0.5
    assert 0 < inside.sum() < 999
    assert oracle.same_bits(got[inside], array[inside])


@EVERY_REAL
@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 1025])
def test_every_length_around_the_vector_width(dtype: np.dtype[Any], length: int) -> None:
    array = finite_values(np.random.default_rng(length), (length,), dtype)
    got = fastclip.clip_by_value(array, -0.25, 0.75)
    assert_equal(got, oracle.clip_by_value(array, -0.25, 0.75))


def test_integer_bounds_for_floats() -> None:
    array = np.array([-3.5, 0.25, 9.0])
    assert_equal(fastclip.clip_by_value(array, -1, 2), np.array([-1, 0.25, 2]))
    assert_equal(fastclip.clip_by_value(array, np.int8(-1), [2, 2, 2]), np.array([-1, 0.25, 2]))


def test_bfloat16_bound_is_rounded_to_nearest() -> None:
    array = np.array([5.0], BFLOAT16)
    assert float(np.asarray(fastclip.clip_by_value(array, 0.0, 0.1))[0]) == 0.10009765625


def test_large_array_in_parallel() -> None:
    array = np.random.default_rng(6).standard_normal(3_000_001).astype(np.float32)
    assert_equal(fastclip.clip_by_value(array, -1.0, 0.5), np.clip(array, -1.0, 0.5))


@pytest.mark.parametrize("wrong", ["abc", None, object(), {"a": 1}], ids=repr)
def test_argument_that_is_no_array_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"\bt\b"):
        fastclip.clip_by_value(wrong, 0.0, 1.0)
