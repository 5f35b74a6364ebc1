"""global_norm, tensor_norms, and the per-array norms of clip_by_global_norm."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastclip
from support import oracle
from support.dtypes import BFLOAT16, EVERY_FLOAT, NARROW_DTYPES, dtype_id
from support.strategies import LAYOUTS, PROPERTY, array_lists, finite_values, laid_out

ORDERS = (0.5, 1, 1.5, 2, 2.0, 3, 7.25, 20, math.inf)


def assert_tensor_norms(got: Any, arrays: list[Any], ord: float = 2) -> None:
    """Checks that ``got`` is a vector of the arrays' norms, float64 if one of the arrays requires it."""
    exact = [oracle.norm([array], ord) for array in arrays]
    is_float64 = any(oracle.norm_dtype([a], e) == np.float64 for a, e in zip(arrays, exact, strict=True))
    assert isinstance(got, np.ndarray)
    assert got.shape == (len(arrays),)
    assert got.dtype == (np.float64 if is_float64 else np.float32)
    # In a float64 result the norms of narrow arrays are exact to 1e-14 too.
    for value, norm in zip(got, exact, strict=True):
        oracle.assert_norm_value(value, norm, got.dtype, ord)


def test_signatures() -> None:
    parameters = inspect.signature(fastclip.global_norm).parameters
    assert list(parameters) == ["t_list", "name", "ord", "comm"]
    parameters = inspect.signature(fastclip.tensor_norms).parameters
    assert list(parameters) == ["t_list", "ord"]
    assert parameters["ord"].kind is inspect.Parameter.KEYWORD_ONLY


@PROPERTY
@given(arrays=array_lists(), ord=st.sampled_from(ORDERS))
def test_global_norm_of_any_arrays(arrays: list[Any], ord: float) -> None:
    assume(oracle.norm(arrays, ord) <= oracle.FLOAT64_MAX)
    assume(ord in (2, math.inf) or not oracle.has_denormal_moduli(arrays))
    oracle.assert_norm(fastclip.global_norm(arrays, "a name", ord=ord), arrays, ord)


@PROPERTY
@given(arrays=array_lists(), ord=st.sampled_from(ORDERS))
def test_tensor_norms_of_any_arrays(arrays: list[Any], ord: float) -> None:
    assume(all(oracle.norm([array], ord) <= oracle.FLOAT64_MAX for array in arrays))
    assume(ord in (2, math.inf) or not any(oracle.has_denormal_moduli([array]) for array in arrays))
    assert_tensor_norms(fastclip.tensor_norms(arrays, ord=ord), arrays, ord)


@EVERY_FLOAT
@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_order_and_layout(dtype: np.dtype[Any], ord: float, layout: str) -> None:
    array = laid_out(finite_values(np.random.default_rng(1), (7, 11, 13), dtype), layout)
    oracle.assert_norm(fastclip.global_norm([array], ord=ord), [array], ord)


@EVERY_FLOAT
@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
def test_long_vectors(dtype: np.dtype[Any], ord: float) -> None:
    array = finite_values(np.random.default_rng(2), (70_001,), dtype)
    oracle.assert_norm(fastclip.global_norm([array], ord=ord), [array], ord)


@EVERY_FLOAT
def test_infinite_order_finds_the_largest_modulus_at_any_index(dtype: np.dtype[Any]) -> None:
    for place in range(0, 70):
        array = np.ones(70, dtype)
        array[place] = -9
        assert fastclip.global_norm([array], ord=math.inf) == 9


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300], ids=str)
@pytest.mark.parametrize("ord", [0.5, 1, 3, 20, math.inf])
def test_powers_beyond_the_range_of_float64(scale: float, ord: float) -> None:
    array = np.array([1.0, -2.0, 3.0]) * scale
    oracle.assert_norm(fastclip.global_norm([array], ord=ord), [array], ord)


@pytest.mark.parametrize("ord", [1e-6, 1e-3, 0.01, 0.05, 0.1, 100, 1e4, 1e9, 1e300])
@pytest.mark.parametrize("magnitude", [1.5, 3e-300, 2e300], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_extreme_orders(ord: float, magnitude: float, count: int, dtype: str) -> None:
    """All elements are equal, so that the norm is ``magnitude * count**(1/ord)``, infinite above float64."""
    norm = fastclip.global_norm([np.full(count, magnitude, dtype)], ord=ord)
    logarithm = math.log10(count) / ord + math.log10(magnitude)
    if logarithm > 308.3:
        assert norm == math.inf
    else:
        assert logarithm < 308.2
        expected = Fraction(magnitude) * Fraction(count ** (0.5 / ord)) ** 2
        tolerance = 1e-12 * max(1.0, 1.0 / ord)
        assert float(norm) == pytest.approx(oracle.to_float(expected), rel=tolerance)
    alone = fastclip.tensor_norms([np.full(count, magnitude, dtype)], ord=ord)[0]
    assert float(alone) == pytest.approx(float(norm), rel=1e-14)


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
def test_modulus_of_complex_elements(ord: float) -> None:
    array = np.array([3 + 4j, 5 - 12j])
    expected = {1: 18.0, 2: math.sqrt(194), 3: (125 + 2197) ** (1 / 3), math.inf: 13.0}[ord]
    assert float(fastclip.global_norm([array], ord=ord)) == pytest.approx(expected, rel=1e-14)


def test_norm_of_tensor_norms_is_the_global_norm() -> None:
    arrays = [finite_values(np.random.default_rng(n), (50,), np.float64) for n in range(9)]
    norms = fastclip.tensor_norms(arrays)
    assert math.hypot(*norms.tolist()) == pytest.approx(float(fastclip.global_norm(arrays)), 1e-14)


@pytest.mark.parametrize("nothing", [[], (), {}, [None], [None, None]], ids=repr)
def test_nothing_has_norm_zero_in_float32(nothing: Any) -> None:
    norm = fastclip.global_norm(nothing)
    assert isinstance(norm, np.float32)
    assert norm == 0
    norms = fastclip.tensor_norms(nothing)
    assert norms.shape == (0,)
    assert norms.dtype == np.float32


def test_empty_arrays_determine_the_dtype_of_the_norm() -> None:
    assert isinstance(fastclip.global_norm([np.zeros(0), np.ones(1, np.float32)]), np.float64)
    assert isinstance(fastclip.global_norm([np.zeros((3, 0), np.float16)]), np.float32)


def test_tensor_norms_skip_none_and_follow_the_order_of_the_structure() -> None:
    arrays = {"b": [np.full(1, 2.0, "f4"), None], "a": (np.full(4, 1.5, "f4"),)}
    np.testing.assert_array_equal(fastclip.tensor_norms(arrays), np.array([2, 3], np.float32))


@pytest.mark.parametrize("dtype", NARROW_DTYPES, ids=dtype_id)
def test_tensor_norms_are_float32_unless_one_is_too_large(dtype: np.dtype[Any]) -> None:
    arrays = [np.ones(4, dtype), np.full(9, 2, dtype)]
    assert fastclip.tensor_norms(arrays).dtype == np.float32
    if dtype == np.float16:
        return  # a float16 array with such a norm does not fit in memory
    arrays[0] = np.full(4, 3e38, dtype)
    assert_tensor_norms(fastclip.tensor_norms(arrays), arrays)
    assert fastclip.tensor_norms(arrays).dtype == np.float64


@pytest.mark.parametrize("function", [fastclip.global_norm, fastclip.tensor_norms])
@pytest.mark.parametrize("ord", [0, -1, np.nan, -np.inf], ids=repr)
def test_order_out_of_range(function: Any, ord: float) -> None:
    with pytest.raises(ValueError, match="ord"):
        function([np.ones(2)], ord=ord)


@pytest.mark.parametrize("function", [fastclip.global_norm, fastclip.tensor_norms])
@pytest.mark.parametrize("ord", ["fro", None, 2j], ids=repr)
def test_order_of_a_wrong_type(function: Any, ord: Any) -> None:
    with pytest.raises(TypeError, match="ord"):
        function([np.ones(2)], ord=ord)


def test_order_may_be_any_kind_of_number() -> None:
    array = np.array([3.0, 4.0])
    orders: list[Any] = [np.float64(1), np.int8(1), np.float32(1), 1]
    for ord in orders:
        assert fastclip.global_norm([array], ord=ord) == 7


# --- norms= -------------------------------------------------------------------------------------


@PROPERTY
@given(arrays=array_lists(), ord=st.sampled_from([1, 2, math.inf]), limit=st.floats(0, 10))
def test_norms_are_those_of_tensor_norms(arrays: list[Any], ord: float, limit: float) -> None:
    exact = [oracle.norm([array], ord) for array in arrays]
    assume(oracle.norm(arrays, ord) <= oracle.FLOAT64_MAX)
    assume(ord in (2, math.inf) or not any(oracle.has_denormal_moduli([array]) for array in arrays))
    norms = np.full(len(arrays), -1.0)
    _, norm = fastclip.clip_by_global_norm(arrays, limit, ord=ord, norms=norms)
    oracle.assert_norm(norm, arrays, ord)
    for value, expected in zip(norms, exact, strict=True):
        oracle.assert_norm_value(value, expected, np.dtype(np.float64), ord)


def test_norms_have_an_entry_for_each_array_and_none_for_none() -> None:
    arrays = {"z": [np.array([3.0, 4.0]), None], "a": np.array([2], BFLOAT16)}
    norms = np.zeros(2)
    fastclip.clip_by_global_norm(arrays, 1.0, norms=norms)
    np.testing.assert_array_equal(norms, [5, 2])


def test_norms_may_be_a_strided_view() -> None:
    buffer = np.full(6, -1.0)
    fastclip.clip_by_global_norm([np.ones(4), np.ones(9)], 1.0, norms=buffer[1:5:2])
    np.testing.assert_array_equal(buffer, [-1, 2, -1, 3, -1, -1])


@pytest.mark.parametrize(
    "norms",
    [
        np.zeros(1),
        np.zeros(3),
        np.zeros((2, 1)),
        np.zeros(()),
        np.zeros(2, np.float32),
        np.zeros(2, np.int64),
        np.zeros(2, np.dtype(np.float64).newbyteorder()),
        [0.0, 0.0],
        "norms",
        1.0,
    ],
    ids=repr,
)
def test_norms_of_a_wrong_kind(norms: Any) -> None:
    arrays = [np.ones(4), np.ones(9)]
    with pytest.raises((ValueError, TypeError), match="norms"):
        fastclip.clip_by_global_norm(arrays, 1.0, norms=norms, out=arrays)
    assert (arrays[0] == 1).all()


def test_norms_that_are_read_only() -> None:
    norms = np.zeros(1)
    norms.flags.writeable = False
    with pytest.raises(ValueError, match="norms"):
        fastclip.clip_by_global_norm([np.ones(4)], 1.0, norms=norms)


def test_norms_must_not_overlap_arrays() -> None:
    memory = np.ones(10)
    with pytest.raises(ValueError, match="norms"):
        fastclip.clip_by_global_norm([memory[:5]], 1.0, norms=memory[4:5])
    with pytest.raises(ValueError, match="norms"):
        fastclip.clip_by_global_norm([np.ones(5)], 1.0, out=[memory[:5]], norms=memory[4:5])
    assert (memory == 1).all()


def test_norms_of_nonfinite_arrays() -> None:
    arrays = [np.array([1, np.nan], "f4"), np.array([3, 4], "f4"), np.array([-np.inf], "f4")]
    norms = np.zeros(3)
    fastclip.clip_by_global_norm(arrays, 1.0, norms=norms)
    np.testing.assert_array_equal(norms, [np.nan, 5, np.inf])


def test_norms_are_not_written_by_a_call_that_fails() -> None:
    norms = np.full(2, -1.0)
    with pytest.raises(fastclip.NonFiniteError):
        fastclip.clip_by_global_norm([np.ones(3), np.array([np.nan])], 1.0, norms=norms, on_nonfinite="raise")
    np.testing.assert_array_equal(norms, [-1, -1])


@pytest.mark.parametrize("ord", [1e-6, 8e-4])
def test_norm_above_float64_is_infinite_and_not_nan(ord: float) -> None:
    array = np.array([3.0, 4.0])
    clipped, norm = fastclip.clip_by_global_norm([array], 1.0, ord=ord, on_nonfinite="raise")
    assert norm == np.inf
    assert np.isfinite(clipped[0]).all()
