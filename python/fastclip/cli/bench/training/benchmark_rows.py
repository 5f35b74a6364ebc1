"""Rows of the training benchmark, and the gradients and variables of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastclip.cli.bench.clipping import benchmark_rows
from fastclip.cli.bench.inputs.arrays import Array, filled, normal_block
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.measuring.machine import available_memory
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.training import optimizers
from fastclip.cli.bench.training.optimizers import Rule

CASES = ("gpt2", "resnet50", "many", "mlp")
# Standard deviation of the initial variables, which are normally distributed, as in GPT-2.
_DEVIATION = 0.02

# The optimizers of each case whose steps clip the gradients, and those whose steps do not.
_CLIPPED = {
    "gpt2": (optimizers.ADAMW, optimizers.MOMENTUM_RULE),
    "resnet50": (optimizers.ADAMW,),
    "many": (optimizers.ADAMW,),
    "mlp": (optimizers.ADAMW,),
}
_UNCLIPPED = {"resnet50": optimizers.OTHERS}
_DEFAULT_DTYPES = {("gpt2", "adamw"): ("f32", "bf16")}  # other rows: f32


@dataclass(frozen=True)
class StepRow(BenchmarkRow):
    """Row that makes one optimizer step with float32 variables.

    Attributes
    ----------
    case : str
        One of `CASES`.
    rule : Rule
        The optimizer.
    dtype : {"f32", "f16", "bf16"}
        The dtype of the gradients.
    clipped : bool
        Whether the step clips the gradients to half of their global norm.
    shapes : tuple of shapes
        The shapes of the gradients and of the variables.
    """

    case: str
    rule: Rule
    dtype: str
    clipped: bool
    shapes: Shapes

    @property
    def name(self) -> str:
        """The name of the row, such as "gpt2/adamw/f32"."""
        return f"{self.case}/{self.rule.name}/{self.dtype}"

    @property
    def variant(self) -> tuple[str, str]:
        """Two short texts that distinguish the row from the others in its table."""
        return self.rule.name, "clipped" if self.clipped else "not clipped"

    @property
    def state_nbytes(self) -> int:
        """The size of all variables and slots, which a step reads and writes, in bytes."""
        return self.elements * 4 * (1 + len(self.rule.slots))

    def describe(self) -> dict[str, Any]:
        """Return the properties of the row for the JSON output."""
        return {
            "case": self.case,
            "operation": "step",
            "optimizer": self.rule.name,
            "dtype": self.dtype,
            "clipped": self.clipped,
            **self.describe_size(),
            "state_bytes": self.state_nbytes,
        }


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[StepRow]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        The dtypes of the gradients. By default, each row has dtypes of its own.
    """
    result = []
    for case in CASES:
        shapes = SHAPES[size][case]()
        for rules, clipped in ((_CLIPPED[case], True), (_UNCLIPPED.get(case, ()), False)):
            for rule in rules:
                default = _DEFAULT_DTYPES.get((case, rule.name), ("f32",))
                result += [StepRow(case, rule, dtype, clipped, shapes) for dtype in dtypes or default]
    # Rows of the same case and dtype have to be adjacent, because they share a table.
    return sorted(result, key=lambda row: (CASES.index(row.case), benchmark_rows.DTYPES.index(row.dtype)))


@dataclass(frozen=True)
class FirstStep:
    """Correct result of the first step for some elements of the first variable, in float64.

    Attributes
    ----------
    elements : ndarray
        Indices of the elements in the flattened variable.
    before, after : ndarray
        These elements of the variable before and after the step.
    slot : ndarray or None
        The same elements of its first slot after the step; None for an optimizer without slots.
    """

    elements: Array
    before: Array
    after: Array
    slot: Array | None


class StepWorkload:
    """Gradients of a row, the bound to clip them to, and initial variables.

    All contenders read the same gradients. `refresh` restores the gradients before every call of every
    contender, because torch clips them in place, and because in training the backward pass has written
    them just before the step; its time is not measured. Each contender has its own variables and slots.

    Attributes
    ----------
    row : StepRow
        The row.
    gradients : list of ndarray
        The gradients.
    bound : float
        Half of the global norm of the gradients.
    """

    def __init__(self, row: StepRow) -> None:
        self.row = row
        self._clipping = benchmark_rows.Workload(
            benchmark_rows.Row(
                row.case, "global-norm", row.dtype, in_place=True, clipped=True, shapes=row.shapes
            )
        )
        self.gradients = self._clipping.gradients
        self.bound = self._clipping.bound
        self._block = normal_block(1742, row.elements, _DEVIATION)

    def refresh(self) -> None:
        """Restore the gradients."""
        self._clipping.refresh()

    def variables(self) -> list[Array]:
        """Return new variables, with the same values in each call."""
        return [filled(np.empty(shape, np.float32), self._block) for shape in self.row.shapes]

    def first_step(self) -> FirstStep:
        """Return the correct result of the first step for elements of the first variable."""
        gradient = self._clipping.expected_start()
        if not self.row.clipped:
            gradient *= 2.0  # expected_start returns half of the gradient
        before = self._block[: gradient.size].astype(np.float64)
        # Adam's first step is nearly proportional to the sign of the gradient. For tiny gradients epsilon
        # matters, and TensorFlow's and torch's formulas differ in its position.
        elements = np.flatnonzero(np.abs(gradient) > 0.01 * np.max(np.abs(gradient)))
        after, slot = self.row.rule.first_step(before[elements], gradient[elements])
        return FirstStep(elements, before[elements], after, slot)


def check_memory(row: StepRow, contenders: int) -> None:
    """Raise MemoryError if there is too little memory for `contenders` contenders and the limit.

    Without this check, Linux would kill the process instead of failing an allocation.
    """
    needed = (contenders + 1) * row.state_nbytes
    needed += 4 * row.nbytes  # the gradients and the buffer of the limit, and a copy of each
    needed += 2 * 4 * row.elements  # temporary arrays of a peer
    if row.dtype != "f32":  # fastclip-f32, with float32 gradients and their copy
        needed += row.state_nbytes + 2 * 4 * row.elements
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryError(f"it takes {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are available")
