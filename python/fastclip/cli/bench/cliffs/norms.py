"""Norms that are easily slow: of float64, and of other orders than 1, 2 and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

import fastclip
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, check_close, memory_limit, normal, timed


def _norm(size: Size, rows: int, dtype: type, order: float) -> Work:
    shape = (size.count(rows, 16), 1000)
    gradient = normal(shape, dtype)
    flat = gradient.reshape(-1)
    if size.is_swapped:
        gradient = gradient.T

    numpy: tuple[str, Callable[[], float]]
    if order == 2:
        numpy = "np.vdot", lambda: math.sqrt(np.vdot(flat, flat))
    else:
        numpy = "np.linalg.norm", lambda: float(np.linalg.norm(flat, order))
    expected = float(np.sum(np.abs(flat.astype(np.float64)) ** order) ** (1 / order))
    return Work(
        shapes=(gradient.shape,),
        nbytes=gradient.nbytes,
        contenders=timed(
            fastclip=("global_norm", lambda: fastclip.global_norm([gradient], ord=order)), numpy=numpy
        ),
        limit=memory_limit(gradient.nbytes, "read"),
        check=lambda contender: check_close(contender, contender.result, expected),
    )


def _case(name: str, rows: int, dtype: type, order: float, at_most: float) -> Cliff:
    prepare = partial(_norm, rows=rows, dtype=dtype, order=order)
    return Cliff(name, "f64" if dtype is np.float64 else "f32", prepare, {"numpy": at_most}, has_axes=True)


CASES = (
    _case("norm", 500, np.float64, 2, 1.0),
    _case("norm-large", 25_557, np.float64, 2, 1.1),
    _case("norm-ord-0.5", 2000, np.float32, 0.5, 1.0),
    _case("norm-ord-3", 2000, np.float32, 3, 0.5),
)
