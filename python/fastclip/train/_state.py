"""The state of an optimizer as a flat dict of arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._numpy_memory import raises_memory_error

__all__ = ["Loaded", "saved"]

#: Grows when what is kept changes its meaning.
VERSION = 1

_Array = npt.NDArray[Any]


@raises_memory_error
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
        For each variable its slots, or None if it had none: all of them, if the state is of before the first
        step.
    other : dict
        What was kept besides.
    skipped_steps : int
        How many steps had been left out.

    Raises
    ------
    TypeError
        If it is no mapping, or a key is no string.
    ValueError
        If an entry is missing, or of another dtype, shape or range than what :func:`saved` gives; it names
        the entry.
    """

    def __init__(
        self, state: Mapping[str, Any], rule: str, slot_names: Sequence[str], arrays: Sequence[_Array]
    ) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state_dict is a {type(state).__name__}; it takes a mapping of names to arrays")
        self._left = {name: _array(state[name], name) for name in _names(state)}
        version = self._whole_number("fastclip.version")
        if version != VERSION:
            raise ValueError(f"state_dict is of version {version}; this fastclip reads version {VERSION}")
        saved_rule = self._text("fastclip.optimizer")
        if saved_rule != rule:
            raise ValueError(f"state_dict is of the optimizer {saved_rule!r}; this one is {rule!r}")
        count = self._whole_number("variables")
        # Before the first step nothing is known of variables, and any will do.
        if count not in (0, len(arrays)):
            raise ValueError(
                f"state_dict has {count} variables, and {len(arrays)} are given: pass var_list, the "
                "variables in the order in which the optimizer that was saved first met them"
            )
        self.skipped_steps = self._whole_number("skipped_steps")
        has_slots = self._flags("has_slots", count)
        if any(has_slots) and not slot_names:
            raise ValueError("state_dict['has_slots'] holds 1; the optimizer has no slots")
        self.slots: list[list[_Array] | None] = [None] * len(arrays)
        for index, has in enumerate(has_slots):
            self._check_shape(index, arrays[index])
            if has:
                self.slots[index] = self._slots_of(index, arrays[index], slot_names)
        self.other = self._left

    def _take(self, name: str) -> _Array:
        try:
            return self._left.pop(name)
        except KeyError:
            raise ValueError(f"state_dict has no {name!r}: it is not complete, or no optimizer's") from None

    def _whole_number(self, name: str) -> int:
        """A number that int64 holds and that is not negative."""
        value = self._take(name)
        if value.ndim or value.dtype.kind not in "iu":
            raise _wrong(name, value, "a whole number, of an integer type and no dimensions")
        number = int(value)
        if not 0 <= number <= np.iinfo(np.int64).max:
            raise ValueError(f"state_dict[{name!r}] is {number}; it takes 0 or more, up to {2**63 - 1}")
        return number

    def _text(self, name: str) -> str:
        value = self._take(name)
        if value.ndim != 1 or value.dtype != np.uint8:
            raise _wrong(name, value, "text as bytes, of dtype uint8 and one dimension")
        return value.tobytes().decode(errors="replace")

    @raises_memory_error
    def _flags(self, name: str, count: int) -> list[bool]:
        value = self._take(name)
        if value.shape != (count,) or value.dtype != np.uint8:
            raise _wrong(name, value, f"uint8 and ({count},)")
        if value.size and value.max() > 1:
            at = int(np.argmax(value > 1))
            raise ValueError(f"state_dict[{name!r}][{at}] is {value[at]}; it takes 0 and 1")
        return [bool(flag) for flag in value]

    def _check_shape(self, index: int, array: _Array) -> None:
        name = f"shape.{index}"
        value = self._take(name)
        if value.ndim != 1 or value.dtype.kind not in "iu":
            raise _wrong(name, value, "the shape of a variable, of an integer type and one dimension")
        shape = tuple(value.tolist())
        if shape != array.shape:
            raise ValueError(
                f"state_dict[{name!r}] is {shape}; the variable that is given has the shape {array.shape}"
            )

    def _slots_of(self, index: int, array: _Array, slot_names: Sequence[str]) -> list[_Array]:
        slots = [self._take(f"{name}.{index}") for name in slot_names]
        for name, slot in zip(slot_names, slots, strict=True):
            if slot.shape != array.shape or slot.dtype != array.dtype:
                raise _wrong(
                    f"{name}.{index}",
                    slot,
                    f"dtype {array.dtype} and shape {array.shape}, those of variable {index}",
                )
        return slots


def _names(state: Mapping[str, Any]) -> list[str]:
    names = list(state)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"state_dict has the key {name!r}, a {type(name).__name__}; it takes names")
    return names


def _array(value: Any, name: str) -> _Array:
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"state_dict[{name!r}] is a masked array; it takes an array")
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"state_dict[{name!r}] is a {type(value).__name__}, which NumPy makes no array of: {error}"
        ) from error


def _wrong(name: str, value: _Array, takes: str) -> ValueError:
    return ValueError(
        f"state_dict[{name!r}] has dtype {value.dtype} and shape {value.shape}; it takes {takes}"
    )
