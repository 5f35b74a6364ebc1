"""What every row of the benchmark says of itself, whatever it times."""

from __future__ import annotations

from typing import Any, Protocol

from fastclip.cli.bench.inputs.shapes import Shapes


class Row(Protocol):
    """What one line of the benchmark times."""

    @property
    def name(self) -> str:
        """The parts that say what is timed, with slashes between them; the first is the case."""

    @property
    def case(self) -> str:
        """The shapes that the row is about; rows of a case and type share a table."""

    @property
    def dtype(self) -> str:
        """The type of the gradients: "f32", "f16" or "bf16"."""

    @property
    def shapes(self) -> Shapes:
        """The shapes of the gradients."""

    @property
    def elements(self) -> int:
        """The number of elements of all gradients."""

    @property
    def variant(self) -> tuple[str, str]:
        """What tells the row from the others of its case, in two lines."""

    def describe(self) -> dict[str, Any]:
        """Return the row's part of the JSON output."""
