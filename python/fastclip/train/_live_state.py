"""What an optimizer keeps between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._numpy_memory import raises_memory_error

__all__ = ["LiveState", "loaded_counters"]


@dataclass(slots=True)
class LiveState:
    """All that a step changes besides variables.

    A step writes to these objects in the compiled part, in the call that updates the variables: an interrupt
    finds either all of them as before the step or all as after it. Loading a state makes another object,
    which takes the place of this one in one assignment.

    Attributes
    ----------
    slots : _core.Slots
        The variables that were met, their slots, and their low-precision copies.
    counters : dict of str to ndarray of float64, shape ()
        The numbers that the rule keeps, such as the powers of Adam's betas. NaN before the first step.
    skipped_steps : ndarray of int64, shape ()
        How many steps were left out.
    report : ndarray of float64, shape (3,)
        Of the last step: whether the norm was measured, the norm, and whether it is to be a float64.
    """

    slots: _core.Slots
    counters: dict[str, npt.NDArray[np.float64]]
    skipped_steps: npt.NDArray[np.int64]
    report: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rule: str, counters: Sequence[str]) -> LiveState:
        """What an optimizer keeps before its first step."""
        numbers = {name: np.array(np.nan) for name in counters}
        return cls(_core.Slots(rule), numbers, np.array(0, np.int64), np.zeros(3))

    def other(self) -> dict[str, npt.NDArray[Any]]:
        """The counters, if a step was taken."""
        if any(np.isnan(value) for value in self.counters.values()):
            return {}
        return dict(self.counters)

    def last_norm(self) -> np.floating[Any] | None:
        """The norm of the last step, None if it was not measured."""
        measured, norm, wide = self.report.tolist()
        return _core.norm_scalar(norm, bool(wide)) if measured else None


@raises_memory_error
def loaded_counters(
    names: Sequence[str], other: Mapping[str, npt.NDArray[Any]], begun: bool
) -> dict[str, npt.NDArray[np.float64]]:
    """Check the counters of a saved state, and return them as arrays of their own.

    Parameters
    ----------
    names : sequence of str
        The counters that the optimizer keeps.
    other : mapping of str to ndarray
        What a saved state holds besides slots.
    begun : bool
        Whether the state is of after the first step: only then it holds counters.

    Raises
    ------
    ValueError
        If others are there, or one is no finite float64.
    """
    expected = set(names) if begun else set()
    if set(other) != expected:
        raise ValueError(f"state_dict has {sorted(other)} besides the slots; it takes {sorted(expected)}")
    for name, value in other.items():
        if value.ndim or value.dtype != np.float64 or not np.isfinite(value):
            raise ValueError(
                f"state_dict[{name!r}] has dtype {value.dtype} and shape {value.shape}; "
                "it takes one finite float64"
            )
    return {name: np.array(other.get(name, np.nan), np.float64) for name in names}
