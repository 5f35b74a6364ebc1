"""The rows of the benchmark, and the gradients that a row clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip.cli.bench.inputs.arrays import array_dtype, filled, normal_block, sum_of_squares
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.suites.row import BenchmarkRow

# The elements are normal with this deviation: the square of one is still a normal float16,
# and the sum of the squares of 124 M of them is still below the largest float16.
DEVIATION = 0.01

# The models are clipped by their global norm; the other cases are a single tensor.
MODELS = ("gpt2", "resnet50", "many", "mlp")
CASES = (*MODELS, "25.6M", "clip-by-norm", "clip-by-value")
DTYPES = ("f32", "f16", "bf16")
_DEFAULT_DTYPES = {"25.6M": ("f16", "bf16")}  # the others: f32


@dataclass(frozen=True)
class Row(BenchmarkRow):
    """What one line of the benchmark times.

    Attributes
    ----------
    case : str
        One of `CASES`.
    operation : {"global-norm", "norm-of-rows", "value"}
        The clipping function.
    dtype : {"f32", "f16", "bf16"}
        The type of the gradients.
    in_place : bool
        Whether the gradients are overwritten.
    clipped : bool
        Whether the bound is below the norm, so that there is something to do.
    shapes : tuple of shapes
        The shapes of the gradients.
    """

    case: str
    operation: str
    dtype: str
    in_place: bool
    clipped: bool
    shapes: Shapes

    @property
    def name(self) -> str:
        """The name of the row, such as "gpt2/f32/in-place/clipped"."""
        place = "in-place" if self.in_place else "out-of-place"
        return f"{self.case}/{self.dtype}/{place}/{'clipped' if self.clipped else 'unclipped'}"

    @property
    def variant(self) -> tuple[str, str]:
        """What tells the row from the others of its case, in two lines."""
        return "in place" if self.in_place else "out of place", "clipped" if self.clipped else "unclipped"

    def describe(self) -> dict[str, Any]:
        """Return the row's part of the JSON output."""
        return {
            "case": self.case,
            "operation": self.operation,
            "dtype": self.dtype,
            "in_place": self.in_place,
            "clipped": self.clipped,
            **self.describe_size(),
        }


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[Row]:
    """Return all rows, of the types asked for or of each case's own."""
    found = []
    for case in CASES:
        shapes = SHAPES[size][case]()
        for dtype in dtypes if dtypes is not None else _DEFAULT_DTYPES.get(case, ("f32",)):
            if case in MODELS:
                found += [
                    Row(case, "global-norm", dtype, in_place, clipped, shapes)
                    for in_place in (True, False)
                    for clipped in (True, False)
                ]
            elif case == "25.6M":
                found.append(Row(case, "global-norm", dtype, True, True, shapes))
            elif case == "clip-by-norm":
                found.append(Row(case, "norm-of-rows", dtype, False, True, shapes))
            else:
                found += [Row(case, "value", dtype, in_place, True, shapes) for in_place in (True, False)]
    return found


class Workload:
    """The gradients of a row and the bound to clip them to.

    All contenders of a row work on the same arrays, so that none is luckier than another
    with where its memory lies. Clipping in place would leave nothing to clip for the next
    call: `refresh` puts the gradients back, outside what is timed, before every call of
    every contender. The bound can so be one number for the whole row. Calls that do not
    write to their input need no refresh, and have none.

    Attributes
    ----------
    row : Row
        What the gradients are for.
    gradients : list of ndarray
        What the contenders clip.
    bound : float
        The norm to clip to: half of the norm, or twice the norm where `row.clipped` is
        false; of each row of the matrix under clip-by-norm. Under clip-by-value, the
        bounds are ``-bound`` and ``bound`` and half of the elements are outside.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        dtype = array_dtype(row.dtype)
        block = normal_block(2024, row.elements, DEVIATION)
        self.gradients = [filled(np.empty(shape, dtype), block) for shape in row.shapes]
        writes = row.in_place and row.clipped
        self._pristine = [gradient.copy() for gradient in self.gradients] if writes else []
        factor = 0.5 if row.clipped else 2.0
        if row.operation == "global-norm":
            self.bound = factor * math.sqrt(sum(sum_of_squares(g) for g in self.gradients))
        elif row.operation == "norm-of-rows":
            self.bound = factor * DEVIATION * math.sqrt(row.shapes[0][1])
        else:
            self.bound = 0.6745 * DEVIATION  # the median of the magnitudes

    def refresh(self) -> None:
        """Undo what clipping in place did."""
        for gradient, pristine in zip(self.gradients, self._pristine, strict=False):
            np.copyto(gradient, pristine)

    def expected_start(self, count: int = 256) -> npt.NDArray[np.float64]:
        """Return what the first elements of the first gradient have to become."""
        first = (self._pristine or self.gradients)[0]
        start = first.reshape(-1)[:count].astype(np.float64)
        if self.row.operation == "value":
            return np.clip(start, -self.bound, self.bound)
        if self.row.operation == "norm-of-rows":
            whole = first.astype(np.float64)
            norms = np.linalg.norm(whole, axis=1, keepdims=True)
            scaled: npt.NDArray[np.float64] = whole * (self.bound / np.maximum(norms, self.bound))
            return scaled.reshape(-1)[:count]
        return start * 0.5 if self.row.clipped else start
