"""The properties that every row of the benchmark has, whatever it times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from fastclip.cli.bench.inputs.shapes import Shapes


class BenchmarkRow(ABC):
    """One line of the benchmark: an operation on gradients of given shapes and dtype.

    Attributes
    ----------
    case : str
        The name of the shapes. Rows of the same case and dtype share a table.
    dtype : {"f32", "f16", "bf16"}
        The dtype of the gradients.
    shapes : tuple of shapes
        The shapes of the gradients.
    """

    case: str
    dtype: str
    shapes: Shapes

    @property
    @abstractmethod
    def name(self) -> str:
        """The unique name of the row: its case and further properties, separated by slashes."""

    @property
    @abstractmethod
    def variant(self) -> tuple[str, str]:
        """Two short texts that distinguish the row from the others in its table."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""

    @property
    def elements(self) -> int:
        """The number of elements of all gradients."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def nbytes(self) -> int:
        """The size of all gradients, in bytes."""
        return self.elements * (4 if self.dtype == "f32" else 2)

    def describe_size(self) -> dict[str, int]:
        """Return the size of the gradients for the JSON output."""
        return {"tensors": len(self.shapes), "elements": self.elements, "bytes": self.nbytes}
