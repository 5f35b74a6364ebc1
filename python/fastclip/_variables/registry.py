"""Weak references to variables: to the trainable ones in order of creation, and to all by their memory."""

from __future__ import annotations

import weakref
from itertools import count
from typing import Any

__all__ = ["add_memory", "add_trainable", "live_trainable", "variable_of"]

# Keyed by a number that counts up, which gives the order of creation. When a variable dies, the callback of
# its reference removes the entry with one dictionary operation and no lock: garbage collection may run the
# callback at any moment, also in the middle of the functions below.
_references: dict[int, weakref.ref[Any]] = {}
_numbers = count()


def add_trainable(variable: object) -> None:
    """Registers a variable as trainable for as long as it lives."""
    number = next(_numbers)
    _references[number] = weakref.ref(variable, lambda _: _references.pop(number, None))


def live_trainable() -> list[Any]:
    """Returns the registered variables that are still alive, in order of creation."""
    variables = [reference() for _, reference in sorted(_references.copy().items())]
    return [variable for variable in variables if variable is not None]


# Keyed by the identity of the array that holds the value, which lives at least as long as its variable.
_by_memory: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def add_memory(variable: object, memory: object) -> None:
    """Registers the array that holds the value of a variable."""
    _by_memory[id(memory)] = variable


def variable_of(memory: object) -> Any | None:
    """Returns the living variable whose value an array holds; None if there is none."""
    variable = _by_memory.get(id(memory))
    return variable if variable is not None and variable._data is memory else None
