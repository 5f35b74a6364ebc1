"""The state dict of an optimizer: how it is built from the state, and how it is read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._numpy_memory import raises_memory_error

__all__ = ["ParsedStateDict", "build_state_dict", "check_prefix"]

#: The version of the format. It is incremented when entries change their meaning.
VERSION = 1

_VERSION_KEY = "fastclip.version"
_SLOT_DTYPE_KEY = "fastclip.slot_dtype"

_Array = npt.NDArray[Any]


def check_prefix(prefix: Any) -> None:
    """Raise a TypeError if the prefix of a state's keys is not a string."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {prefix!r}; it takes a string, such as 'adam.'")


@raises_memory_error
def build_state_dict(
    rule: str,
    slot_names: Sequence[str],
    entries: Sequence[tuple[_Array, Sequence[_Array]]],
    other: Mapping[str, _Array],
    prefix: str,
    slot_dtype: str | None = None,
) -> dict[str, _Array]:
    """Return the state of an optimizer as a flat dict of arrays, which are copies.

    Text is stored as an array of bytes, because some file formats have no strings.

    Parameters
    ----------
    rule : str
        The name of the update rule.
    slot_names : sequence of str
        The names of the slots, in the order of the rule.
    entries : sequence of (ndarray, sequence of ndarray)
        Each variable with its slots. There are no slots before the first update of the variable.
    other : mapping of str to ndarray
        Arrays that belong to no variable, by their names: the counters and the number of skipped steps.
    prefix : str
        The beginning of every key.
    slot_dtype : str, optional
        The dtype of the slots, if it is not that of their variables. They are uint16 then: the bits.
    """
    state: dict[str, _Array] = {
        _VERSION_KEY: np.array(VERSION, np.int64),
        "fastclip.optimizer": np.frombuffer(rule.encode(), np.uint8).copy(),
        "variables": np.array(len(entries), np.int64),
        "has_slots": np.array([bool(slots) for _, slots in entries], np.uint8),
    }
    if slot_dtype is not None:
        state[_SLOT_DTYPE_KEY] = np.frombuffer(slot_dtype.encode(), np.uint8).copy()
    state.update((name, np.array(value)) for name, value in other.items())
    for index, (array, slots) in enumerate(entries):
        state[f"shape.{index}"] = np.array(array.shape, np.int64)
        for name, slot in zip(slot_names, slots, strict=False):
            state[f"{name}.{index}"] = np.array(slot, order="C")
    return {prefix + name: array for name, array in state.items()} if prefix else state


class ParsedStateDict:
    """The contents of a state dict, checked against the optimizer and the variables that load it.

    Parameters
    ----------
    state : mapping of str to array
        A result of :func:`build_state_dict`.
    rule : str
        The name of the optimizer's update rule.
    slot_names : sequence of str
        The names of the optimizer's slots, in the order of the rule.
    arrays : sequence of ndarray
        The variables.
    prefix : str
        The beginning of the keys that belong to the state. Entries with other keys are ignored.
    slot_dtype : str, optional
        The dtype of the optimizer's slots, if it is not that of their variables.

    Attributes
    ----------
    slots : list of (list of ndarray or None)
        The slots of each variable; None for a variable that had not been updated, which all of `arrays` are
        if the state was saved before the first step.
    other : dict of str to ndarray
        The entries that are left: the counters, which are not checked here.
    skipped_steps : int
        The number of steps that had been skipped.

    Raises
    ------
    TypeError
        If `state` is not a mapping, or a key is not a string.
    ValueError
        If an entry is missing, or has a dtype, shape or value that :func:`build_state_dict` does not produce.
        The message names the entry.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        rule: str,
        slot_names: Sequence[str],
        arrays: Sequence[_Array],
        prefix: str,
        slot_dtype: str | None = None,
    ) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state_dict is a {type(state).__name__}; it takes a mapping of names to arrays")
        self._prefix = prefix
        keys = _names(state)
        self._left = {key[len(prefix) :]: _array(state[key], key) for key in keys if key.startswith(prefix)}
        if _VERSION_KEY not in self._left:
            found = [key[: -len(_VERSION_KEY)] for key in keys if key.endswith(_VERSION_KEY)]
            hint = f"; it has states with prefix={' and '.join(map(repr, found))}" if found else ""
            raise ValueError(
                f"state_dict has no {prefix + _VERSION_KEY!r}: it is not complete, or no optimizer's{hint}"
            )
        version = self._whole_number(_VERSION_KEY)
        if version != VERSION:
            raise ValueError(f"state_dict is of version {version}; this fastclip reads version {VERSION}")
        saved_rule = self._text("fastclip.optimizer")
        if saved_rule != rule:
            raise ValueError(f"state_dict is of the optimizer {saved_rule!r}; this one is {rule!r}")
        self._slot_dtype = slot_dtype
        saved_dtype = self._text(_SLOT_DTYPE_KEY) if _SLOT_DTYPE_KEY in self._left else None
        if saved_dtype != slot_dtype:
            raise ValueError(
                f"state_dict has slot_dtype={saved_dtype!r}; this optimizer has slot_dtype={slot_dtype!r}"
            )
        count = self._whole_number("variables")
        # A state that was saved before the first step has no variables, and fits any.
        if count not in (0, len(arrays)):
            raise ValueError(
                f"state_dict has {count} variables, and {len(arrays)} are given: pass var_list, the "
                "variables in the order in which the optimizer that was saved first met them"
            )
        self.skipped_steps = self._whole_number("skipped_steps")
        has_slots = self._flags("has_slots", count)
        if any(has_slots) and not slot_names:
            raise ValueError(f"state_dict[{self._key('has_slots')}] holds 1; the optimizer has no slots")
        self.slots: list[list[_Array] | None] = [None] * len(arrays)
        for index, flag in enumerate(has_slots):
            self._check_shape(index, arrays[index])
            if flag:
                self.slots[index] = self._take_slots(index, arrays[index], slot_names)
        self.other = self._left

    def _key(self, name: str) -> str:
        """Return the key of an entry as it is shown in messages."""
        return repr(self._prefix + name)

    def _take(self, name: str) -> _Array:
        """Remove an entry from those that are left, and return it."""
        try:
            return self._left.pop(name)
        except KeyError:
            raise ValueError(
                f"state_dict has no {self._key(name)}: it is not complete, or no optimizer's"
            ) from None

    def _whole_number(self, name: str) -> int:
        """Remove an entry, and return it as a number from 0 to the largest int64."""
        value = self._take(name)
        if value.ndim or value.dtype.kind not in "iu":
            raise _entry_error(self._key(name), value, "a whole number, of an integer type and no dimensions")
        number = int(value)
        if not 0 <= number <= np.iinfo(np.int64).max:
            raise ValueError(
                f"state_dict[{self._key(name)}] is {number}; it takes 0 or more, up to {2**63 - 1}"
            )
        return number

    def _text(self, name: str) -> str:
        """Remove an entry, and return it as text."""
        value = self._take(name)
        if value.ndim != 1 or value.dtype != np.uint8:
            raise _entry_error(self._key(name), value, "text as bytes, of dtype uint8 and one dimension")
        return value.tobytes().decode(errors="replace")

    @raises_memory_error
    def _flags(self, name: str, count: int) -> list[bool]:
        """Remove an entry, and return it as `count` booleans."""
        value = self._take(name)
        if value.shape != (count,) or value.dtype != np.uint8:
            raise _entry_error(self._key(name), value, f"uint8 and ({count},)")
        if value.size and value.max() > 1:
            at = int(np.argmax(value > 1))
            raise ValueError(f"state_dict[{self._key(name)}][{at}] is {value[at]}; it takes 0 and 1")
        return [bool(flag) for flag in value]

    def _check_shape(self, index: int, array: _Array) -> None:
        """Remove the shape of variable number `index`, and check that `array` has it."""
        name = f"shape.{index}"
        value = self._take(name)
        if value.ndim != 1 or value.dtype.kind not in "iu":
            raise _entry_error(
                self._key(name), value, "the shape of a variable, of an integer type and one dimension"
            )
        shape = tuple(value.tolist())
        if shape != array.shape:
            raise ValueError(
                f"state_dict[{self._key(name)}] is {shape}; the variable that is given has the shape "
                f"{array.shape}"
            )

    def _take_slots(self, index: int, array: _Array, slot_names: Sequence[str]) -> list[_Array]:
        """Remove the slots of variable number `index`, and return them."""
        slots = [self._take(f"{name}.{index}") for name in slot_names]
        for name, slot in zip(slot_names, slots, strict=True):
            dtype = array.dtype if self._slot_dtype is None else np.dtype(np.uint16)
            if slot.shape != array.shape or slot.dtype != dtype:
                whose = "those" if self._slot_dtype is None else f"bits of {self._slot_dtype} and the shape"
                raise _entry_error(
                    self._key(f"{name}.{index}"),
                    slot,
                    f"dtype {dtype} and shape {array.shape}, {whose} of variable {index}",
                )
        return slots


def _names(state: Mapping[str, Any]) -> list[str]:
    """Return the keys, after checking that they are strings."""
    names = list(state)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"state_dict has the key {name!r}, a {type(name).__name__}; it takes names")
    return names


def _array(value: Any, name: str) -> _Array:
    """Return an entry as an array."""
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


def _entry_error(key: str, value: _Array, expected: str) -> ValueError:
    """Return the error of an entry of the wrong dtype or shape."""
    return ValueError(
        f"state_dict[{key}] has dtype {value.dtype} and shape {value.shape}; it takes {expected}"
    )
