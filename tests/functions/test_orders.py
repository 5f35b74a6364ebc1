"""Norms of very small and very large orders, of one rank and of several, compared with decimal arithmetic."""

from __future__ import annotations

import math
import sys
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest

import fastclip
from support.ranks import on_every_rank

ORDERS = (5e-324, 1e-310, 1e-300, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.5, 3, 64, 65, 1e3, 1e6, 1e20, 1e300)
LARGEST_ORDER = sys.float_info.max
DECIMAL = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)

TENSORS: dict[str, list[float]] = {
    "one element": [0.0, -0.3, 0.0],
    "equal elements": [0.7] * 5,
    "mixed": [1e-3, 7.0, -1e3, 12.5, 1e-3],
    "large": [1.7e308, -1.1e308, 1.7e308],
    "small": [1e-320, 3e-320, -5e-324],
    "far apart": [1.3e308, 1e-320, 1.0],
    "zero": [0.0] * 4,
    "empty": [],
}


def exact_norm(values: list[float], order: float) -> float:
    """Returns the norm rounded to float64, infinity if it is larger than any float64."""
    with localcontext(DECIMAL):
        sizes = [abs(Decimal(value)) for value in values if value != 0.0]
        if not sizes:
            return 0.0
        largest, p = max(sizes), Decimal(order)
        total = Decimal(0)
        for size in sizes:
            exponent = (size / largest).ln() * p
            if exponent > -200:
                total += exponent.exp()
        log = largest.ln() + total.ln() / p
        if log > 710:
            return math.inf
        return float(log.exp())


def assert_near(got: Any, want: float, order: float) -> None:
    bound = 1e-14 * max(1.0, 1.0 / order) if order > 1e-300 else 1e-14
    assert got == want or abs(float(got) - want) <= bound * want + 5e-324, (float(got), want)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("ord", [*ORDERS, LARGEST_ORDER])
def test_norm_of_every_order(ord: float, name: str) -> None:
    x = np.array(TENSORS[name])
    want = exact_norm(TENSORS[name], ord)
    assert_near(fastclip.global_norm([x], ord=ord), want, ord)
    assert_near(fastclip.global_norm([x * 1j], ord=ord), want, ord)
    assert_near(fastclip.global_norm([x[:1], x[1:]], ord=ord), want, ord)


@pytest.mark.parametrize("ord", [1e20, 1e300, LARGEST_ORDER])
def test_very_large_order_clips_like_infinity(ord: float) -> None:
    x = np.array([3.0, -4.0, 1.0], np.float32)
    (clipped,), norm = fastclip.clip_by_global_norm([x], 1.0, ord=ord)
    (want,), largest = fastclip.clip_by_global_norm([x], 1.0, ord=math.inf)
    assert norm == largest == 4.0
    np.testing.assert_array_equal(clipped, want)


@pytest.mark.parametrize("ord", [5e-324, 1e-300, 1e-4])
def test_norm_above_float64_clips_finite_elements_to_zero(ord: float) -> None:
    x = np.array([3.0, -4.0, 1.0])
    (clipped,), norm = fastclip.clip_by_global_norm([x], 1.0, ord=ord, on_nonfinite="raise")
    assert norm == math.inf
    assert not clipped.any()


@pytest.mark.parametrize("ord", [1 / 64, 0.02, 0.1, 0.5, 0.9, 3, 64])
@pytest.mark.parametrize("names", [("far apart", "one element"), ("small", "zero"), ("large", "empty")])
def test_norm_of_several_ranks_in_small_and_large_orders(names: tuple[str, str], ord: float) -> None:
    per_rank = [[np.array(TENSORS[name])] for name in names]
    want = exact_norm([value for name in names for value in TENSORS[name]], ord)
    for norm in on_every_rank(per_rank, lambda a, comm: fastclip.global_norm(a, ord=ord, comm=comm)):
        assert not isinstance(norm, Exception), norm
        assert_near(norm, want, ord / 4)


def test_several_ranks_clip_by_a_norm_above_float64() -> None:
    per_rank = [[np.full(1000, 1e300)], [np.full(2000, 1e300)]]
    clip = lambda a, comm: fastclip.clip_by_global_norm(  # noqa: E731
        a, 1e300, ord=1 / 64, comm=comm, on_nonfinite="raise"
    )
    with localcontext(DECIMAL):
        want = float(Decimal("1e300") / Decimal(3000) ** 64)
    for result in on_every_rank(per_rank, clip):
        assert not isinstance(result, Exception), result
        (clipped,), norm = result
        assert norm == math.inf
        assert abs(clipped / want - 1.0).max() < 1e-12


@pytest.mark.parametrize("ord", [1e-300, 0.015, 64.5, 1e20])
def test_order_that_ranks_cannot_exchange_is_refused_before_any_exchange(ord: float) -> None:
    class Comm:
        def allreduce(self, values: Any) -> Any:
            raise AssertionError("allreduce was called")

    with pytest.raises(ValueError, match=r"ord is .*from 1/64 to 64"):
        fastclip.global_norm([np.ones(2)], ord=ord, comm=Comm())
