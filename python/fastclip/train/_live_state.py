"""The state of an optimizer between steps."""

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
    """The objects that a step changes, apart from the variables.

    The compiled part writes to them in the call that updates the variables, so that an interrupt finds all of
    them as they were before the step or all as they are after it. Loading a state creates another object,
    which replaces this one in one assignment.

    Attributes
    ----------
    slots : _core.Slots
        The variables that have been updated, their slots, and their low-precision copies.
    counters : dict of str to ndarray of float64, shape ()
        The numbers that the rule keeps besides slots, such as the powers of Adam's betas. NaN before the
        first step.
    skipped_steps : ndarray of int64, shape ()
        The number of steps that were skipped.
    report : ndarray of float64, shape (3,)
        Whether the norm of the last step was measured (1 or 0), the norm, and whether it is returned as a
        float64 (1 or 0).
    """

    slots: _core.Slots
    counters: dict[str, npt.NDArray[np.float64]]
    skipped_steps: npt.NDArray[np.int64]
    report: npt.NDArray[np.float64]

    @classmethod
    def initial(cls, rule: str, first_values: Sequence[float], counters: Sequence[str]) -> LiveState:
        """Return the state before the first step.

        Parameters
        ----------
        rule : str
            The name of the update rule.
        first_values : sequence of float
            The first value of each slot.
        counters : sequence of str
            The names of the counters.
        """
        numbers = {name: np.array(np.nan) for name in counters}
        return cls(_core.Slots(rule, first_values), numbers, np.array(0, np.int64), np.zeros(3))

    def other(self) -> dict[str, npt.NDArray[Any]]:
        """Return the counters; none before the first step."""
        if any(np.isnan(value) for value in self.counters.values()):
            return {}
        return dict(self.counters)

    def last_norm(self) -> np.floating[Any] | None:
        """Return the norm of the last step; None if it was not measured."""
        measured, norm, wide = self.report.tolist()
        return _core.norm_scalar(norm, bool(wide)) if measured else None


@raises_memory_error
def loaded_counters(
    names: Sequence[str], other: Mapping[str, npt.NDArray[Any]], begun: bool
) -> dict[str, npt.NDArray[np.float64]]:
    """Check the counters of a saved state, and return copies of them.

    Parameters
    ----------
    names : sequence of str
        The names of the optimizer's counters.
    other : mapping of str to ndarray
        The entries of the saved state that are no slots.
    begun : bool
        Whether the state was saved after the first step: only then it holds counters.

    Raises
    ------
    ValueError
        If one is missing, is not one of the optimizer's, or is no finite float64.
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
