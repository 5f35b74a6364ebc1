"""clip_by_global_norm: one factor for all arrays of a list."""

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
from support.dtypes import BFLOAT16, EVERY_FLOAT
from support.strategies import PROPERTY, array_lists, finite_values, limit_factors


def two_arrays(dtype: Any = np.float32) -> list[Any]:
    """Returns arrays of norms 5 and 12, whose global norm is 13."""
    return [np.array([3, 4], dtype), np.array([[0, 12]], dtype)]


def test_signature() -> None:
    parameters = inspect.signature(fastclip.clip_by_global_norm).parameters
    positional = ["t_list", "clip_norm", "use_norm", "name"]
    own = ["ord", "out", "on_nonfinite", "comm", "norms"]
    assert list(parameters) == positional + own
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)
    assert parameters["on_nonfinite"].default == "propagate"
    with pytest.raises(TypeError):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, None, None, 2)  # type: ignore[call-arg]


def test_returns_the_list_and_the_norm_before_clipping() -> None:
    result = fastclip.clip_by_global_norm(two_arrays(), 6.5, name="clipped")
    assert isinstance(result, tuple)
    clipped, norm = result
    assert isinstance(clipped, list)
    assert isinstance(norm, np.float32)
    assert norm == 13
    assert oracle.same_bits(clipped[0], np.array([1.5, 2], np.float32))
    assert oracle.same_bits(clipped[1], np.array([[0, 6]], np.float32))


@PROPERTY
@given(arrays=array_lists(), factor=limit_factors)
def test_any_arrays(arrays: list[Any], factor: float) -> None:
    exact = oracle.norm(arrays)
    assume(exact <= oracle.FLOAT64_MAX)
    limit = oracle.to_float(exact) * factor if np.isfinite(factor) else factor
    before = [array.copy() for array in arrays]
    clipped, norm = fastclip.clip_by_global_norm(arrays, limit)
    oracle.assert_norm(norm, arrays)
    oracle.assert_clipped(clipped, arrays, exact, limit)
    for array, copy in zip(arrays, before, strict=True):
        assert oracle.same_bits(array, copy)


@PROPERTY
@given(
    arrays=array_lists(kinds=["normal", "sparse"], min_size=1),
    factor=limit_factors,
    ord=st.sampled_from([0.7, 1, 3, math.inf]),
)
def test_other_orders(arrays: list[Any], factor: float, ord: float) -> None:
    exact = oracle.norm(arrays, ord)
    limit = oracle.to_float(exact) * factor if np.isfinite(factor) else factor
    assume(not 0.999 < factor < 1.001)
    clipped, norm = fastclip.clip_by_global_norm(arrays, limit, ord=ord)
    oracle.assert_norm(norm, arrays, ord)
    # The expected factor is computed from the returned norm, which other tests compare with the exact norm.
    applied = oracle.scale(oracle.to_float(exact), limit)
    for got, array in zip(clipped, arrays, strict=True):
        unit = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 3e-7, "complex64": 3e-7}
        tolerance = unit.get(array.dtype.name, 1e-11)
        smallest = {"float16": 6e-8}.get(array.dtype.name, 1e-37)
        np.testing.assert_allclose(
            oracle.float64_parts(got),
            oracle.float64_parts(array) * applied,
            rtol=tolerance,
            atol=smallest,
        )
        if factor > 1:
            assert oracle.same_bits(got, array)


@EVERY_FLOAT
@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 4097])
def test_every_length_around_the_vector_width(dtype: np.dtype[Any], length: int) -> None:
    array = finite_values(np.random.default_rng(length), (length,), dtype)
    exact = oracle.norm([array])
    clipped, norm = fastclip.clip_by_global_norm([array], oracle.to_float(exact) / 3)
    oracle.assert_norm(norm, [array])
    oracle.assert_clipped(clipped, [array], exact, oracle.to_float(exact) / 3)


def test_thousands_of_small_arrays() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(n % 13).astype(np.float32) for n in range(3000)]
    exact = oracle.norm(arrays)
    clipped, norm = fastclip.clip_by_global_norm(arrays, 10.0)
    oracle.assert_norm(norm, arrays)
    oracle.assert_clipped(clipped, arrays, exact, 10.0)


def test_small_and_large_arrays_together() -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (3, 1_500_001, 0, 17, 400_000)]
    total = math.fsum(math.fsum(a.astype(np.float64) ** 2) for a in arrays)
    clipped, norm = fastclip.clip_by_global_norm(arrays, 2.5)
    assert abs(float(norm) - math.sqrt(total)) <= np.spacing(np.float32(math.sqrt(total)))
    factor = oracle.scale(math.sqrt(total), 2.5)
    for got, array in zip(clipped, arrays, strict=True):
        assert oracle.same_bits(got, oracle.scaled(array, factor))


# --- clip_norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    [6.5, np.float64(6.5), np.float32(6.5), np.float16(6.5), np.array(6.5), np.array(6.5, "f4")],
    ids=repr,
)
def test_limit_may_be_any_kind_of_number(limit: Any) -> None:
    clipped, _ = fastclip.clip_by_global_norm(two_arrays(), limit)
    assert oracle.same_bits(clipped[0], np.array([1.5, 2], np.float32))


def test_bfloat16_and_integer_limits() -> None:
    limits: list[Any] = [1, np.int32(1), BFLOAT16.type(1)]
    for limit in limits:
        clipped, _ = fastclip.clip_by_global_norm([np.array([2.0, 0])], limit)
        assert oracle.same_bits(clipped[0], np.array([1.0, 0]))


@pytest.mark.parametrize("limit", [np.nan, -1.0, -1e-300, -np.inf, np.float32(-2)], ids=repr)
def test_negative_or_nan_limit(limit: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        fastclip.clip_by_global_norm(two_arrays(), limit)
    with pytest.raises(ValueError, match="clip_norm"):
        fastclip.clip_by_global_norm([], limit)


@pytest.mark.parametrize("limit", ["1", None, 1j, object(), np.array("x")], ids=str)
def test_limit_of_a_wrong_type(limit: Any) -> None:
    with pytest.raises(TypeError, match="clip_norm"):
        fastclip.clip_by_global_norm(two_arrays(), limit)


@pytest.mark.parametrize("limit", [[1.0, 2.0], np.ones((2, 2)), np.zeros(0)], ids=str)
def test_limit_that_is_no_scalar(limit: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="clip_norm"):
        fastclip.clip_by_global_norm(two_arrays(), limit)


def test_negative_zero_as_limit_gives_zeros() -> None:
    clipped, _ = fastclip.clip_by_global_norm(two_arrays(), -0.0)
    assert not np.asarray(clipped[0]).any()


# --- use_norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use_norm",
    [26.0, np.float32(26), np.float64(26), np.array(26.0), np.array(26, "f4"), 26],
    ids=repr,
)
def test_use_norm_replaces_the_computed_norm_and_is_returned_unchanged(use_norm: Any) -> None:
    clipped, norm = fastclip.clip_by_global_norm(two_arrays(), 13.0, use_norm)
    assert type(norm) is type(use_norm)
    assert np.asarray(norm).dtype == np.asarray(use_norm).dtype
    assert norm == 26
    assert oracle.same_bits(clipped[0], np.array([1.5, 2], np.float32))


@EVERY_FLOAT
@pytest.mark.parametrize(
    ("limit", "use_norm"),
    [
        (1.0, 3.0),
        (0.1, 0.7),
        (1e-30, 1e9),
        (1e-45, 1.0),
        (1e-300, 1e10),
        (0.132, 2.19e300),
        (0.0, 1.0),
        (7.0, 7.1),
    ],
)
def test_products_with_the_factor_of_use_norm(dtype: np.dtype[Any], limit: float, use_norm: float) -> None:
    """Every output is exact to the last bit, unless the factor is no normal float64."""
    for seed, kind in enumerate(("normal", "wide", "huge", "tiny")):
        array = finite_values(np.random.default_rng(seed), (257,), dtype, kind)
        clipped, _ = fastclip.clip_by_global_norm([array], limit, use_norm)
        if dtype in (np.float64, np.complex128) and 0 < limit / use_norm < 2.0**-1022:
            oracle.assert_clipped(clipped, [array], Fraction(use_norm), limit)
        else:
            assert oracle.same_bits(clipped[0], oracle.scaled(array, limit / use_norm))


@EVERY_FLOAT
@pytest.mark.parametrize("use_norm", [0.0, 0.5, 1.0])
def test_use_norm_within_the_limit_changes_no_bit(dtype: np.dtype[Any], use_norm: float) -> None:
    array = finite_values(np.random.default_rng(3), (100,), dtype, "wide")
    clipped, norm = fastclip.clip_by_global_norm([array], 1.0, use_norm)
    assert oracle.same_bits(clipped[0], array)
    assert norm == use_norm


def test_use_norm_does_not_spread_nan_elements() -> None:
    array = np.array([np.nan, 4.0, np.inf], np.float32)
    clipped, _ = fastclip.clip_by_global_norm([array], 1.0, use_norm=2.0)
    np.testing.assert_array_equal(clipped[0], np.array([np.nan, 2.0, np.inf], np.float32))


@pytest.mark.parametrize("use_norm", [-1.0, np.float32(-3), -np.inf], ids=repr)
def test_negative_use_norm(use_norm: Any) -> None:
    with pytest.raises(ValueError, match="use_norm"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, use_norm)


@pytest.mark.parametrize("use_norm", [np.nan, np.inf, np.float32(np.nan)], ids=repr)
def test_nonfinite_use_norm_is_treated_as_a_nonfinite_norm(use_norm: Any) -> None:
    clipped, norm = fastclip.clip_by_global_norm(two_arrays(), 1.0, use_norm)
    assert all(oracle.all_nan(array) for array in clipped)
    np.testing.assert_array_equal(norm, use_norm)
    clipped, norm = fastclip.clip_by_global_norm(two_arrays(), 1.0, use_norm, on_nonfinite="zero")
    assert not any(np.asarray(array).any() for array in clipped)
    with pytest.raises(fastclip.NonFiniteError, match="use_norm"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, use_norm, on_nonfinite="raise")


@pytest.mark.parametrize("use_norm", ["13", 1j, object()], ids=str)
def test_use_norm_of_a_wrong_type(use_norm: Any) -> None:
    with pytest.raises(TypeError, match="use_norm"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, use_norm)


def test_use_norm_that_is_no_scalar() -> None:
    with pytest.raises((ValueError, TypeError), match="use_norm"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, np.ones(2))


def test_use_norm_together_with_norms() -> None:
    with pytest.raises(ValueError, match="norms"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, 13.0, norms=np.zeros(2))


def test_arrays_are_checked_with_use_norm() -> None:
    with pytest.raises(TypeError, match=r"t_list\[1\]"):
        fastclip.clip_by_global_norm([np.ones(2), np.ones(2, np.int32)], 1.0, 13.0)


# --- other arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ignore", "", "Raise", None, 1], ids=repr)
def test_unknown_policy(policy: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="on_nonfinite"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, on_nonfinite=policy)


@pytest.mark.parametrize("ord", [0, -1, np.nan, -np.inf], ids=repr)
def test_order_out_of_range(ord: float) -> None:
    with pytest.raises(ValueError, match="ord"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, ord=ord)


@pytest.mark.parametrize("ord", ["fro", None, 2j], ids=repr)
def test_order_of_a_wrong_type(ord: Any) -> None:
    with pytest.raises(TypeError, match="ord"):
        fastclip.clip_by_global_norm(two_arrays(), 1.0, ord=ord)
