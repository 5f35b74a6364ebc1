"""clip_by_average_norm: clip_by_norm with the norm divided by the number of elements."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import fastclip
from support import oracle
from support.dtypes import EVERY_FLOAT
from support.strategies import PROPERTY, arrays, finite_values, limit_factors


def test_signature() -> None:
    parameters = inspect.signature(fastclip.clip_by_average_norm).parameters
    assert list(parameters) == ["t", "clip_norm", "name", "out"]
    assert parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY


def test_norm_is_divided_by_the_number_of_elements_and_not_by_its_root() -> None:
    # The norm is 4 and the average norm 0.25; divided by the root of 16 it would be 1.
    array = np.ones(16, np.float32)
    assert oracle.same_bits(fastclip.clip_by_average_norm(array, 0.25), array)
    got = fastclip.clip_by_average_norm(array, 0.125)
    assert oracle.same_bits(got, np.full(16, 0.5, np.float32))


@PROPERTY
@given(array=arrays(), factor=limit_factors)
def test_any_array(array: Any, factor: float) -> None:
    exact = oracle.average_norm(array)
    limit = oracle.to_float(exact) * factor if np.isfinite(factor) else factor
    got = fastclip.clip_by_average_norm(array, limit, "a name")
    oracle.assert_clipped([got], [array], exact, limit)


@EVERY_FLOAT
def test_zero_and_negative_limits_give_zeros(dtype: np.dtype[Any]) -> None:
    array = finite_values(np.random.default_rng(1), (21,), dtype)
    for limit in (0.0, -1.0, -np.inf):
        assert not oracle.float64_parts(fastclip.clip_by_average_norm(array, limit)).any()


@EVERY_FLOAT
def test_zeros_and_empty_arrays_are_unchanged(dtype: np.dtype[Any]) -> None:
    for shape in ((), (4,), (0,), (3, 0)):
        array = np.zeros(shape, dtype)
        assert oracle.same_bits(fastclip.clip_by_average_norm(array, 1.0), array)


def test_nan_limit() -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        fastclip.clip_by_average_norm(np.ones(3), np.nan)


@pytest.mark.parametrize("limit", ["1", None, 1j], ids=repr)
def test_limit_of_a_wrong_type(limit: Any) -> None:
    with pytest.raises(TypeError, match="clip_norm"):
        fastclip.clip_by_average_norm(np.ones(3), limit)


def test_limit_with_more_dimensions_is_refused() -> None:
    limit: Any = np.ones((1, 3))
    with pytest.raises(ValueError, match="clip_norm"):
        fastclip.clip_by_average_norm(np.ones(3), limit)
