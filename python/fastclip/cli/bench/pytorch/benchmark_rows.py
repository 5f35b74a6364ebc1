"""Rows of the benchmark of fastclip.torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.measuring.machine import available_memory
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.errors import CommandError


@dataclass(frozen=True)
class Operation:
    """Kind of work.

    Attributes
    ----------
    passes : str
        The passes over memory that it requires, such as "read + scale". Passes that read are over the
        gradients, and the one that scales is over what is written.
    state_bytes : int
        The size of what is written for each element of the gradients, in bytes: the gradient itself, its
        sum, or the parameter and its slots.
    """

    passes: str
    state_bytes: int


# In a training step with norms that the backward pass has measured, the optimizer reads gradients once.
OPERATIONS = {
    "clip-grad-norm": Operation("read + scale", 4),
    "clip-grad-value": Operation("scale", 4),
    "adamw": Operation("read + read + scale", 12),
    "adamw-alone": Operation("read + scale", 12),
    "adamw-bf16-moments": Operation("read + read + scale", 8),
    "sgd": Operation("read + read + scale", 8),
    "accumulate": Operation("read + scale", 4),
    "training-step": Operation("read + scale", 12),
}
IN_PLACE = ("clip-grad-norm", "clip-grad-value")
_OPERATIONS_OF_CASES = {
    "gpt2": ("clip-grad-norm", "adamw", "adamw-bf16-moments", "sgd", "accumulate"),
    "resnet50": ("adamw",),
    "many": ("clip-grad-norm", "clip-grad-value", "adamw"),
    "512": ("adamw-alone",),
    "transformer": ("training-step",),
}
CASES = tuple(_OPERATIONS_OF_CASES)
# A parameter and two slots, of float32: what a contender needs at most for each element.
_LARGEST_STATE_BYTES = 12


@dataclass(frozen=True)
class TorchRow(BenchmarkRow):
    """Row that works on tensors of PyTorch.

    Attributes
    ----------
    case : str
        One of `CASES`.
    operation : str
        One of `OPERATIONS`.
    dtype : {"f32"}
        The dtype of the gradients.
    shapes : tuple of shapes
        The shapes of the gradients.
    """

    case: str
    operation: str
    dtype: str
    shapes: Shapes

    @property
    def name(self) -> str:
        """The name of the row, such as "gpt2/adamw/f32"."""
        return f"{self.case}/{self.operation}/{self.dtype}"

    @property
    def variant(self) -> tuple[str, str]:
        """Two short texts that distinguish the row from the others in its table."""
        return self.operation, ""

    @property
    def clipped(self) -> bool:
        """Whether a step clips the gradients to half of their norm."""
        return self.operation != "adamw-alone"

    @property
    def limit_passes(self) -> str:
        """The passes over memory that the work requires."""
        return OPERATIONS[self.operation].passes

    @property
    def state_nbytes(self) -> int:
        """The size of what the work writes, in bytes."""
        return self.elements * OPERATIONS[self.operation].state_bytes

    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""
        return {
            "case": self.case,
            "operation": self.operation,
            "dtype": self.dtype,
            **self.describe_size(),
            "written_bytes": self.state_nbytes,
        }


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[TorchRow]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        Has to contain "f32": the gradients of all rows are float32.

    Raises
    ------
    CommandError
        If `dtypes` does not contain "f32".
    """
    if dtypes is not None and "f32" not in dtypes:
        raise CommandError("--dtype: the gradients of --torch are f32")
    return [
        TorchRow(case, operation, "f32", SHAPES[size][case]())
        for case, operations in _OPERATIONS_OF_CASES.items()
        for operation in operations
    ]


def check_memory(row: TorchRow, contenders: int) -> None:
    """Raise MemoryError if there is too little memory for `contenders` contenders and the limit.

    Without this check, Linux would kill the process instead of failing an allocation.
    """
    needed = (contenders + 1) * _LARGEST_STATE_BYTES * row.elements
    needed += 4 * row.nbytes  # the gradients and the buffer of the limit, and a copy of each
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryError(f"it takes {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are available")
