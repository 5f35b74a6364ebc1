"""The state of an optimizer between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.devices import is_on_device, place_of
from fastclip._numpy_memory import raises_memory_error
from fastclip._variables.variable import Variable
from fastclip.train._memory_owner import memory_owner
from fastclip.train._slot_options import ROUNDED_STEPS, check_rounded_steps

__all__ = ["LiveState", "fill_slot", "loaded_counters", "new_slots", "slot_values"]


@dataclass(slots=True)
class LiveState:
    """The state of an optimizer: everything that a step changes, apart from the variables.

    The call of `_core` that updates the variables also writes the state, so that an interrupt finds either
    the whole state before the step or the whole state after it. When a state is loaded, a new object replaces
    this one in one assignment.

    Attributes
    ----------
    slots : _core.Slots or _core.DeviceSlots
        The variables that were passed to a step, their slots, and their low-precision copies. All are in host
        memory, or all on a device.
    counters : dict of str to ndarray of float64, shape ()
        Numbers, besides the slots, that the rule needs, such as the powers of Adam's betas. NaN before the
        first step.
    skipped_steps : ndarray of int64, shape ()
        The number of steps that were skipped.
    report : ndarray of float64, shape (5,)
        Whether the norm of the gradients was computed in the last step (1 or 0), the norm, and whether it is
        returned as float64 rather than float32 (1 or 0); whether gradients were clipped by norm in that step
        (1 or 0), and the factor that clipped them. Of a step on a device, `slots` has these numbers.
    copied_variables : list of Variable
        The Variables that were copied or unpickled together with the optimizer. The optimizer keeps these
        alive, because nothing else may refer to them.
    """

    slots: Any
    counters: dict[str, npt.NDArray[np.float64]]
    skipped_steps: npt.NDArray[np.int64]
    report: npt.NDArray[np.float64]
    copied_variables: list[Variable] = field(default_factory=list)

    @classmethod
    def initial(cls, optimizer: Any, first_values: Sequence[float], counters: Sequence[str]) -> LiveState:
        """Return the state before the first step.

        Parameters
        ----------
        optimizer : Optimizer
            The optimizer.
        first_values : sequence of float
            The first value of each slot.
        counters : sequence of str
            The names of the counters.
        """
        numbers = {name: np.array(np.nan) for name in counters}
        return cls(new_slots(optimizer, first_values), numbers, np.array(0, np.int64), np.zeros(5))

    def current_counters(self) -> dict[str, npt.NDArray[Any]]:
        """Return the counters; an empty dict before the first step."""
        if any(np.isnan(value) for value in self.counters.values()):
            return {}
        return dict(self.counters)

    def numbers_of_last_step(self) -> list[float]:
        """Return the numbers of `report`, which are read from the device if the step was on one."""
        if isinstance(self.slots, _core.Slots):
            numbers: list[float] = self.report.tolist()
            return numbers
        return list(self.slots.report())

    def last_norm(self) -> np.floating[Any] | None:
        """Return the norm of the gradients in the last step; None if it was not computed."""
        is_computed, norm, is_float64, *_ = self.numbers_of_last_step()
        return _core.norm_scalar(norm, bool(is_float64)) if is_computed else None

    def last_scale(self) -> float | None:
        """Return the factor that clipped the gradients in the last step; None if there was none."""
        *_, is_computed, scale = self.numbers_of_last_step()
        return scale if is_computed else None

    def has_memory_of(self, variable: Any) -> bool:
        """Return whether `slots` is for variables of host memory, or of a device, as this one is."""
        return isinstance(self.slots, _core.Slots) is not is_on_device(variable)

    def use_memory_of(self, variable: Any, optimizer: Any, first_values: Sequence[float]) -> None:
        """Prepare for variables of the memory, that of the host or of a device, in which this one is.

        Raises
        ------
        TypeError
            If the optimizer has updated variables of the other kind, or the rule is not one for devices.
        """
        if self.has_memory_of(variable):
            return
        if self.slots.entries() or self.slots.copies():
            other = "in host memory" if is_on_device(variable) else "on a device"
            raise TypeError(
                f"the variables are {place_of(variable)}, and this optimizer has updated variables {other}; "
                "it takes one kind, so create another optimizer"
            )
        self.slots = new_slots(optimizer, first_values, is_on_device(variable))


def new_slots(optimizer: Any, first_values: Sequence[float], on_device: bool = False) -> Any:
    """Return an object without variables, for the slots of an optimizer with these first values."""
    if on_device:
        if optimizer._has_narrow_slots:
            raise TypeError(
                f"slot_dtype is {optimizer.slot_dtype!r}; variables on a device take None: their slots are "
                "float32"
            )
        return _core.DeviceSlots(optimizer._rule, type(optimizer).__name__)
    return _core.Slots(optimizer._rule, first_values, memory_owner, optimizer._has_narrow_slots)


def fill_slot(slot: Any, values: npt.NDArray[Any]) -> None:
    """Copy values, which :func:`slot_values` has returned, to a slot."""
    if is_on_device(slot):
        slot.copy_from(values)
    else:
        np.copyto(slot_values(slot), values)


def slot_values(slot: Any) -> npt.NDArray[Any]:
    """Return a slot as an array in host memory, a copy if the slot is on a device. bfloat16 become uint16."""
    values: npt.NDArray[Any] = slot.numpy() if is_on_device(slot) else slot
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


@raises_memory_error
def loaded_counters(
    names: Sequence[str], entries: Mapping[str, npt.NDArray[Any]], has_slots: bool, prefix: str
) -> dict[str, npt.NDArray[np.float64]]:
    """Check the counters of a saved state, and return copies of them.

    Parameters
    ----------
    names : sequence of str
        The names of the optimizer's counters.
    entries : mapping of str to ndarray
        The entries of the saved state that describe neither variables nor slots.
    has_slots : bool
        Whether any variable has slots. Then the state contains counters. A state without slots contains them
        only if it was saved after a step on variables that no longer existed then.
    prefix : str
        What the names of entries begin with in the saved state, and in error messages.

    Raises
    ------
    ValueError
        If a counter is missing or is not a finite 0-d float64, or an entry is not a counter of the optimizer.
    """
    expected = set(names) if has_slots or set(entries) == set(names) else set()
    if set(entries) != expected:
        found = sorted(prefix + name for name in entries)
        hint = "" if prefix else " (a state that was saved with a prefix takes other entries beside it)"
        raise ValueError(
            f"state_dict has {found} besides the slots; it takes {sorted(prefix + n for n in expected)}{hint}"
        )
    for name, value in entries.items():
        if value.ndim or value.dtype != np.float64 or not np.isfinite(value):
            raise ValueError(
                f"state_dict[{prefix + name!r}] has dtype {value.dtype} and shape {value.shape}; "
                "it takes one finite float64"
            )
        if name == ROUNDED_STEPS:
            check_rounded_steps(float(value), f"state_dict[{prefix + name!r}]")
    return {name: np.array(entries.get(name, np.nan), np.float64) for name in names}
