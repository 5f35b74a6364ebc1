"""``comm=``: norms of the arrays of several ranks, which are threads here."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.dtypes import EVERY_FLOAT
from support.ranks import Exchange, Rank, on_every_rank
from support.strategies import finite_values


def clip_to(limit: float, **options: Any) -> Any:
    return lambda arrays, comm: fastclip.clip_by_global_norm(arrays, limit, comm=comm, **options)


@EVERY_FLOAT
@pytest.mark.parametrize("kind", ["normal", "wide", "tiny", "huge"])
@pytest.mark.parametrize("factor", [0.25, 1.5])
def test_ranks_clip_by_the_norm_over_all_ranks(dtype: np.dtype[Any], kind: str, factor: float) -> None:
    rng = np.random.default_rng(1)
    per_rank = [
        [finite_values(rng, shape, dtype, kind) for shape in shapes]
        for shapes in ([(100,), (3, 4)], [(7,)], [(60_001,), ()])
    ]
    together = [array for arrays in per_rank for array in arrays]
    exact = oracle.norm(together)
    limit = oracle.to_float(exact) * factor
    results = on_every_rank(per_rank, clip_to(limit))
    for result in results:
        assert not isinstance(result, Exception), result
        assert oracle.same_bits(result[1], results[0][1])
        oracle.assert_norm(result[1], together)
    oracle.assert_clipped([a for result in results for a in result[0]], together, exact, limit)
    norms = on_every_rank(per_rank, lambda a, comm: fastclip.global_norm(a, comm=comm))
    assert all(oracle.same_bits(norm, results[0][1]) for norm in norms)


@pytest.mark.parametrize(
    "magnitudes",
    [(1e200, 1e-200), (1e-200, 1e-200), (1e308, 1e307), (1e-320, 1e-322), (1.0, 1e200), (0.0, 1e-310)],
    ids=str,
)
def test_magnitudes_far_apart_or_beyond_the_range_of_squares(
    magnitudes: tuple[float, float],
) -> None:
    per_rank = [[np.array([m, -m])] for m in magnitudes]
    together = [array for arrays in per_rank for array in arrays]
    results = on_every_rank(per_rank, lambda a, comm: fastclip.global_norm(a, comm=comm))
    for norm in results:
        assert not isinstance(norm, Exception), norm
        assert oracle.same_bits(norm, results[0])
        oracle.assert_norm(norm, together)


@pytest.mark.parametrize("nothing", [[], [None], [np.zeros(0, np.float32)]], ids=str)
def test_rank_without_arrays_takes_part(nothing: Any) -> None:
    full = [np.array([3, 4], np.float32)]
    empty_result, result = on_every_rank([nothing, full], clip_to(1.0))
    assert not isinstance(empty_result, Exception), empty_result
    assert result[1] == empty_result[1] == 5
    oracle.assert_clipped(result[0], full, Fraction(5), 1.0)
    assert len(empty_result[0]) == len(nothing)


@pytest.mark.parametrize("ord", [0.5, 1, 3, 7.5])
@pytest.mark.parametrize("magnitudes", [(1.0, 1.0), (1e-300, 1e-300), (1e300, 1e300), (1e300, 1.0)], ids=str)
def test_other_orders(ord: float, magnitudes: tuple[float, float]) -> None:
    per_rank = [[np.array([1.0, 2.0]) * magnitudes[0]], [np.array([3.0]) * magnitudes[1]]]
    together = [array for arrays in per_rank for array in arrays]
    results = on_every_rank(per_rank, clip_to(math.inf, ord=ord))
    for result in results:
        assert not isinstance(result, Exception), result
        oracle.assert_norm(result[1], together, ord)
        assert oracle.same_bits(result[1], results[0][1])


def test_infinite_order_is_refused_before_any_exchange() -> None:
    rank = Exchange(1).ranks[0]
    with pytest.raises(ValueError, match="ord"):
        fastclip.clip_by_global_norm([np.ones(2)], 1.0, ord=math.inf, comm=rank)
    with pytest.raises(ValueError, match="ord"):
        fastclip.global_norm([np.ones(2)], ord=math.inf, comm=rank)
    assert rank.calls == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_element_of_one_rank_affects_every_rank(bad: float) -> None:
    def per_rank() -> list[Any]:
        return [[np.ones(3, np.float32)], [np.array([1, bad], np.float32)]]

    for clipped, norm in on_every_rank(per_rank(), clip_to(1.0)):
        assert not np.isfinite(norm)
        assert oracle.all_nan(clipped[0])
    for clipped, norm in on_every_rank(per_rank(), clip_to(1.0, on_nonfinite="zero")):
        assert not np.isfinite(norm)
        assert not np.asarray(clipped[0]).any()
    errors = on_every_rank(per_rank(), clip_to(1.0, on_nonfinite="raise"))
    assert all(isinstance(error, fastclip.NonFiniteError) for error in errors)
    assert "t_list[1]" not in str(errors[1])
    assert "t_list[0]" in str(errors[1])
    # Each rank has the norms of its own tensors.
    np.testing.assert_array_equal(errors[0].norms, [np.sqrt(3.0)])
    np.testing.assert_array_equal(errors[1].norms, [bad])


def test_raise_for_another_ranks_nonfinite_element_writes_nothing() -> None:
    good, bad = np.full(3, 2.0), np.array([np.nan])
    errors = on_every_rank(
        [[good], [bad]],
        lambda arrays, comm: fastclip.clip_by_global_norm(
            arrays, 1.0, comm=comm, on_nonfinite="raise", out=arrays
        ),
    )
    assert all(isinstance(error, fastclip.NonFiniteError) for error in errors)
    np.testing.assert_array_equal(good, np.full(3, 2.0))


def test_finite_elements_whose_squares_overflow_are_finite() -> None:
    per_rank = [[np.array([1e308])], [np.array([-1e308])]]
    for clipped, norm in on_every_rank(per_rank, clip_to(1.0, on_nonfinite="raise")):
        assert norm == pytest.approx(math.sqrt(2) * 1e308, rel=1e-14)
        np.testing.assert_allclose(np.abs(clipped[0]), math.sqrt(0.5), rtol=1e-13)


def test_norms_argument_has_the_norms_of_the_ranks_own_tensors() -> None:
    norms = [np.zeros(2), np.zeros(1)]
    per_rank = [[np.full(4, 1.0), np.full(9, 1.0)], [np.full(16, 1.0)]]

    def call(arrays: Any, comm: Rank) -> Any:
        return fastclip.clip_by_global_norm(arrays, 1.0, comm=comm, norms=norms[comm.number])

    for result in on_every_rank(per_rank, call):
        assert result[1] == pytest.approx(math.sqrt(29), rel=1e-14)
    assert norms[0].tolist() == [2, 3]
    assert norms[1].tolist() == [4]


def test_single_rank_has_the_bits_of_a_call_without_comm() -> None:
    array = finite_values(np.random.default_rng(2), (1000,), np.float32)
    (result,) = on_every_rank([[array]], clip_to(0.5))
    clipped, norm = fastclip.clip_by_global_norm([array], 0.5)
    assert oracle.same_bits(result[1], norm)
    assert oracle.same_bits(result[0][0], clipped[0])


@pytest.mark.parametrize("comm", [object(), 3, "comm"], ids=repr)
def test_comm_without_allreduce_is_a_type_error(comm: Any) -> None:
    with pytest.raises(TypeError, match=r"comm.*allreduce"):
        fastclip.clip_by_global_norm([np.ones(2)], 1.0, comm=comm)


class Returning:
    """A communicator whose `allreduce` returns a fixed object."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def allreduce(self, values: Any) -> Any:
        del values
        return self.result


@pytest.mark.parametrize("nonsense", [None, "x", np.zeros(0), np.zeros((7, 7))], ids=repr)
def test_invalid_result_of_allreduce_is_refused_before_anything_is_written(nonsense: Any) -> None:
    array = np.full(3, 2.0)
    with pytest.raises((TypeError, ValueError), match="allreduce"):
        fastclip.clip_by_global_norm([array], 1.0, comm=Returning(nonsense), out=[array])
    np.testing.assert_array_equal(array, np.full(3, 2.0))
