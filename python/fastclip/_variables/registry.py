"""Weak references to all trainable variables, in order of creation."""

from __future__ import annotations

import weakref
from itertools import count
from typing import Any

__all__ = ["add_trainable", "live_trainable"]

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
