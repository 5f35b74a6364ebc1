"""Rows of the clipping benchmark, and the gradients that a row clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip.cli.bench.inputs.arrays import array_dtype, filled, normal_block, sum_of_squares
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.suites.row import BenchmarkRow

# Standard deviation of the gradients' elements, which are normally distributed. The square of one element
# is a normal float16, and the sum of 124 M squares is below the largest float16.
DEVIATION = 0.01

# Cases that are clipped by their global norm. The other cases are single tensors.
MODELS = ("gpt2", "resnet50", "many", "mlp")
# Cases that show what a container or a kind of tensor costs, besides the same arrays in a list: a dict of
# layers, each a dict of two arrays, and tensors of torch.
CONTAINERS = ("layers", "many-torch")
CASES = (*MODELS, *CONTAINERS, "25.6M", "clip-by-norm", "clip-by-value")
DTYPES = ("f32", "f16", "bf16")
_DEFAULT_DTYPES = {"25.6M": ("f16", "bf16")}  # other cases: f32


@dataclass(frozen=True)
class Row(BenchmarkRow):
    """Row that clips gradients.

    Attributes
    ----------
    case : str
        One of `CASES`.
    operation : {"global-norm", "norm-of-rows", "value"}
        The clipping method. "norm-of-rows" clips each row of a matrix by its own norm.
    dtype : {"f32", "f16", "bf16"}
        The dtype of the gradients.
    in_place : bool
        Whether the gradients are overwritten.
    clipped : bool
        Whether the bound is below the norm, so that clipping changes the gradients.
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
        """Two short texts that distinguish the row from the others in its table."""
        return "in place" if self.in_place else "out of place", "clipped" if self.clipped else "unclipped"

    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""
        return {
            "case": self.case,
            "operation": self.operation,
            "dtype": self.dtype,
            "in_place": self.in_place,
            "clipped": self.clipped,
            **self.describe_size(),
        }


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[Row]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        The dtypes of the gradients. By default, each case has dtypes of its own.
    """
    result = []
    for case in CASES:
        if case == "many-torch" and find_spec("torch") is None:
            continue
        shapes = SHAPES[size][case]()
        for dtype in dtypes if dtypes is not None else _DEFAULT_DTYPES.get(case, ("f32",)):
            if case in MODELS:
                result += [
                    Row(case, "global-norm", dtype, in_place, clipped, shapes)
                    for in_place in (True, False)
                    for clipped in (True, False)
                ]
            elif case in CONTAINERS or case == "25.6M":
                result.append(Row(case, "global-norm", dtype, True, True, shapes))
            elif case == "clip-by-norm":
                result.append(Row(case, "norm-of-rows", dtype, False, True, shapes))
            else:
                result += [Row(case, "value", dtype, in_place, True, shapes) for in_place in (True, False)]
    return result


class Workload:
    """Gradients of a row, and the bound to clip them to.

    All contenders of a row use the same arrays, so that differences in the placement of memory do not
    favour any of them. After clipping in place, there would be nothing left to clip for the next call.
    `refresh` therefore restores the gradients before every call of every contender; its time is not
    measured. The bound is thus one number for all calls. Where the input is not overwritten, `refresh`
    does nothing.

    Attributes
    ----------
    row : Row
        The row.
    gradients : list of ndarray
        The gradients that the contenders clip.
    bound : float
        For operation "global-norm", half of the global norm, or twice the global norm if `row.clipped` is
        false. For "norm-of-rows", the same multiple of the expected norm of a matrix row. For "value",
        half of the elements are outside ``-bound`` to ``bound``.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        dtype = array_dtype(row.dtype)
        block = normal_block(2024, row.elements, DEVIATION)
        self.gradients = [filled(np.empty(shape, dtype), block) for shape in row.shapes]
        changes = row.in_place and row.clipped
        self._originals = [gradient.copy() for gradient in self.gradients] if changes else []
        factor = 0.5 if row.clipped else 2.0
        if row.operation == "global-norm":
            self.bound = factor * math.sqrt(sum(sum_of_squares(g) for g in self.gradients))
        elif row.operation == "norm-of-rows":
            self.bound = factor * DEVIATION * math.sqrt(row.shapes[0][1])
        else:
            self.bound = 0.6745 * DEVIATION  # the median of the absolute values of the elements

    def refresh(self) -> None:
        """Restore the gradients after clipping in place."""
        for gradient, original in zip(self.gradients, self._originals, strict=False):
            np.copyto(gradient, original)

    def expected_start(self, count: int = 256) -> npt.NDArray[np.float64]:
        """Return the correct result for the first `count` elements of the first gradient."""
        first = (self._originals or self.gradients)[0]
        start = first.reshape(-1)[:count].astype(np.float64)
        if self.row.operation == "value":
            return np.clip(start, -self.bound, self.bound)
        if self.row.operation == "norm-of-rows":
            matrix = first.astype(np.float64)
            norms = np.linalg.norm(matrix, axis=1, keepdims=True)
            scaled: npt.NDArray[np.float64] = matrix * (self.bound / np.maximum(norms, self.bound))
            return scaled.reshape(-1)[:count]
        return start * 0.5 if self.row.clipped else start
