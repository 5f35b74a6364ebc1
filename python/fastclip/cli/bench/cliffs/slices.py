"""Norms of slices: short slices, slices across rows, other orders, and a bound for each element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, check_close, memory_limit, normal, timed
from fastclip.cli.bench.clipping.benchmark_rows import DEVIATION
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender


def _expected(gradient: Array, bound: Any, axis: int, order: float) -> Array:
    """Return the gradient clipped by the norms of its slices, in float64."""
    powers = np.abs(gradient.astype(np.float64)) ** order
    norms = np.sum(powers, axis=axis, keepdims=True) ** (1 / order)
    clipped: Array = gradient * (bound / np.maximum(norms, bound))
    return clipped


def _slices(size: Size, rows: int, columns: int, clipped_axis: int, order: float = 2) -> Work:
    if rows > columns:
        shape = size.shape(size.count(rows, 64), columns)
    else:
        shape = size.shape(rows, size.count(columns, 64))
    gradient, axis = normal(shape), size.axis(clipped_axis)
    bound = 0.5 * DEVIATION * shape[axis] ** (1 / order)
    expected = _expected(gradient, bound, axis, order)

    def numpy() -> Array:
        if order == 2:
            norms = np.sqrt(np.sum(np.square(gradient), axis=axis, keepdims=True))
        else:
            norms = np.linalg.norm(gradient, order, axis=axis, keepdims=True)
        clipped: Array = gradient * (bound / np.maximum(norms, bound))
        return clipped

    return Work(
        shapes=(shape,),
        nbytes=gradient.nbytes,
        contenders=timed(
            fastclip=(
                f"clip_by_norm(axes=[{axis}])",
                lambda: fastclip.clip_by_norm(gradient, bound, axes=[axis], ord=order),
            ),
            numpy=("g * (c / np.maximum(norms, c))", numpy),
        ),
        limit=memory_limit(gradient.nbytes, "copy"),
        # NumPy adds along axis 0 in float32, one row after the other.
        check=lambda contender: check_close(
            contender, contender.result, expected, rtol=1e-4 if contender.name == "fastclip" else 0.05
        ),
    )


def _blocks(size: Size) -> Work:
    """Slices of two pieces, in place, and slices of one piece and as many elements."""
    count = size.count(1_000_000, 64)
    shape = size.shape(count, 2, 8)
    gradient, axis = normal(shape), size.axis(1)
    original, whole = gradient.copy(), normal((count, 16))
    bound = 0.5 * DEVIATION * 2**0.5
    expected = _expected(original, bound, axis, 2)

    def in_place(name: str, array: Array, axis: int, bound: float) -> Contender:
        start = array.copy()
        return Contender(
            name,
            f"clip_by_norm(axes=[{axis}], out=) of {array.shape}",
            lambda: fastclip.clip_by_norm(array, bound, axes=[axis], out=array),
            lambda: np.copyto(array, start),
        )

    def check(contender: Contender) -> None:
        if contender.name == "fastclip":
            check_close(contender, gradient, expected)

    return Work(
        shapes=(shape,),
        nbytes=gradient.nbytes,
        contenders={
            "fastclip": lambda: in_place("fastclip", gradient, axis, bound),
            "fastclip-reference": lambda: in_place("fastclip-reference", whole, 1, 0.5 * DEVIATION * 4),
        },
        limit=memory_limit(gradient.nbytes, "scale"),
        check=check,
    )


def _bounds(size: Size) -> Work:
    shape = size.shape(size.count(1000, 16), 1000)
    gradient = normal(shape)
    norm = float(np.linalg.norm(gradient.astype(np.float64)))
    bounds = (norm * (0.5 + np.random.default_rng(3).random(shape))).astype(np.float32)
    expected = gradient * (bounds / np.maximum(norm, bounds.astype(np.float64)))

    def numpy() -> Array:
        clipped: Array = gradient * (bounds / np.maximum(np.sqrt(np.sum(np.square(gradient))), bounds))
        return clipped

    return Work(
        shapes=(shape,),
        nbytes=gradient.nbytes,
        contenders=timed(
            fastclip=("clip_by_norm(g, bounds)", lambda: fastclip.clip_by_norm(gradient, bounds)),
            numpy=("g * (c / np.maximum(norm, c))", numpy),
        ),
        limit=memory_limit(2 * gradient.nbytes, "copy"),
        check=lambda contender: check_close(contender, contender.result, expected),
    )


def _case(name: str, prepare: Callable[[Size], Work], at_most: float, against: str = "numpy") -> Cliff:
    return Cliff(name, "f32", prepare, {against: at_most}, has_axes=True)


_NARROW = partial(_slices, rows=1_000_000, columns=4)

CASES = (
    _case("short-slices", partial(_NARROW, clipped_axis=1), 0.5),
    _case("long-slices", partial(_NARROW, clipped_axis=0), 0.5),
    _case("slices-of-blocks", _blocks, 2.0, "fastclip-reference"),
    _case("ord-3-slices", partial(_slices, rows=512, columns=4096, clipped_axis=0, order=3), 0.8),
    _case("bound-per-element", _bounds, 1.0),
)
