"""Accuracy: norms within their error bounds, products rounded once, unclipped elements bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.dtypes import BFLOAT16, COMPLEX_DTYPES, EVERY_FLOAT, EVERY_NARROW, EVERY_REAL, dtype_id
from support.strategies import finite_values

EVERY_DOUBLE = pytest.mark.parametrize("dtype", ["float64", "complex128"])
KINDS = pytest.mark.parametrize("kind", ["normal", "wide", "tiny", "huge", "constant"])


def largest(dtype: np.dtype[Any]) -> float:
    """Returns the largest finite real of a dtype."""
    return {
        "float16": 65504.0,
        "bfloat16": float(np.float32(3.3895314e38)),
        "float32": float(np.finfo(np.float32).max),
        "complex64": float(np.finfo(np.float32).max),
    }.get(dtype.name, float(np.finfo(np.float64).max))


# --- norms of narrow dtypes: within 1 ulp -------------------------------------------------------


@EVERY_NARROW
@KINDS
@pytest.mark.parametrize("length", [1, 3, 100, 30_011])
def test_norm_of_a_narrow_array_is_within_one_ulp(dtype: np.dtype[Any], kind: str, length: int) -> None:
    array = finite_values(np.random.default_rng(length), (length,), dtype, kind)
    oracle.assert_norm(fastclip.global_norm([array]), [array])
    oracle.assert_norm(fastclip.global_norm([array] * 3), [array] * 3)
    exact = oracle.norm([array])
    norms = fastclip.tensor_norms([array])
    assert norms.dtype == oracle.norm_dtype([array], exact)
    oracle.assert_norm_value(norms[0], exact, norms.dtype)


@EVERY_NARROW
def test_millions_of_equal_elements(dtype: np.dtype[Any]) -> None:
    """A float32 sum of so many squares would stop growing."""
    array = np.full(4_000_003, 0.1, dtype)
    value = Fraction(float(array[0].real))
    exact = oracle.square_root(4_000_003 * value * value)
    oracle.assert_norm_value(fastclip.global_norm([array]), exact, np.dtype(np.float32))


def test_one_large_element_does_not_hide_many_small_ones() -> None:
    array = np.full(1_000_001, 1.0, np.float32)
    array[500_000] = 1e4
    exact = oracle.square_root(Fraction(10**8 + 10**6))
    oracle.assert_norm_value(fastclip.global_norm([array]), exact, np.dtype(np.float32))


@EVERY_DOUBLE
@KINDS
@pytest.mark.parametrize("length", [1, 2, 100, 30_011])
def test_norm_of_float64_is_within_1e_14(dtype: str, kind: str, length: int) -> None:
    array = finite_values(np.random.default_rng(length), (length,), dtype, kind)
    oracle.assert_norm(fastclip.global_norm([array]), [array])


@EVERY_DOUBLE
def test_norm_of_a_long_float64_array_is_within_1e_14(dtype: str) -> None:
    array = np.full(3_000_001, 0.1, dtype)
    value = Fraction(0.1)
    exact = oracle.square_root(3_000_001 * value * value)
    oracle.assert_norm_value(fastclip.global_norm([array]), exact, np.dtype(np.float64))


def test_pythagorean_triples_are_exact() -> None:
    for a, b, c in [(3, 4, 5), (5, 12, 13), (20, 21, 29), (119, 120, 169), (4059, 4060, 5741)]:
        for dtype in ("f4", "f8", "c8", "c16"):
            assert fastclip.global_norm([np.array([a, b], dtype)]) == c
            assert fastclip.global_norm([np.array([a], dtype), np.array([b], dtype)]) == c
    assert fastclip.global_norm([np.array([3 + 4j])]) == 5


# --- the range of float64 -----------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [1e308, 1e200, 1e155, 1e-155, 1e-162, 1e-200, 1e-308])
@EVERY_DOUBLE
def test_elements_whose_squares_overflow_or_underflow(dtype: str, magnitude: float) -> None:
    for count in (1, 2, 3):
        array = np.full(count, magnitude, dtype)
        oracle.assert_norm(fastclip.global_norm([array]), [array])
    many = np.full(5000, magnitude / 1e2, dtype)
    oracle.assert_norm(fastclip.global_norm([many]), [many])


@pytest.mark.parametrize("magnitude", [1e-320, 5e-324, 1e-315, 2.3e-308])
@EVERY_DOUBLE
def test_denormal_norms(dtype: str, magnitude: float) -> None:
    for count in (1, 2, 9, 1000):
        array = np.full(count, magnitude, dtype)
        norm = fastclip.global_norm([array])
        assert norm > 0
        oracle.assert_norm(norm, [array])
        oracle.assert_norm_value(
            fastclip.tensor_norms([array])[0], oracle.norm([array]), np.dtype(np.float64)
        )


def test_magnitudes_far_apart_within_and_across_arrays() -> None:
    values = [1e308, 1e-320, 1.0, 1e-160, 1e160]
    array = np.array(values)
    separate = [np.array([value]) for value in values]
    for arrays in ([array], [array[::-1]], separate, separate[::-1]):
        oracle.assert_norm(fastclip.global_norm(arrays), arrays)
    small = [np.array([value]) for value in (1e-320, 3e-170, 1e-160, 2e-161)]
    for arrays in (small, small[::-1], [np.concatenate(small)]):
        oracle.assert_norm(fastclip.global_norm(arrays), arrays)


def test_many_elements_around_the_threshold_of_scaling() -> None:
    for exponent in (-540, -511, -500, 490, 511, 520):
        array = np.random.default_rng(1).standard_normal(10_000) * 2.0**exponent
        oracle.assert_norm(fastclip.global_norm([array]), [array])


@EVERY_DOUBLE
def test_clipping_at_the_edges_of_the_range(dtype: str) -> None:
    for magnitude, limit in [(1e308, 1.0), (1e308, 1e300), (1e-320, 1e-322), (1e-200, 1e-210)]:
        array = np.array([1, -0.5, 0.25], dtype) * magnitude
        exact = oracle.norm([array])
        clipped, norm = fastclip.clip_by_global_norm([array], limit)
        oracle.assert_norm(norm, [array])
        oracle.assert_clipped(clipped, [array], exact, limit)


def test_norm_above_float64_is_infinite_and_the_outputs_are_correct() -> None:
    """All inputs are finite, so that the policies for NaN and infinity do not apply."""
    array = np.array([1e308, -1e308, 1e308, 1.7e308])
    exact = oracle.norm([array])
    assert exact > oracle.FLOAT64_MAX
    for policy in ("propagate", "raise", "zero"):
        for limit in (1.0, 1e300):
            clipped, norm = fastclip.clip_by_global_norm([array], limit, on_nonfinite=policy)
            assert norm == math.inf
            oracle.assert_clipped(clipped, [array], exact, limit)
    assert fastclip.global_norm([array]) == math.inf
    assert fastclip.tensor_norms([array])[0] == math.inf
    oracle.assert_clipped([fastclip.clip_by_norm(array, 1.0)], [array], exact, 1.0)
    oracle.assert_clipped([fastclip.clip_by_norm(array, math.inf)], [array], exact, math.inf)


@EVERY_NARROW
def test_float32_overflow_of_finite_elements_gives_a_float64_norm(dtype: np.dtype[Any]) -> None:
    if dtype == np.float16:
        pytest.skip("no float16 array that fits a test has such a norm")
    array = np.full(16, largest(dtype), dtype)
    exact = oracle.norm([array])
    clipped, norm = fastclip.clip_by_global_norm([array], 1.0)
    assert isinstance(norm, np.float64)
    oracle.assert_norm(norm, [array])
    oracle.assert_norm(fastclip.global_norm([array]), [array])
    oracle.assert_clipped(clipped, [array], exact, 1.0)
    # A norm equal to the largest float32 is returned as float32.
    alone = np.array([largest(dtype)], dtype)
    assert isinstance(fastclip.global_norm([alone]), np.float32)


@EVERY_NARROW
@pytest.mark.parametrize("limit", [1e-44, 1e-40, 1e-38, 1e-30])
def test_factors_below_the_normal_range_of_float32(dtype: np.dtype[Any], limit: float) -> None:
    """A float32 factor would be denormal, and the errors of the outputs much larger than a rounding error."""
    array = finite_values(np.random.default_rng(2), (200,), dtype, "huge")
    exact = oracle.norm([array])
    clipped, _ = fastclip.clip_by_global_norm([array], limit)
    oracle.assert_clipped(clipped, [array], exact, limit)
    oracle.assert_clipped([fastclip.clip_by_norm(array, limit)], [array], exact, limit)


@EVERY_NARROW
def test_denormal_elements_of_narrow_dtypes_are_kept(dtype: np.dtype[Any]) -> None:
    """They are flushed to zero neither when they are squared nor when they are scaled."""
    array = finite_values(np.random.default_rng(3), (501,), dtype, "tiny")
    exact = oracle.norm([array])
    limit = oracle.to_float(exact) / 2
    clipped, norm = fastclip.clip_by_global_norm([array], limit)
    assert norm > 0
    oracle.assert_norm(norm, [array])
    oracle.assert_clipped(clipped, [array], exact, limit)
    assert np.asarray(clipped[0]).astype(bool).sum() > 400


# --- the type of the norm -----------------------------------------------------------------------


@EVERY_FLOAT
def test_type_of_the_norm(dtype: np.dtype[Any]) -> None:
    expected = np.float64 if dtype.name in ("float64", "complex128") else np.float32
    array = np.ones(3, dtype)
    assert type(fastclip.global_norm([array])) is expected
    assert type(fastclip.clip_by_global_norm([array], 1.0)[1]) is expected
    assert type(fastclip.clip_by_global_norm([array], 9.0)[1]) is expected
    mixed = [np.ones(1, np.float16), None, array, np.ones(1, BFLOAT16)]
    assert type(fastclip.global_norm(mixed)) is expected


# --- the outputs --------------------------------------------------------------------------------


@EVERY_FLOAT
@KINDS
def test_arrays_within_the_limit_keep_every_bit(dtype: np.dtype[Any], kind: str) -> None:
    array = finite_values(np.random.default_rng(4), (777,), dtype, kind)
    array[::9] = -0.0
    limit = max(oracle.to_float(oracle.norm([array])) * 1.0001, 1e-300)
    clipped, _ = fastclip.clip_by_global_norm([array], limit)
    assert oracle.same_bits(clipped[0], array)
    assert oracle.same_bits(fastclip.clip_by_norm(array, limit), array)
    assert oracle.same_bits(fastclip.clip_by_average_norm(array, limit / 777), array)


@EVERY_FLOAT
def test_norm_equal_to_the_limit_is_not_clipped(dtype: np.dtype[Any]) -> None:
    array = np.array([3, 4], dtype)
    clipped, norm = fastclip.clip_by_global_norm([array], 5.0)
    assert norm == 5
    assert oracle.same_bits(clipped[0], array)
    assert oracle.same_bits(fastclip.clip_by_norm(array, 5.0), array)


@EVERY_REAL
def test_products_are_rounded_to_nearest_even(dtype: np.dtype[Any]) -> None:
    """Every value of the 16-bit dtypes, and many of the wider ones, times several factors."""
    if dtype.itemsize == 2:
        array = np.arange(0x10000, dtype=np.uint32).astype(np.uint16).view(dtype)
        array = np.asarray(array[np.isfinite(oracle.float64_parts(array))])
    else:
        array = finite_values(np.random.default_rng(5), (60_000,), dtype, "wide")
    for limit, use_norm in [(1, 3), (0.5, 1), (0.75, 1), (1, 1.0000001), (1e-3, 0.7), (1e-41, 1)]:
        clipped, _ = fastclip.clip_by_global_norm([array], limit, float(use_norm))
        assert oracle.same_bits(clipped[0], oracle.scaled(array, limit / use_norm))


@pytest.mark.parametrize("dtype", COMPLEX_DTYPES, ids=dtype_id)
def test_real_and_imaginary_parts_are_rounded_separately(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(6), (3001,), dtype, "wide")
    clipped, _ = fastclip.clip_by_global_norm([array], 0.3, 0.7)
    got = np.asarray(clipped[0])
    assert oracle.same_bits(got.real, oracle.scaled(array.real, 0.3 / 0.7))
    assert oracle.same_bits(got.imag, oracle.scaled(array.imag, 0.3 / 0.7))


def test_float16_is_multiplied_by_a_factor_of_more_than_float16_precision() -> None:
    array = np.array([1000.0, 2047.0, 3.0, 65504.0], np.float16)
    clipped, _ = fastclip.clip_by_global_norm([array], 1.0, use_norm=3.0)
    with_float16_factor = array * np.float16(1 / 3)
    exact = np.float16(array.astype(np.float64) * float(np.float32(1 / 3)))
    assert not oracle.same_bits(with_float16_factor, exact)
    assert oracle.same_bits(clipped[0], exact)


def test_float16_product_is_rounded_once() -> None:
    """Rounded to float32 first, some of these products are rounded to the wrong float16."""
    array = np.arange(1, 2049, dtype=np.float16)
    differing = 0
    for limit in np.linspace(0.3, 0.999, 400):
        scale = np.float32(limit)
        twice = (array.astype(np.float32) * scale).astype(np.float16)
        once = oracle.scaled(array, float(limit))
        clipped, _ = fastclip.clip_by_global_norm([array], float(limit), use_norm=1.0)
        assert oracle.same_bits(clipped[0], once)
        differing += int((twice != once).sum())
    assert differing > 0


@EVERY_FLOAT
def test_zeros_are_unchanged(dtype: np.dtype[Any]) -> None:
    array = np.zeros(9, dtype)
    array[::2] = -0.0
    for limit in (1.0, 1e-300, np.inf):
        clipped, norm = fastclip.clip_by_global_norm([array], limit)
        assert norm == 0
        assert oracle.same_bits(clipped[0], array)
        assert oracle.same_bits(fastclip.clip_by_norm(array, limit), array)
    clipped, _ = fastclip.clip_by_global_norm([array], 0.0)
    assert not oracle.float64_parts(clipped[0]).any()


@EVERY_FLOAT
def test_limit_zero_gives_zeros(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(7), (99,), dtype, "wide")
    clipped, norm = fastclip.clip_by_global_norm([array, array[:5]], 0.0)
    oracle.assert_norm(norm, [array, array[:5]])
    for got in (*clipped, fastclip.clip_by_norm(array, 0.0), fastclip.clip_by_norm(array, 0)):
        assert np.asarray(got).dtype == dtype
        assert not oracle.float64_parts(got).any()


@EVERY_FLOAT
def test_infinite_limit_changes_nothing(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(8), (99,), dtype, "huge")
    clipped, norm = fastclip.clip_by_global_norm([array], np.inf)
    oracle.assert_norm(norm, [array])
    for got in (clipped[0], fastclip.clip_by_norm(array, np.inf)):
        assert oracle.same_bits(got, array)
    assert oracle.same_bits(fastclip.clip_by_average_norm(array, np.inf), array)


def test_limit_below_float32_has_outputs_within_float32() -> None:
    array = np.array([3e30, 4e30], np.float32)
    got = fastclip.clip_by_norm(array, 5e-44)
    exact = oracle.norm([array])
    oracle.assert_clipped([got], [array], exact, 5e-44)
    assert np.asarray(got).all()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("in_place", [False, True])
def test_bound_of_zero_with_use_norm_of_zero_gives_zeros(dtype: Any, in_place: bool) -> None:
    tensors = [np.arange(1, 40).astype(dtype), np.ones((3, 4), dtype).T, np.zeros(3, dtype)]
    out = tensors if in_place else None
    clipped, norm = fastclip.clip_by_global_norm(tensors, 0.0, use_norm=0.0, out=out)
    assert norm == 0.0
    assert all(not array.astype(np.complex128).any() for array in clipped)
