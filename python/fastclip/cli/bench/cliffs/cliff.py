"""Rows for shapes and types that are easily slow, and the contenders of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastclip.cli.bench.clipping.benchmark_rows import DEVIATION
from fastclip.cli.bench.clipping.limit import memory_passes
from fastclip.cli.bench.inputs.arrays import Array, filled, normal_block
from fastclip.cli.bench.inputs.shapes import Shape, Shapes
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.row import BenchmarkRow

# The factors of the number of elements: a target holds at half and at twice the size too.
SCALES = {"half": 0.5, "base": 1.0, "double": 2.0}


@dataclass(frozen=True)
class Size:
    """The size of a row.

    Attributes
    ----------
    scale : {"half", "base", "double"}
        The factor of the number of elements.
    is_small : bool
        Whether the row only tests the benchmark.
    is_swapped : bool
        Whether the first two axes of the arrays are swapped.
    """

    scale: str = "base"
    is_small: bool = False
    is_swapped: bool = False

    def count(self, full: int, small: int) -> int:
        """Return the number of elements or arrays of this size: `full` at "base", at least 1."""
        return max(1, round((small if self.is_small else full) * SCALES[self.scale]))

    def shape(self, *shape: int) -> Shape:
        """Return the shape, with its first two axes swapped if the row's are."""
        return (shape[1], shape[0], *shape[2:]) if self.is_swapped else shape

    def axis(self, axis: int) -> int:
        """Return the position of the axis 0 or 1 of a shape that `shape` returned."""
        return 1 - axis if self.is_swapped else axis


@dataclass
class Work:
    """Contenders of a row.

    Attributes
    ----------
    shapes : tuple of shapes
        The shapes of the gradients.
    nbytes : int
        The size of the gradients, in bytes.
    contenders : dict of str to callable
        Functions that make the contenders: "fastclip"; "numpy" or "torch"; "fastclip-reference", which is
        fastclip with other arrays of as many bytes.
    limit : Contender
        Moves the bytes, and does nothing else.
    check : callable
        Raises AssertionError if the last result of a contender is wrong.
    """

    shapes: Shapes
    nbytes: int
    contenders: Mapping[str, Callable[[], Contender]]
    limit: Contender
    check: Callable[[Contender], None] = field(default=lambda contender: None)


@dataclass(frozen=True)
class Cliff:
    """Kind of work for which a library that is fast elsewhere may be slow.

    Attributes
    ----------
    case : str
        The name of the rows.
    dtype : str
        The dtype of the gradients, such as "f64".
    prepare : callable
        Takes a `Size` and returns the `Work` of that size.
    has_axes : bool
        Whether there are rows with the first two axes swapped.
    at_most : dict of str to float
        Upper bounds of fastclip's time divided by that of a contender, by its name. They hold for every row.
    """

    case: str
    dtype: str
    prepare: Callable[[Size], Work]
    at_most: Mapping[str, float]
    has_axes: bool = False

    def rows(self, *, is_small: bool) -> list[CliffRow]:
        """Return the rows: each size, with the axes as they are and swapped."""
        return [
            CliffRow(self, Size(scale, is_small, is_swapped))
            for is_swapped in ((False, True) if self.has_axes else (False,))
            for scale in SCALES
        ]


class CliffRow(BenchmarkRow):
    """Row of a `Cliff` in one size.

    Attributes
    ----------
    cliff : Cliff
        The work.
    size : Size
        The size.
    """

    def __init__(self, cliff: Cliff, size: Size) -> None:
        self.cliff = cliff
        self.size = size
        self.case = cliff.case
        self.dtype = cliff.dtype
        self.shapes: Shapes = ()  # known when the work is prepared
        self._nbytes = 0

    def work(self) -> Work:
        """Return the contenders."""
        work = self.cliff.prepare(self.size)
        self.shapes, self._nbytes = work.shapes, work.nbytes
        return work

    @property
    def name(self) -> str:
        """The name of the row, such as "short-slices/f32/half/swapped"."""
        return "/".join([self.case, self.dtype, self.size.scale, *["swapped"] * self.size.is_swapped])

    @property
    def variant(self) -> tuple[str, str]:
        """Two short texts that distinguish the row from the others in its table."""
        return self.size.scale, "axes swapped" if self.size.is_swapped else ""

    @property
    def nbytes(self) -> int:
        """The size of all gradients, in bytes."""
        return self._nbytes

    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""
        return {
            "case": self.case,
            "dtype": self.dtype,
            "scale": self.size.scale,
            "axes_swapped": self.size.is_swapped,
            **self.describe_size(),
        }


def normal(shape: Shape, dtype: Any = np.float32) -> Array:
    """Return normally distributed elements, in memory that has been written."""
    return filled(np.empty(shape, dtype), normal_block(2024, math.prod(shape), DEVIATION))


def memory_limit(nbytes: int, passes: str) -> Contender:
    """Return the contender that only makes passes over `nbytes` bytes, such as "read + scale"."""
    # A smaller factor would make the elements subnormal after many calls.
    return memory_passes(passes, np.ones(max(1, nbytes // 4), np.float32), -1.0)


def timed(**calls: tuple[str, Callable[[], object]]) -> dict[str, Callable[[], Contender]]:
    """Return contenders that leave their input as it is, by their names: a label and the function to time."""
    return {name: partial(Contender, name, *labelled) for name, labelled in calls.items()}


def check_close(contender: Contender, actual: Any, expected: Any, rtol: float = 1e-4) -> None:
    """Raise AssertionError if a result is not what it has to be."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not np.allclose(actual, expected, rtol=rtol, atol=1e-7):
        raise AssertionError(
            f"{contender.label} gave {actual.reshape(-1)[:4]}, expected {expected.reshape(-1)[:4]}"
        )
