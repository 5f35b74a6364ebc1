"""The state of an optimizer as a flat dict of arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Loaded", "saved"]

#: Grows when what is kept changes its meaning.
VERSION = 1

_Array = npt.NDArray[Any]


def saved(
    rule: str,
    slot_names: Sequence[str],
    entries: Sequence[tuple[_Array, Sequence[_Array]]],
    other: Mapping[str, _Array],
) -> dict[str, _Array]:
    """Make a dict of all that is kept.

    Text is an array of bytes: not every format takes strings.
    """
    found: dict[str, _Array] = {
        "fastclip.version": np.array(VERSION, np.int64),
        "fastclip.optimizer": np.frombuffer(rule.encode(), np.uint8).copy(),
        "variables": np.array(len(entries), np.int64),
        "has_slots": np.array([bool(slots) for _, slots in entries], np.uint8),
    }
    found.update((name, np.array(value)) for name, value in other.items())
    for index, (array, slots) in enumerate(entries):
        found[f"shape.{index}"] = np.array(array.shape, np.int64)
        for name, slot in zip(slot_names, slots, strict=False):
            found[f"{name}.{index}"] = np.array(slot, order="C")
    return found


class Loaded:
    """A state that was saved, checked against the optimizer and the variables that it is for.

    Parameters
    ----------
    state : mapping of str to array
        What :func:`saved` made.
    rule : str
        The optimizer's rule.
    slot_names : sequence of str
        Its slots.
    arrays : sequence of ndarray
        The variables.

    Attributes
    ----------
    slots : list
        For each variable its slots, or None if it had none.
    other : dict
        What was kept besides.
    skipped_steps : int
        How many steps had been left out.
    """

    def __init__(
        self, state: Mapping[str, Any], rule: str, slot_names: Sequence[str], arrays: Sequence[_Array]
    ) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state_dict is a {type(state).__name__}; it takes a mapping of names to arrays")
        self._left = {name: np.asarray(state[name]) for name in state}
        version = self._whole_number("fastclip.version")
        if version != VERSION:
            raise ValueError(f"state_dict is of version {version}; this fastclip reads version {VERSION}")
        saved_rule = self._take("fastclip.optimizer").astype(np.uint8).tobytes().decode(errors="replace")
        if saved_rule != rule:
            raise ValueError(f"state_dict is of the optimizer {saved_rule!r}; this one is {rule!r}")
        count = self._whole_number("variables")
        if count != len(arrays):
            raise ValueError(
                f"state_dict has {count} variables, and {len(arrays)} are given: pass var_list, the "
                "variables in the order in which the optimizer that was saved first met them"
            )
        self.skipped_steps = self._whole_number("skipped_steps")
        if self.skipped_steps < 0:
            raise ValueError(
                f"state_dict['skipped_steps'] is {self.skipped_steps}; it takes no negative number"
            )
        has_slots = self._take("has_slots")
        if has_slots.shape != (count,) or has_slots.dtype != np.uint8:
            raise ValueError(
                f"state_dict['has_slots'] has dtype {has_slots.dtype} and shape {has_slots.shape}; "
                f"it takes uint8 and ({count},)"
            )
        self.slots = [
            self._slots_of(index, array, slot_names if has_slots[index] else ())
            for index, array in enumerate(arrays)
        ]
        self.other = self._left

    def _take(self, name: str) -> _Array:
        try:
            return self._left.pop(name)
        except KeyError:
            raise ValueError(f"state_dict has no {name!r}: it is not complete, or no optimizer's") from None

    def _whole_number(self, name: str) -> int:
        value = self._take(name)
        if value.ndim or value.dtype.kind not in "iu":
            raise ValueError(
                f"state_dict[{name!r}] has dtype {value.dtype} and shape {value.shape}; "
                "it takes a whole number"
            )
        return int(value)

    def _slots_of(self, index: int, array: _Array, slot_names: Sequence[str]) -> list[_Array] | None:
        shape = tuple(int(n) for n in self._take(f"shape.{index}").reshape(-1))
        if shape != array.shape:
            raise ValueError(
                f"state_dict is of a variable {index} of shape {shape}; "
                f"the one given has the shape {array.shape}"
            )
        if not slot_names:
            return None
        slots = [self._take(f"{name}.{index}") for name in slot_names]
        for name, slot in zip(slot_names, slots, strict=True):
            if slot.shape != array.shape or slot.dtype != array.dtype:
                raise ValueError(
                    f"state_dict['{name}.{index}'] has dtype {slot.dtype} and shape {slot.shape}; "
                    f"variable {index} has dtype {array.dtype} and shape {array.shape}"
                )
        return slots
