"""The rows of ``fastclip bench --train``: gradients, and the variables that a step updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastclip.cli.bench.clipping import workload
from fastclip.cli.bench.inputs.arrays import Array, filled, normal_block
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes
from fastclip.cli.bench.measuring.machine import available_memory
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.training import optimizers
from fastclip.cli.bench.training.optimizers import Rule

CASES = ("gpt2", "resnet50", "many", "mlp")
# What the variables start from is normal with this deviation, as GPT-2's weights are.
_DEVIATION = 0.02

# case: the optimizers whose step comes with clipping, and those without
_CLIPPED = {
    "gpt2": (optimizers.ADAMW, optimizers.MOMENTUM_RULE),
    "resnet50": (optimizers.ADAMW,),
    "many": (optimizers.ADAMW,),
    "mlp": (optimizers.ADAMW,),
}
_UNCLIPPED = {"resnet50": optimizers.OTHERS}
_DEFAULT_DTYPES = {("gpt2", "adamw"): ("f32", "bf16")}  # the others: f32


@dataclass(frozen=True)
class StepRow(BenchmarkRow):
    """What one line of the benchmark times: one step, of float32 variables.

    Attributes
    ----------
    case : str
        One of `CASES`.
    rule : Rule
        The optimizer.
    dtype : {"f32", "f16", "bf16"}
        The type of the gradients.
    clipped : bool
        Whether the gradients are clipped by their global norm first, to half of it.
    shapes : tuple of shapes
        The shapes of the gradients, and of the variables.
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
        """What tells the row from the others of its case, in two lines."""
        return self.rule.name, "clipped" if self.clipped else "not clipped"

    @property
    def state_nbytes(self) -> int:
        """The bytes of all variables and slots, which a step reads and writes."""
        return self.elements * 4 * (1 + len(self.rule.slots))

    def describe(self) -> dict[str, Any]:
        """Return the row's part of the JSON output."""
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
    """Return all rows, with gradients of the types asked for or of each row's own."""
    found = []
    for case in CASES:
        shapes = SHAPES[size][case]()
        for rules, clipped in ((_CLIPPED[case], True), (_UNCLIPPED.get(case, ()), False)):
            for rule in rules:
                own = _DEFAULT_DTYPES.get((case, rule.name), ("f32",))
                found += [StepRow(case, rule, dtype, clipped, shapes) for dtype in dtypes or own]
    # The rows of a case and type make a table.
    return sorted(found, key=lambda row: (CASES.index(row.case), workload.DTYPES.index(row.dtype)))


@dataclass(frozen=True)
class FirstStep:
    """What one step has to make of some elements of the first variable, in float64.

    Attributes
    ----------
    elements : ndarray
        Their indices in the flat variable.
    before, after : ndarray
        The variable there.
    slot : ndarray or None
        The first of its slots there, after the step; None if there is none.
    """

    elements: Array
    before: Array
    after: Array
    slot: Array | None


class StepWorkload:
    """The gradients of a row, the bound to clip them to, and variables for each contender.

    All contenders read the same gradients. torch clips them in place, and in training the
    backward pass has just written them: `refresh` writes them anew, outside what is timed,
    before every call of every contender. Variables and slots are each contender's own.

    Attributes
    ----------
    row : StepRow
        What the gradients are for.
    gradients : list of ndarray
        What the contenders step with.
    bound : float
        Half of the gradients' global norm.
    """

    def __init__(self, row: StepRow) -> None:
        self.row = row
        self._clipping = workload.Workload(
            workload.Row(row.case, "global-norm", row.dtype, in_place=True, clipped=True, shapes=row.shapes)
        )
        self.gradients = self._clipping.gradients
        self.bound = self._clipping.bound
        self._block = normal_block(1742, row.elements, _DEVIATION)

    def refresh(self) -> None:
        """Write the gradients anew."""
        self._clipping.refresh()

    def variables(self) -> list[Array]:
        """Return new variables; they are the same for each contender."""
        return [filled(np.empty(shape, np.float32), self._block) for shape in self.row.shapes]

    def first_step(self) -> FirstStep:
        """Return what one step from fresh slots has to make of the first variable."""
        gradient = self._clipping.expected_start()
        if not self.row.clipped:
            gradient *= 2.0  # that was half of it
        before = self._block[: gradient.size].astype(np.float64)
        # Adam's step is nearly the sign of the gradient: where that is tiny, epsilon matters, which
        # TensorFlow's formula and torch's have in different places.
        elements = np.flatnonzero(np.abs(gradient) > 0.01 * np.max(np.abs(gradient)))
        after, slot = self.row.rule.first_step(before[elements], gradient[elements])
        return FirstStep(elements, before[elements], after, slot)


def check_memory(row: StepRow, contenders: int) -> None:
    """Raise MemoryError if the machine has too little for `contenders` and the limit beside them.

    Linux would end the process rather than refuse the memory.
    """
    needed = (contenders + 1) * row.state_nbytes
    needed += 4 * row.nbytes  # the gradients and the limit's, each with what they are refreshed from
    needed += 2 * 4 * row.elements  # what a peer makes in between
    if row.dtype != "f32":  # another contender, with gradients of its own
        needed += row.state_nbytes + 2 * 4 * row.elements
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryError(f"it takes {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are available")
