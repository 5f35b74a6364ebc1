"""Traced values of variables while a loss is differentiated.

An engine that differentiates a loss replaces the values of variables by its own traced values. They are kept
in a context variable, so that threads may differentiate at the same time, and are removed after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["Trace", "current_trace", "tracing"]


def _identity(array: npt.NDArray[Any]) -> Any:
    return array


@dataclass(frozen=True, slots=True)
class Trace:
    """One differentiation.

    Attributes
    ----------
    engine : str
        Name of the library that differentiates.
    values : mapping of Variable to object
        Traced value of each variable with respect to which the loss is differentiated.
    constant : callable
        Converts an array that is a constant of the loss to the type that the library computes with.
    outer : Trace or None
        The differentiation that encloses this one.
    """

    engine: str
    values: Mapping[object, Any]
    constant: Callable[[npt.NDArray[Any]], Any]
    outer: Trace | None

    def find(self, variable: object) -> Trace | None:
        """Returns the innermost differentiation with respect to a variable; None if there is none."""
        trace: Trace | None = self
        while trace is not None and variable not in trace.values:
            trace = trace.outer
        return trace


_current: ContextVar[Trace | None] = ContextVar("fastclip_trace", default=None)

#: Returns the innermost differentiation; None if there is none.
current_trace = _current.get


@contextmanager
def tracing(
    engine: str, values: Mapping[object, Any], constant: Callable[[npt.NDArray[Any]], Any] = _identity
) -> Iterator[None]:
    """Context manager in which variables read as traced values."""
    token = _current.set(Trace(engine, values, constant, _current.get()))
    try:
        yield
    finally:
        _current.reset(token)
