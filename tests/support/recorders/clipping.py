"""Records the results of TensorFlow's clip functions as test data.

To record, install ``tensorflow-cpu`` and run ``python -m support.recorders.clipping`` in ``tests/``. The
recorder calls TensorFlow eagerly on the CPU with the cases below and writes inputs and results to
``support/data/tensorflow_clip.npz``. ``functions/test_tensorflow_agreement.py`` compares fastclip with that
file and needs no TensorFlow: it imports the cases and the reader of the file from this module, which imports
TensorFlow only to record.

There are three groups of cases:

``agreement``
    fastclip returns TensorFlow's result, up to the rounding errors of TensorFlow's low-precision steps.
``refusal``
    Both raise; the case names the exception that fastclip raises.
``difference``
    fastclip deliberately returns another result; each of these cases has its own test.

The file holds one flat array per dtype (bfloat16 as its bits in uint16), the cases as JSON that points into
those arrays, and the versions of the libraries that produced it. Nothing in it is pickled. The same versions
write the same bytes again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.packed_arrays import BFLOAT16, Pack, Slices, decode, dtype_of

DATA_FILE = Path(__file__).parents[1] / "data" / "tensorflow_clip.npz"
SEED = 20240611

AGREEMENT = "agreement"
REFUSAL = "refusal"
DIFFERENCE = "difference"

FLOATS = ("float16", "bfloat16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

NAN = float("nan")
INF = float("inf")

# The bounds used with float16 and bfloat16 tensors have few significant bits, so that TensorFlow's rounding
# of the bound to the tensor's dtype changes nothing.
CLIP_NORM = 1.25


@dataclass(frozen=True)
class Case:
    """A call of one function and, once recorded, its result.

    Parameters
    ----------
    id : str
        ``function-dtype-label``, which is also the id of the test.
    function : str
        The function's name in fastclip.
    arguments : dict
        Keyword arguments: arrays, `Slices`, numbers, strings, None, lists and tuples.
    group : str
        ``agreement``, ``refusal`` or ``difference``.
    raises : str or None
        The name of the exception that fastclip raises, for a refusal.
    result : Any
        TensorFlow's result, or the name of the exception that it raised.
    """

    id: str
    function: str
    arguments: dict[str, Any]
    group: str = AGREEMENT
    raises: str | None = None
    result: Any = None


# --- the cases ---------------------------------------------------------------


class _Numbers:
    """Random inputs of a case, generated from a seed and the case's id.

    Adding or removing other cases does not change the inputs of a case.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = np.random.default_rng(seed)

    def restart(self, case_id: str) -> None:
        self.random = np.random.default_rng([self.seed, zlib.crc32(case_id.encode())])

    def normal(self, dtype: str, *shape: int, scale: float = 1.0) -> NDArray[Any]:
        return (scale * self.random.standard_normal(shape)).astype(dtype_of(dtype))

    def integers(self, dtype: str, *shape: int, low: int, high: int) -> NDArray[Any]:
        return self.random.integers(low, high, shape, dtype=np.dtype(dtype), endpoint=True)

    def complex_normal(self, dtype: str, *shape: int) -> NDArray[Any]:
        parts = self.random.standard_normal((2, *shape))
        return np.asarray(parts[0] + 1j * parts[1]).astype(dtype)

    def slices(self, dtype: str, rows: int = 4, columns: int = 3) -> Slices:
        """Returns slices whose first and last rows have the same index."""
        indices = np.arange(rows, dtype=np.int64)[::-1].copy()
        indices[0] = indices[-1]
        return Slices(
            self.normal(dtype, rows, columns),
            indices,
            np.array([rows + 3, columns], dtype=np.int64),
        )


Build = Callable[[_Numbers], dict[str, Any]]


class _Cases:
    """A list of cases, each built from its own random numbers."""

    def __init__(self, seed: int) -> None:
        self.numbers = _Numbers(seed)
        self.cases: list[Case] = []

    def add(
        self,
        function: str,
        label: str,
        build: Build,
        *,
        group: str = AGREEMENT,
        raises: str | None = None,
    ) -> None:
        case_id = f"{function}-{label}"
        self.numbers.restart(case_id)
        self.cases.append(Case(case_id, function, build(self.numbers), group, raises))


def build_cases(seed: int = SEED) -> list[Case]:
    """Returns all cases, without results."""
    cases = _Cases(seed)
    for dtype in FLOATS:
        _clip_by_value_floats(cases, dtype)
        _clip_by_norm(cases, dtype)
        _global_norm(cases, dtype)
        _clip_by_global_norm(cases, dtype)
    for dtype in SIGNED + UNSIGNED:
        _clip_by_value_integers(cases, dtype)
    _clip_by_average_norm(cases)
    _lists_without_arrays(cases)
    _clip_by_global_norm_with_use_norm(cases)
    _refusals(cases)
    _differences(cases)
    ids = [case.id for case in cases.cases]
    if len(set(ids)) != len(ids):
        raise ValueError("two cases have the same id")
    return cases.cases


def _clip_by_value_floats(cases: _Cases, d: str) -> None:
    def bounded(t: Any, lo: Any, hi: Any, **more: Any) -> dict[str, Any]:
        return {"t": t, "clip_value_min": lo, "clip_value_max": hi, **more}

    def add(label: str, build: Build) -> None:
        cases.add("clip_by_value", f"{d}-{label}", build)

    def special() -> NDArray[Any]:
        return np.array([NAN, 1.0, INF, -INF, -0.0, 0.0, -NAN, 3.0, -3.0]).astype(dtype_of(d))

    def bound(numbers: _Numbers, *shape: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns two arrays, each element of the first not above that of the second."""
        low, high = np.sort(numbers.normal("float64", 2, *shape), axis=0).astype(dtype_of(d))
        return np.asarray(low), np.asarray(high)

    add("scalars", lambda n: bounded(n.normal(d, 3, 5, scale=2), -1.25, 0.75))
    add("integer-scalars", lambda n: bounded(n.normal(d, 11, scale=2), -1, 1, name="clip"))
    add("rounded-scalars", lambda n: bounded(n.normal(d, 4, 5), -0.1, 0.3))
    add("zero-d-bounds", lambda n: bounded(n.normal(d, 7), *bound(n)))
    add("per-row", lambda n: bounded(n.normal(d, 3, 5), *bound(n, 3, 1)))
    add("per-column", lambda n: bounded(n.normal(d, 3, 5), *bound(n, 5)))
    add("per-element", lambda n: bounded(n.normal(d, 3, 5), *bound(n, 3, 5)))
    add(
        "row-and-column",
        lambda n: bounded(n.normal(d, 3, 5), bound(n, 3, 1)[0], bound(n, 1, 5)[1]),
    )
    add("4-d", lambda n: bounded(n.normal(d, 2, 3, 2, 2), *bound(n, 3, 1, 2)))
    add("row-and-scalar", lambda n: bounded(n.normal(d, 3, 5), bound(n, 3, 1)[0], 2.5))
    add("min-above-max", lambda n: bounded(n.normal(d, 3, 5), 0.5, -0.5))
    add("0-d", lambda n: bounded(np.array(3.5, dtype_of(d)), -1.0, 1.0))
    add("empty", lambda n: bounded(n.normal(d, 0, 3), -1.0, 1.0))
    add("nan-and-inf", lambda n: bounded(special(), -1.5, 1.5))
    add("only-min", lambda n: bounded(special(), -1.5, INF))
    add("only-max", lambda n: bounded(special(), -INF, 1.5))
    add("zero-bounds", lambda n: bounded(special(), 0.0, 0.0))
    add("nan-bound", lambda n: bounded(special(), -1.5, NAN))
    add(
        "nan-in-bounds",
        lambda n: bounded(n.normal(d, 3, 4), np.array([[-0.5], [NAN], [-0.25]], dtype_of(d)), 0.5),
    )
    add("slices", lambda n: bounded(n.slices(d), -0.5, 0.5))
    add(
        "slices-per-column",
        lambda n: bounded(n.slices(d)._replace(dense_shape=None), *bound(n, 3)),
    )


def _clip_by_value_integers(cases: _Cases, d: str) -> None:
    limits = np.iinfo(d)
    lowest, highest = int(limits.min), int(limits.max)
    low, high = (-90, 90) if lowest < 0 else (0, 180)
    middle = (low + high) // 2

    def add(label: str, t: Callable[[_Numbers], Any], lo: Any, hi: Any) -> None:
        cases.add(
            "clip_by_value",
            f"{d}-{label}",
            lambda n: {"t": t(n), "clip_value_min": lo, "clip_value_max": hi},
        )

    def t(n: _Numbers) -> NDArray[Any]:
        return n.integers(d, 3, 5, low=low, high=high)

    def extremes(n: _Numbers) -> NDArray[Any]:
        return np.array([lowest, lowest + 1, lowest + 2, highest - 2, highest - 1, highest], d)

    add("scalars", t, middle - 20, middle + 30)
    add("per-row", t, np.array([[middle - 20], [middle], [middle + 9]], d), middle + 30)
    add("per-column", t, middle - 20, np.array([10, 20, 30, 40, 50], d))
    add("min-above-max", t, middle + 10, middle - 10)
    # Above 2**53 for the 64-bit types: the results are wrong if the bounds are converted to float64.
    add("extremes", extremes, lowest + 1, highest - 1)
    add("empty", lambda n: np.zeros((2, 0), d), middle, middle)
    add("slices", lambda n: Slices(t(n), np.array([5, 0, 0])), middle - 20, middle + 30)


def _clip_by_norm(cases: _Cases, d: str) -> None:
    def add(
        label: str,
        t: Callable[[_Numbers], Any],
        clip_norm: Any = CLIP_NORM,
        **more: Any,
    ) -> None:
        cases.add("clip_by_norm", f"{d}-{label}", lambda n: {"t": t(n), "clip_norm": clip_norm, **more})

    def normal(*shape: int, scale: float = 1.0) -> Callable[[_Numbers], Any]:
        return lambda n: n.normal(d, *shape, scale=scale)

    def constant(values: Any) -> Callable[[_Numbers], Any]:
        return lambda n: np.array(values, dtype=np.float64).astype(dtype_of(d))

    add("1-d", normal(7))
    add("2-d", normal(3, 4))
    add("3-d", normal(2, 3, 4))
    add("4-d", normal(2, 3, 2, 2))
    add("0-d", constant(5.0))
    add("empty", normal(0, 3))
    add("axes-0", normal(3, 4), axes=[0])
    add("axes-1", normal(3, 4), axes=[1])
    add("axes-last", normal(2, 3, 4), axes=[-1])
    add("axes-0-and-2", normal(2, 3, 4), axes=[0, 2])
    add("axes-middle", normal(2, 5, 3), axes=[1])
    add("axes-0-and-2-of-4-d", normal(2, 3, 2, 2), axes=[0, 2])
    add("axes-all-but-first", normal(2, 3, 2, 2), axes=[1, 2, 3])
    add("axes-all", normal(2, 3, 4), axes=[0, 1, 2])
    add("axes-none-of-them", normal(3, 4, scale=2), axes=[])
    add("axes-integer", normal(3, 4), axes=1)
    add("axes-tuple", normal(2, 3, 4), axes=(-3, -1))
    add("axes-array", normal(2, 3, 4), axes=np.array([1, 2], np.int32))
    add("axes-empty-tensor", normal(0, 3), axes=[0])
    add("below-bound", normal(3, 4), 100.0)
    add("some-rows-below-bound", constant([[3, 4, 0], [0.25, 0.5, 0], [0, 0, 0]]), axes=[1])
    add("norm-equals-bound", constant([3.0, -4.0]), 5.0)
    add("zeros", constant(np.zeros((3, 2))))
    add("zero-clip-norm", normal(3, 4), 0.0)
    add("negative-clip-norm", normal(3, 4), -2.0)
    add("integer-clip-norm", normal(3, 4), 2, name="clip")
    add("0-d-clip-norm", normal(3, 4), np.array(1.25, np.float32))
    add("0-d-negative-clip-norm", normal(3, 4), np.array(-1.25, np.float32))
    add("clip-norm-per-row", normal(3, 4), np.array([[0.5], [1.25], [9.0]]), axes=[1])
    add("clip-norm-per-column", normal(3, 4), np.array([0.5, 1.25, 9.0, -1.0]), axes=[0])
    add("clip-norm-per-row-of-one-norm", normal(3, 4), np.array([[0.5], [1.25], [9.0]]))
    add("nan", constant([1.0, NAN, 2.0, 0.0]))
    add("nan-in-a-row", constant([[3.0, 4.0], [NAN, 1.0], [0.5, 0.25]]), axes=[1])
    add("nan-in-a-column", constant([[3.0, 4.0], [NAN, 1.0], [0.5, 0.25]]), axes=[0])
    add("mixed-magnitudes", constant([100.0, -0.0625, 3.0, 0.001, -20.0]), 4.0)
    add("slices", lambda n: n.slices(d))
    add("slices-axes-1", lambda n: n.slices(d, 5, 4), axes=[1])
    add("slices-below-bound", lambda n: n.slices(d), 50.0)
    add("slices-without-shape", lambda n: n.slices(d)._replace(dense_shape=None))


def _clip_by_average_norm(cases: _Cases) -> None:
    # float32 alone: TensorFlow's function multiplies by a float32 element count and fails for every other
    # dtype.
    def add(label: str, t: Callable[[_Numbers], Any], clip_norm: Any = 0.125, **more: Any) -> None:
        cases.add(
            "clip_by_average_norm",
            f"float32-{label}",
            lambda n: {"t": t(n), "clip_norm": clip_norm, **more},
        )

    add("1-d", lambda n: n.normal("float32", 7))
    add("2-d", lambda n: n.normal("float32", 3, 4))
    add("3-d", lambda n: n.normal("float32", 2, 3, 4))
    add("4-d", lambda n: n.normal("float32", 2, 3, 2, 2))
    add("0-d", lambda n: np.array(-3.0, np.float32), name="clip")
    add("empty", lambda n: n.normal("float32", 0, 3))
    add("decimal-clip-norm", lambda n: n.normal("float32", 5, 5), 0.03)
    add("integer-clip-norm", lambda n: n.normal("float32", 4, scale=10), 1)
    add("below-bound", lambda n: n.normal("float32", 3, 4), 10.0)
    add("between-average-and-root-mean-square", lambda n: n.normal("float32", 100), 0.5)
    add("zeros", lambda n: np.zeros((3, 2), np.float32))
    add("zero-clip-norm", lambda n: n.normal("float32", 3, 4), 0.0)
    add("nan", lambda n: np.array([1.0, NAN, 2.0], np.float32))


def _tensors(n: _Numbers, d: str) -> list[Any]:
    """Returns tensors of several shapes, with None and slices among them."""
    return [
        n.normal(d, 3, 4),
        None,
        n.normal(d, 5),
        n.slices(d),
        n.normal(d, 2, 1, 3),
        np.array(0.5, dtype_of(d)),
        None,
        n.normal(d, 0, 2),
    ]


def _global_norm(cases: _Cases, d: str) -> None:
    def add(label: str, t_list: Callable[[_Numbers], Any], **more: Any) -> None:
        cases.add("global_norm", f"{d}-{label}", lambda n: {"t_list": t_list(n), **more})

    add("one", lambda n: [n.normal(d, 3, 4)])
    add("mixed", lambda n: _tensors(n, d), name="norm")
    add("tuple", lambda n: tuple(_tensors(n, d)))
    add("many", lambda n: [n.normal(d, 3) for _ in range(20)])
    add("slices", lambda n: [n.slices(d)])
    add("zeros", lambda n: [np.zeros((2, 3), dtype_of(d)), None])
    add("pythagorean", lambda n: [np.array(v, dtype_of(d)) for v in ([2.0, -3.0], [6.0])])
    add("nan", lambda n: [n.normal(d, 3), np.array([NAN, 1.0], dtype_of(d))])
    add("inf", lambda n: [n.normal(d, 3), np.array([INF, 1.0], dtype_of(d))])
    add("minus-inf", lambda n: [np.array([-INF], dtype_of(d)), None])
    add("nan-and-inf", lambda n: [np.array(v, dtype_of(d)) for v in (NAN, -INF, 2.0)])


def _clip_by_global_norm(cases: _Cases, d: str) -> None:
    def add(
        label: str,
        t_list: Callable[[_Numbers], Any],
        clip_norm: Any = CLIP_NORM,
        **more: Any,
    ) -> None:
        cases.add(
            "clip_by_global_norm",
            f"{d}-{label}",
            lambda n: {"t_list": t_list(n), "clip_norm": clip_norm, **more},
        )

    def constants(*values: Any) -> Callable[[_Numbers], Any]:
        return lambda n: [np.array(v, np.float64).astype(dtype_of(d)) for v in values]

    add("one", lambda n: [n.normal(d, 3, 4)])
    add("mixed", lambda n: _tensors(n, d), name="clip")
    add("tuple", lambda n: tuple(_tensors(n, d)))
    add("many", lambda n: [n.normal(d, 3) for _ in range(20)])
    add("slices", lambda n: [n.slices(d), n.slices(d, 6, 2)._replace(dense_shape=None)])
    add("below-bound", lambda n: _tensors(n, d), 64.0)
    add("norm-equals-bound", constants([2.0, -3.0], [6.0]), 7.0)
    add("same-tensor-twice", lambda n: [n.normal(d, 4)] * 2)
    add("zeros", constants([0.0, 0.0], [[0.0]]))
    add("zero-clip-norm", lambda n: _tensors(n, d), 0.0)
    add("integer-clip-norm", lambda n: _tensors(n, d), 2)
    add("0-d-clip-norm", lambda n: _tensors(n, d), np.array(1.25, dtype_of(d)))
    add("mixed-magnitudes", constants([100.0, 0.001], [-0.0625, -20.0], [3.0]), 4.0)
    add("nan", constants([1.0, NAN, 2.0], [3.0]))
    add("inf", constants([1.0, 2.0], [INF, 0.0]))
    add("minus-inf", constants([1.0, 2.0], [[-INF]]))
    add("nan-and-inf", constants([NAN, 2.0], [INF, -INF], [0.0]))
    add("nan-below-bound", constants([0.25, NAN], [0.5]), 64.0)
    add(
        "nan-in-slices",
        lambda n: [
            n.normal(d, 3),
            None,
            Slices(np.array([[NAN, 1.0], [2.0, 3.0]], dtype_of(d)), np.array([4, 4])),
        ],
    )


def _lists_without_arrays(cases: _Cases) -> None:
    cases.add("global_norm", "empty-list", lambda n: {"t_list": []})
    cases.add("global_norm", "only-none", lambda n: {"t_list": [None, None]})
    cases.add("clip_by_global_norm", "empty-list", lambda n: {"t_list": [], "clip_norm": 1.0})
    cases.add("clip_by_global_norm", "only-none", lambda n: {"t_list": [None], "clip_norm": 1.0})


def _clip_by_global_norm_with_use_norm(cases: _Cases) -> None:
    def add(label: str, t_list: Callable[[_Numbers], Any], use_norm: Any) -> None:
        cases.add(
            "clip_by_global_norm",
            f"use_norm-{label}",
            lambda n: {"t_list": t_list(n), "clip_norm": CLIP_NORM, "use_norm": use_norm},
        )

    def floats(d: str) -> None:
        def tensors(n: _Numbers) -> list[Any]:
            return _tensors(n, d)

        add(f"{d}-number", tensors, 3.5)
        add(f"{d}-array", tensors, np.array(3.5, dtype_of(d)))
        add(f"{d}-scalar", tensors, dtype_of(d).type(3.5))
        add(f"{d}-below-bound", tensors, 0.75)
        add(f"{d}-zero", tensors, 0.0)
        add(f"{d}-nan", tensors, NAN)
        add(f"{d}-inf", tensors, INF)
        # With `use_norm` no norm is computed, so only the element that is NaN becomes NaN.
        add(f"{d}-nan-among-values", lambda n: [np.array([NAN, 1, -2], dtype_of(d))], 5.0)

    def complexes(d: str) -> None:
        add(d, lambda n: [n.complex_normal(d, 3, 2), n.complex_normal(d, 4)], np.float32(3))

    for d in FLOATS:
        floats(d)
    for d in ("complex64", "complex128"):
        complexes(d)
    add(
        "mixed-dtypes",
        lambda n: [
            n.normal("float32", 2, 3),
            n.normal("float64", 4),
            None,
            n.normal("float16", 3),
            n.normal("bfloat16", 5),
            n.complex_normal("complex64", 2),
            n.slices("float64"),
        ],
        np.float32(4.5),
    )


def _refusals(cases: _Cases) -> None:
    def add(function: str, label: str, raises: str, **arguments: Any) -> None:
        cases.add(function, label, lambda n: arguments, group=REFUSAL, raises=raises)

    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    integers = np.arange(6, dtype=np.int32)
    bounds = {"clip_value_min": 0.0, "clip_value_max": 1.0}

    add(
        "clip_by_value",
        "bound-that-enlarges",
        "ValueError",
        t=matrix,
        clip_value_min=np.zeros((2, 2, 3), np.float32),
        clip_value_max=9.0,
    )
    add(
        "clip_by_value",
        "bound-that-enlarges-an-axis-of-one",
        "ValueError",
        t=matrix[:, :1],
        clip_value_min=-1.0,
        clip_value_max=matrix,
    )
    add(
        "clip_by_value",
        "bound-that-does-not-broadcast",
        "ValueError",
        t=matrix,
        clip_value_min=np.zeros(2, np.float32),
        clip_value_max=1.0,
    )
    add("clip_by_value", "int32-with-float-bounds", "TypeError", t=integers, **bounds)
    add("clip_by_value", "complex64", "TypeError", t=matrix.astype(np.complex64), **bounds)
    add(
        "clip_by_norm",
        "clip-norm-that-enlarges",
        "ValueError",
        t=matrix,
        clip_norm=np.ones((2, 2, 3), np.float32),
    )
    add("clip_by_norm", "axis-out-of-range", "ValueError", t=matrix, clip_norm=1.0, axes=[2])
    add("clip_by_norm", "axis-twice", "ValueError", t=matrix, clip_norm=1.0, axes=[1, -1])
    add("clip_by_norm", "int32", "TypeError", t=integers, clip_norm=1.0)
    for function in ("global_norm", "clip_by_global_norm"):
        more: dict[str, Any] = {} if function == "global_norm" else {"clip_norm": 1.0}
        add(function, "bare-array", "TypeError", t_list=matrix, **more)
        add(function, "string", "TypeError", t_list="gradients", **more)
        add(function, "number", "TypeError", t_list=3.0, **more)
        add(function, "none", "TypeError", t_list=None, **more)
        add(function, "int32", "TypeError", t_list=[matrix, integers], **more)


def _differences(cases: _Cases) -> None:
    def add(function: str, label: str, **arguments: Any) -> None:
        cases.add(function, label, lambda n: arguments, group=DIFFERENCE)

    def single(*values: Any) -> NDArray[Any]:
        return np.array(values, np.float32)

    cases.add(
        "clip_by_norm",
        "unclipped",
        lambda n: {"t": n.normal("float32", 500), "clip_norm": 41.7},
        group=DIFFERENCE,
    )
    cases.add(
        "clip_by_global_norm",
        "unclipped",
        lambda n: {"t_list": [n.normal("float32", 20)], "clip_norm": 41.0},
        group=DIFFERENCE,
    )
    add("clip_by_norm", "inf", t=single(1.0, INF, -2.0, 0.0), clip_norm=1.0)
    add(
        "clip_by_norm",
        "inf-in-a-row",
        t=single([3.0, 4.0], [-INF, 1.0], [0.5, 0.25]),
        clip_norm=1.0,
        axes=[1],
    )
    add("clip_by_average_norm", "inf", t=single(1.0, INF, -2.0, 0.0), clip_norm=1.0)
    add("clip_by_norm", "infinite-clip-norm", t=single(3.0, 0.0, -4.0), clip_norm=INF)
    add("clip_by_average_norm", "infinite-clip-norm", t=single(3.0, 0.0, -4.0), clip_norm=INF)
    add("clip_by_global_norm", "infinite-clip-norm", t_list=[single(3.0, 0.0, -4.0)], clip_norm=INF)
    add("clip_by_norm", "zeros-and-zero-clip-norm", t=np.zeros(3, np.float32), clip_norm=0.0)
    add(
        "clip_by_norm",
        "zero-row-and-zero-clip-norm",
        t=single([3.0, 4.0], [0.0, 0.0]),
        clip_norm=0.0,
        axes=[1],
    )
    add(
        "clip_by_global_norm",
        "zeros-and-zero-clip-norm",
        t_list=[np.zeros(3, np.float32)],
        clip_norm=0.0,
    )
    add("clip_by_average_norm", "negative-clip-norm", t=single(3.0, -4.0), clip_norm=-1.0)
    add("clip_by_global_norm", "negative-clip-norm", t_list=[single(3.0, -4.0)], clip_norm=-1.0)
    add("clip_by_norm", "nan-clip-norm", t=single(3.0, -4.0), clip_norm=NAN)
    add("clip_by_average_norm", "nan-clip-norm", t=single(3.0, -4.0), clip_norm=NAN)
    add("clip_by_global_norm", "nan-clip-norm", t_list=[single(3.0, -4.0)], clip_norm=NAN)

    extremes = {
        "float16-large": ("float16", 3e4, 1.0),
        "bfloat16-large": ("bfloat16", 1e30, 1.0),
        "float32-large": ("float32", 1e30, 1.0),
        "float64-large": ("float64", 1e308, 1.0),
        "float16-small": ("float16", 2.0**-14, 2.0**-14),
        "bfloat16-small": ("bfloat16", 2.0**-90, 2.0**-90),
        "float32-small": ("float32", 2.0**-90, 2.0**-90),
        "float64-small": ("float64", 1e-320, 1e-320),
    }
    for label, (dtype, size, clip_norm) in extremes.items():
        t = (np.array([0.75, -1.0, 0.0]) * size).astype(dtype_of(dtype))
        add("clip_by_norm", label, t=t, clip_norm=clip_norm)
        add("clip_by_global_norm", label, t_list=[t, None], clip_norm=clip_norm)

    # A float32 sum of so many elements has visible rounding errors: TensorFlow's norm is 99.99996.
    add("global_norm", "long-sum", t_list=[np.full(1_000_000, 0.1, np.float32)])
    halves = np.full(4095, 1.001, np.float16)
    add("global_norm", "float16", t_list=[halves])
    add("global_norm", "bfloat16", t_list=[halves.astype(BFLOAT16)])
    add("clip_by_global_norm", "float16-norm", t_list=[halves[:9]], clip_norm=1.0)

    add("clip_by_average_norm", "float64", t=np.array([3.0, -4.0]), clip_norm=0.5)
    add("clip_by_average_norm", "float16", t=np.array([3.0, -4.0], np.float16), clip_norm=0.5)
    add(
        "clip_by_average_norm",
        "slices",
        t=Slices(single([3.0, 0.0], [0.0, -4.0]), np.array([1, 1]), np.array([3, 2])),
        clip_norm=0.25,
    )
    add("clip_by_norm", "complex64", t=np.array([3.0, 4.0j], np.complex64), clip_norm=1.0)
    add("global_norm", "complex64", t_list=[np.array([3.0, 4.0j], np.complex64)])
    add("global_norm", "mixed-dtypes", t_list=[single(3.0), np.array([4.0]), np.array(12.0, np.float16)])
    add(
        "clip_by_global_norm",
        "mixed-dtypes",
        t_list=[single(3.0), np.array([4.0]), np.array([12.0], np.float16)],
        clip_norm=1.0,
    )


# --- TensorFlow --------------------------------------------------------------


def import_tensorflow() -> Any:
    """Imports TensorFlow and configures it to return the same bits on every run."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tf: Any = importlib.import_module("tensorflow")
    # TensorFlow raises when an operation has run before; the settings are then left as they are.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.set_visible_devices([], "GPU")
    return tf


def to_tensorflow(tf: Any, value: Any) -> Any:
    """Converts arrays and slices to TensorFlow's types, and returns anything else unchanged."""
    if isinstance(value, Slices):
        return tf.IndexedSlices(
            tf.constant(value.values),
            tf.constant(value.indices),
            None if value.dense_shape is None else tf.constant(value.dense_shape),
        )
    if isinstance(value, np.ndarray | np.generic):
        return tf.constant(value)
    if isinstance(value, list | tuple):
        return type(value)(to_tensorflow(tf, entry) for entry in value)
    return value


def from_tensorflow(tf: Any, value: Any) -> Any:
    """Converts TensorFlow's tensors and slices to arrays and `Slices`, the reverse of `to_tensorflow`."""
    if isinstance(value, tf.IndexedSlices):
        shape = value.dense_shape
        return Slices(
            np.asarray(value.values.numpy()),
            np.asarray(value.indices.numpy()),
            None if shape is None else np.asarray(shape.numpy()),
        )
    if isinstance(value, tf.Tensor):
        return np.asarray(value.numpy())
    if isinstance(value, list | tuple):
        return type(value)(from_tensorflow(tf, entry) for entry in value)
    return value


def use_norm_dtype(arguments: Mapping[str, Any]) -> np.dtype[Any] | None:
    """Returns the dtype in which TensorFlow holds ``use_norm``, or None without that argument.

    TensorFlow accepts only a tensor, so a number is passed as a tensor of the dtype of the list's first
    entry.
    """
    use_norm = arguments.get("use_norm")
    if use_norm is None:
        return None
    if isinstance(use_norm, np.ndarray | np.generic):
        return use_norm.dtype
    first = next(entry for entry in arguments["t_list"] if entry is not None)
    return (first.values if isinstance(first, Slices) else first).dtype


def call_tensorflow(tf: Any, case: Case) -> Any:
    """Calls TensorFlow with a case's arguments and returns its result unconverted."""
    function = {
        "clip_by_value": tf.clip_by_value,
        "clip_by_norm": tf.clip_by_norm,
        "clip_by_average_norm": tf.compat.v1.clip_by_average_norm,
        "global_norm": tf.linalg.global_norm,
        "clip_by_global_norm": tf.clip_by_global_norm,
    }[case.function]
    arguments = dict(case.arguments)
    dtype = use_norm_dtype(arguments)
    if dtype is not None:
        arguments["use_norm"] = np.asarray(arguments["use_norm"], dtype)
    arguments = {
        # In a refusal `t_list` may be a bare array, which TensorFlow has to receive unconverted.
        key: value if case.group == REFUSAL and key == "t_list" else to_tensorflow(tf, value)
        for key, value in arguments.items()
    }
    return function(**arguments)


def run_tensorflow(tf: Any, case: Case) -> Any:
    """Returns TensorFlow's result for a case in NumPy's types, or the name of its exception."""
    try:
        return from_tensorflow(tf, call_tensorflow(tf, case))
    except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
        if case.group == AGREEMENT:
            raise
        return type(error).__name__


# --- the file ----------------------------------------------------------------


def save(path: Path, cases: Iterable[Case], versions: Mapping[str, str]) -> None:
    """Writes cases with their results."""
    pack = Pack()
    text = json.dumps(
        [
            {
                "id": case.id,
                "function": case.function,
                "arguments": {key: pack.encode(value) for key, value in case.arguments.items()},
                "group": case.group,
                "raises": case.raises,
                "result": pack.encode(case.result),
            }
            for case in cases
        ],
        separators=(",", ":"),
    )
    contents = {
        "cases": np.frombuffer(text.encode(), np.uint8),
        "versions": np.frombuffer(json.dumps(dict(versions)).encode(), np.uint8),
        **pack.arrays(),
    }
    np.savez_compressed(path, **contents)  # type: ignore[arg-type]


def load(path: Path = DATA_FILE) -> tuple[dict[str, str], list[Case]]:
    """Reads the versions of the libraries that recorded the file, and its cases."""
    with np.load(path, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files}
    flat["bfloat16"] = flat["bfloat16"].view(BFLOAT16)
    versions: dict[str, str] = json.loads(flat["versions"].tobytes())
    cases = [
        Case(
            entry["id"],
            entry["function"],
            {key: decode(value, flat) for key, value in entry["arguments"].items()},
            entry["group"],
            entry["raises"],
            decode(entry["result"], flat),
        )
        for entry in json.loads(flat["cases"].tobytes())
    ]
    return versions, cases


def main() -> None:
    """Records all cases."""
    parser = argparse.ArgumentParser(description="Record TensorFlow's clip functions as test data.")
    parser.add_argument("--output", type=Path, default=DATA_FILE, help="the file to write")
    output: Path = parser.parse_args().output

    tf = import_tensorflow()
    cases = [replace(case, result=run_tensorflow(tf, case)) for case in build_cases()]
    output.parent.mkdir(parents=True, exist_ok=True)
    save(output, cases, {"tensorflow": tf.__version__, "numpy": np.__version__})
    print(f"{len(cases)} cases of TensorFlow {tf.__version__} in {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
