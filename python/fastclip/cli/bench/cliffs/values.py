"""Single arrays: small integers, few elements, 16-bit floats, and the columns of a matrix."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, check_close, memory_limit, normal, timed
from fastclip.cli.bench.clipping import benchmark_rows, limit, peers
from fastclip.cli.bench.clipping.benchmark_rows import DEVIATION
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender


def _int8(size: Size) -> Work:
    shape = size.shape(size.count(4096, 16), 1024)
    array = np.random.default_rng(5).integers(-128, 128, shape, np.int8)
    expected = np.minimum(np.maximum(array, -50), 50)
    return Work(
        shapes=(shape,),
        nbytes=array.nbytes,
        contenders=timed(
            fastclip=("clip_by_value", lambda: fastclip.clip_by_value(array, -50, 50)),
            numpy=("np.clip", lambda: np.clip(array, -50, 50)),
        ),
        limit=memory_limit(array.nbytes, "copy"),
        check=lambda contender: check_close(contender, contender.result, expected),
    )


def _few_by_value(size: Size) -> Work:
    gradient = normal((size.count(100, 100),))
    expected = np.clip(gradient, -DEVIATION, DEVIATION)
    return Work(
        shapes=(gradient.shape,),
        nbytes=gradient.nbytes,
        contenders=timed(
            fastclip=("clip_by_value", lambda: fastclip.clip_by_value(gradient, -DEVIATION, DEVIATION)),
            numpy=("np.clip", lambda: np.clip(gradient, -DEVIATION, DEVIATION)),
        ),
        limit=memory_limit(gradient.nbytes, "copy"),
        check=lambda contender: check_close(contender, contender.result, expected),
    )


def _few_by_norm(size: Size) -> Work:
    gradient = normal((size.count(100, 100),))
    bound = 0.5 * float(np.linalg.norm(gradient))

    def numpy() -> Array:
        norm = np.sqrt(np.sum(np.square(gradient)))
        clipped: Array = gradient * (bound / max(norm, bound))
        return clipped

    return Work(
        shapes=(gradient.shape,),
        nbytes=gradient.nbytes,
        contenders=timed(
            fastclip=("clip_by_norm", lambda: fastclip.clip_by_norm(gradient, bound)),
            numpy=("g * (c / max(norm, c))", numpy),
        ),
        limit=memory_limit(gradient.nbytes, "copy"),
        check=lambda contender: check_close(contender, contender.result, 0.5 * gradient),
    )


def _narrow(size: Size, dtype: str) -> Work:
    row = benchmark_rows.Row(
        "25.6M",
        "global-norm",
        dtype,
        in_place=True,
        clipped=True,
        shapes=(size.shape(size.count(25_557, 4), 1000),),
    )
    work = benchmark_rows.Workload(row)

    def make(name: str) -> Any:
        contender = peers.contender(name, work)
        assert contender is not None
        return contender

    return Work(
        shapes=row.shapes,
        nbytes=row.nbytes,
        contenders={name: partial(make, name) for name in ("fastclip", "torch")},
        limit=limit.limit(work),
        check=lambda contender: peers.check_result(contender, work),
    )


def _columns(size: Size) -> Work:
    """Columns of one matrix, and rows of another one."""
    count = size.count(1200, 8)
    matrix, other = normal((256, count)), normal((count, 256))

    def in_place(name: str, label: str, memory: Array, arrays: list[Array]) -> Contender:
        start = memory.copy()
        bound = 0.5 * float(np.linalg.norm(memory))
        return Contender(
            name,
            label,
            lambda: fastclip.clip_by_global_norm(arrays, bound, out=arrays),
            lambda: np.copyto(memory, start),
        )

    expected = 0.5 * matrix

    def check(contender: Contender) -> None:
        if contender.name == "fastclip":
            check_close(contender, matrix, expected)

    return Work(
        shapes=((256,),) * count,
        nbytes=matrix.nbytes,
        contenders={
            "fastclip": lambda: in_place("fastclip", "the columns of a matrix", matrix, list(matrix.T)),
            "fastclip-reference": lambda: in_place(
                "fastclip-reference", "the rows of a matrix", other, list(other)
            ),
        },
        limit=memory_limit(matrix.nbytes, "read + scale"),
        check=check,
    )


def narrow_bounds(dtype: str) -> dict[str, float]:
    """Return the upper bounds for 16-bit floats, which depend on the SIMD level."""
    if fastclip.config()["isa"] == "avx512":
        return {"limit": 1.3}
    return {"torch": 0.4 if dtype == "f16" else 0.7}


CASES = (
    Cliff("clip-integers", "i8", _int8, {"numpy": 1.1}, has_axes=True),
    Cliff("100-by-value", "f32", _few_by_value, {"numpy": 1.1}),
    Cliff("100-by-norm", "f32", _few_by_norm, {"numpy": 1.1}),
    *(
        Cliff("25.6M", dtype, partial(_narrow, dtype=dtype), narrow_bounds(dtype), has_axes=True)
        for dtype in ("f16", "bf16")
    ),
    Cliff("columns", "f32", _columns, {"fastclip-reference": 2.0}),
)
