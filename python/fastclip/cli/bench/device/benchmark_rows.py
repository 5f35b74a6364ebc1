"""Rows of the benchmark on a graphics processor, and the arrays of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastclip
from fastclip import gpu
from fastclip.cli.bench.inputs.arrays import Array, array_dtype, filled, normal_block, sum_of_squares
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.suites.row import BenchmarkRow

MODELS = ("gpt2", "resnet50", "many", "mlp")
CASES = (*MODELS, "25.6M")
OPERATIONS = {"clip": "clip by global norm", "adamw": "clip and AdamW", "upload": "", "download": ""}
# Standard deviations of the elements of gradients and variables, which are normally distributed.
_DEVIATION = 0.01
_VARIABLE_DEVIATION = 0.02
# Each call clips the gradients to half of their norm. After this many calls they are restored, before their
# elements become subnormal.
_CALLS_UNTIL_RESTORED = 32


@dataclass(frozen=True)
class DeviceRow(BenchmarkRow):
    """Row that works on arrays on a device.

    Attributes
    ----------
    case : str
        One of `CASES`.
    operation : {"clip", "adamw", "upload", "download"}
        What is timed: clipping in place, clipping with a step of AdamW, or a copy from or to the host.
    clock : {"host", "device"}
        Whose clock times it: that of the host, from the call to the end of the work, or that of the device,
        from the beginning to the end of the submission.
    dtype : {"f32", "f16", "bf16"}
        The dtype of the gradients.
    shapes : tuple of shapes
        The shapes of the gradients.
    """

    case: str
    operation: str
    clock: str
    dtype: str
    shapes: Shapes

    @property
    def name(self) -> str:
        """The name of the row, such as "gpt2/clip/f32/device"."""
        return f"{self.case}/{self.operation}/{self.dtype}/{self.clock}"

    @property
    def variant(self) -> tuple[str, str]:
        """Two short texts that distinguish the row from the others in its table."""
        return self.operation, f"{self.clock} clock"

    @property
    def moved_nbytes(self) -> int:
        """The bytes that the work reads and writes on the device.

        Clipping reads the gradients for their norm, then reads and writes them. A step of AdamW reads the
        gradients twice, and reads and writes a variable and two slots of float32.
        """
        if self.operation == "adamw":
            return 2 * self.nbytes + 6 * 4 * self.elements
        return 3 * self.nbytes if self.operation == "clip" else self.nbytes

    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""
        return {
            "case": self.case,
            "operation": self.operation,
            "clock": self.clock,
            "dtype": self.dtype,
            **self.describe_size(),
            "moved_bytes": self.moved_nbytes,
        }


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[DeviceRow]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        The dtypes of the gradients, float32 by default.
    """
    result = []
    for case in CASES:
        operations = ("clip", "adamw") if case in MODELS else ("upload", "download")
        clocks = ("device", "host") if case in MODELS else ("host",)
        for dtype in dtypes or ("f32",):
            for operation in operations:
                for clock in clocks:
                    result.append(DeviceRow(case, operation, clock, dtype, SHAPES[size][case]()))
    return result


class DeviceWorkload:
    """Arrays of a row, on the host and on the device.

    Attributes
    ----------
    row : DeviceRow
        The row.
    device : gpu.Device
        The device.
    host : list of ndarray
        The gradients.
    gradients : list of DeviceArray
        The gradients on the device.
    norm : float
        The global norm of the gradients, in float64.
    """

    def __init__(self, row: DeviceRow) -> None:
        self.row = row
        self.device = selected_device()
        block = normal_block(1742, row.elements, _DEVIATION)
        dtype = array_dtype(row.dtype)
        self.host: list[Array] = [filled(np.empty(shape, dtype), block) for shape in row.shapes]
        self.gradients = [gpu.asarray(array, self.device) for array in self.host]
        self.norm = math.sqrt(sum(map(sum_of_squares, self.host)))
        self._calls = 0

    def refresh(self) -> None:
        """Count a call, and restore the gradients from time to time."""
        self._calls += 1
        if self._calls > _CALLS_UNTIL_RESTORED:
            self._calls = 1
            for gradient, array in zip(self.gradients, self.host, strict=True):
                gradient.copy_from(array)
            gpu.synchronize(self.device)

    @property
    def bound(self) -> float:
        """The bound of the next call, half of the norm that the gradients have then."""
        return self.norm * 0.5**self._calls if self.row.operation == "clip" else 0.5 * self.norm

    def variables(self) -> list[Array]:
        """Return the variables on the host, with the same values in each call."""
        block = normal_block(1743, self.row.elements, _VARIABLE_DEVIATION)
        return [filled(np.empty(shape, np.float32), block) for shape in self.row.shapes]


def selected_device() -> gpu.Device:
    """Return the device that is timed: the first one.

    Raises
    ------
    GpuUnavailableError
        If there is none.
    """
    return gpu.asarray(np.zeros(1, np.float32)).device


def check_clipped(work: DeviceWorkload) -> None:
    """Raise ValueError if the gradients on the device do not have the norm of the last bound."""
    found = float(fastclip.global_norm(work.gradients))
    tolerance = {"f32": 1e-5, "f16": 1e-2, "bf16": 1e-2}[work.row.dtype]
    if not abs(found - work.bound) <= tolerance * work.bound:
        raise ValueError(f"the norm is {found} after clipping to {work.bound}")
