"""NaN and infinite inputs, with each policy of ``on_nonfinite``."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support import oracle
from support.dtypes import EVERY_FLOAT
from support.strategies import (
    PROPERTY,
    WRITABLE_LAYOUTS,
    array_lists,
    finite_values,
    laid_out,
    nonfinite_arrays,
)

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=repr)
LIMITS = st.sampled_from([0.0, 1e-3, 1.0, 1e9])
ORDERS = st.sampled_from([0.5, 1, 2, 3, math.inf])


@PROPERTY
@given(good=array_lists(kinds=["normal", "tiny"]), bad=nonfinite_arrays(), limit=LIMITS, ord=ORDERS)
def test_propagate_fills_every_output_with_nan(good: list[Any], bad: Any, limit: float, ord: float) -> None:
    arrays = [*good, bad, *good]
    clipped, norm = fastclip.clip_by_global_norm(arrays, limit, ord=ord)
    assert not np.isfinite(norm)
    assert isinstance(norm, (np.float32, np.float64))
    assert len(clipped) == len(arrays)
    for got, array in zip(clipped, arrays, strict=True):
        assert np.asarray(got).dtype == array.dtype
        assert np.asarray(got).shape == array.shape
        assert oracle.all_nan(got)


@PROPERTY
@given(good=array_lists(kinds=["normal", "tiny"]), bad=nonfinite_arrays(), limit=LIMITS, ord=ORDERS)
def test_zero_fills_every_output_with_zeros(good: list[Any], bad: Any, limit: float, ord: float) -> None:
    arrays = [bad, *good]
    clipped, norm = fastclip.clip_by_global_norm(arrays, limit, ord=ord, on_nonfinite="zero")
    assert not np.isfinite(norm)
    for got, array in zip(clipped, arrays, strict=True):
        assert np.asarray(got).dtype == array.dtype
        assert np.asarray(got).shape == array.shape
        assert not oracle.float64_parts(got).any()


@PROPERTY
@given(
    good=array_lists(layouts=WRITABLE_LAYOUTS, kinds=["normal", "tiny"]),
    bad=nonfinite_arrays(),
    limit=LIMITS,
    ord=ORDERS,
)
def test_raise_names_the_entry_and_writes_nothing(
    good: list[Any], bad: Any, limit: float, ord: float
) -> None:
    arrays = [*good, bad]
    before = [array.copy() for array in arrays]
    with pytest.raises(fastclip.NonFiniteError, match=rf"t_list\[{len(good)}\]"):
        fastclip.clip_by_global_norm(arrays, limit, ord=ord, on_nonfinite="raise", out=arrays)
    for array, copy in zip(arrays, before, strict=True):
        assert oracle.same_bits(array, copy)


@pytest.mark.parametrize("policy", ["propagate", "raise", "zero"])
@PROPERTY
@given(arrays=array_lists(), factor=st.sampled_from([0.5, 2.0]))
def test_finite_arrays_are_clipped_with_every_policy(policy: Any, arrays: list[Any], factor: float) -> None:
    exact = oracle.norm(arrays)
    limit = oracle.to_float(exact) * factor
    clipped, norm = fastclip.clip_by_global_norm(arrays, limit, on_nonfinite=policy)
    oracle.assert_norm(norm, arrays)
    oracle.assert_clipped(clipped, arrays, exact, limit)


@EVERY_FLOAT
@BAD
def test_one_bad_element_anywhere(dtype: np.dtype[Any], bad: float) -> None:
    for place in range(0, 150):
        array = np.ones(150, dtype)
        array[place] = bad
        clipped, norm = fastclip.clip_by_global_norm([array], 1.0)
        assert not np.isfinite(norm)
        assert oracle.all_nan(clipped[0])


@EVERY_FLOAT
@BAD
def test_one_bad_element_in_a_large_array(dtype: np.dtype[Any], bad: float) -> None:
    arrays = [np.ones(300_000, dtype), np.ones(7, dtype)]
    for place in (0, 65_536, 299_999):
        arrays[0][:] = 1
        arrays[0][place] = bad
        clipped, norm = fastclip.clip_by_global_norm(arrays, 1.0)
        assert not np.isfinite(norm)
        assert all(oracle.all_nan(got) for got in clipped)
        with pytest.raises(fastclip.NonFiniteError, match=r"t_list\[0\]"):
            fastclip.clip_by_global_norm(arrays, 1.0, on_nonfinite="raise")


@EVERY_FLOAT
def test_value_and_type_of_the_nonfinite_norm(dtype: np.dtype[Any]) -> None:
    expected = np.float64 if dtype.name in ("float64", "complex128") else np.float32
    for ord in (0.5, 1, 2, 3, math.inf):
        norm = fastclip.global_norm([np.array([1, np.nan], dtype)], ord=ord)
        assert type(norm) is expected
        assert np.isnan(norm)
        norm = fastclip.global_norm([np.array([1], dtype), np.array([-np.inf, 2], dtype)], ord=ord)
        assert type(norm) is expected
        assert norm == math.inf


def test_tensor_norms_are_nonfinite_for_nonfinite_tensors_only() -> None:
    arrays = [np.array([3.0, 4.0]), np.array([np.nan]), np.array([np.inf]), np.zeros(2)]
    np.testing.assert_array_equal(fastclip.tensor_norms(arrays), [5, np.nan, np.inf, 0])


def test_error_names_every_nonfinite_entry() -> None:
    good, bad = np.ones(2, np.float32), np.array([1, np.nan], np.float32)
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm([good, bad, None, good, bad], 1.0, on_nonfinite="raise")
    message = str(caught.value)
    assert "t_list[1]" in message
    assert "t_list[4]" in message
    for place in (0, 2, 3):
        assert f"t_list[{place}]" not in message
    nested = {"w": [good, bad], "b": good}
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm(nested, 1.0, on_nonfinite="raise")
    assert "t_list['w'][1]" in str(caught.value)
    assert "'b'" not in str(caught.value)


def test_message_for_thousands_of_nonfinite_entries_is_short() -> None:
    arrays = [np.array([np.nan])] * 5000
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm(arrays, 1.0, on_nonfinite="raise")
    assert re.search(r"\b(5000|4\d{3})\b", str(caught.value)), "how many there are"
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("order", [0.5, 1, 2, 3, math.inf])
@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("with_norms", [False, True])
def test_error_has_the_norm_of_every_tensor(order: float, out: bool, with_norms: bool) -> None:
    arrays = [np.array([3.0, -4.0]), None, np.array([1, np.inf], np.float32), np.ones((2, 3), np.complex64)]
    arrays += [np.zeros(0), np.array(np.nan)]
    given = np.full(5, -1.0) if with_norms else None
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm(
            arrays, 1.0, ord=order, on_nonfinite="raise", out=arrays if out else None, norms=given
        )
    norms = caught.value.norms
    assert type(norms) is np.ndarray
    assert norms.dtype == np.float64
    assert norms.flags.owndata
    np.testing.assert_array_equal(
        norms,
        [
            fastclip.global_norm([np.asarray(a, np.result_type(a, np.float64))], ord=order)
            for a in arrays
            if a is not None
        ],
    )
    assert np.isfinite(norms).tolist() == [True, False, True, True, False]
    # Nothing was written.
    assert given is None or (given == -1.0).all()


def test_norms_of_the_error_are_those_that_a_call_without_it_writes() -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(n).astype(t) for n in (5, 70_001, 300) for t in ("f2", "f4", "f8")]
    written = np.zeros(len(arrays))
    fastclip.clip_by_global_norm(arrays, 1.0, norms=written)
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm([*arrays, np.array([np.nan])], 1.0, on_nonfinite="raise")
    assert caught.value.norms is not None
    assert caught.value.norms[:-1].tobytes() == written.tobytes()


def test_error_of_a_given_norm_has_no_norms() -> None:
    with pytest.raises(fastclip.NonFiniteError) as caught:
        fastclip.clip_by_global_norm([np.ones(2)], 1.0, use_norm=np.nan, on_nonfinite="raise")
    assert caught.value.norms is None
    assert fastclip.NonFiniteError("message").norms is None


def test_error_is_an_arithmetic_error() -> None:
    assert issubclass(fastclip.NonFiniteError, ArithmeticError)


@pytest.mark.parametrize("limit", [0.0, 1.0, np.inf])
def test_raise_checks_the_arrays_for_every_limit(limit: float) -> None:
    arrays = [np.ones(3), np.array([np.inf])]
    with pytest.raises(fastclip.NonFiniteError):
        fastclip.clip_by_global_norm(arrays, limit, on_nonfinite="raise")


def test_in_place() -> None:
    arrays = [np.ones(3, np.float32), np.array([np.nan, 1], np.float32)]
    fastclip.clip_by_global_norm(arrays, 100.0, out=arrays)
    assert all(oracle.all_nan(array) for array in arrays)
    fastclip.clip_by_global_norm(arrays, 100.0, out=arrays, on_nonfinite="zero")
    assert not any(array.any() for array in arrays)


def test_large_finite_elements_are_no_infinities() -> None:
    """Squares and products that overflow do not make the outputs NaN."""
    for dtype, value in [("f2", 65504), ("f4", 3e38), ("f8", 1e308), ("c8", 3e38), ("c16", 1e308)]:
        array = np.array([value, 0, -value / 4], dtype)
        clipped, norm = fastclip.clip_by_global_norm([array], 1.0, on_nonfinite="raise")
        assert np.isfinite(norm)
        oracle.assert_clipped(clipped, [array], oracle.norm([array]), 1.0)


# --- clip_by_norm and clip_by_average_norm ------------------------------------------------------


@PROPERTY
@given(bad=nonfinite_arrays(), limit=LIMITS)
def test_single_array_functions_propagate(bad: Any, limit: float) -> None:
    for function in (fastclip.clip_by_norm, fastclip.clip_by_average_norm):
        got = np.asarray(function(bad, limit))
        assert got.dtype == bad.dtype
        assert got.shape == bad.shape
        assert oracle.all_nan(got)


@EVERY_FLOAT
@BAD
@pytest.mark.parametrize("axes", [0, 1, 2, (0, 1), (1, 2), (0, 2)], ids=repr)
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_nonfinite_element_affects_its_slice_along_axes_only(
    dtype: np.dtype[Any], bad: float, axes: Any, layout: str
) -> None:
    values = finite_values(np.random.default_rng(1), (4, 5, 6), dtype)
    values[1, 2, 3] = bad
    array = laid_out(values, layout)
    got = np.asarray(fastclip.clip_by_norm(array, 0.8, axes))
    nonfinite = 0
    for index in oracle.slices_along(array.shape, axes):
        if np.isfinite(oracle.float64_parts(array[index])).all():
            oracle.assert_clipped([got[index]], [array[index]], oracle.norm([array[index]]), 0.8)
        else:
            assert oracle.all_nan(got[index])
            nonfinite += 1
    assert nonfinite == 1


def test_nonfinite_element_affects_only_itself_without_axes() -> None:
    array = np.array([3.0, np.nan, -0.5, np.inf])
    got = fastclip.clip_by_norm(array, 1.0, axes=())
    np.testing.assert_array_equal(got, [1.0, np.nan, -0.5, np.nan])
