"""What a variable reads as while a loss is being differentiated.

An engine that differentiates a loss puts its own traced values in the place of the variables. The state
belongs to the context: threads may differentiate at once, and an exception leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["Trace", "current_trace", "tracing"]


def _same(array: npt.NDArray[Any]) -> Any:
    return array


@dataclass(frozen=True, slots=True)
class Trace:
    """One differentiation.

    Attributes
    ----------
    engine : str
        The name of the library that differentiates.
    values : mapping of Variable to object
        What it put in the place of each variable.
    constant : callable
        Makes what the library computes with of an array that it does not differentiate by.
    outer : Trace or None
        The differentiation that this one happens inside of.
    """

    engine: str
    values: Mapping[object, Any]
    constant: Callable[[npt.NDArray[Any]], Any]
    outer: Trace | None

    def find(self, variable: object) -> Trace | None:
        """The innermost differentiation by a variable."""
        trace: Trace | None = self
        while trace is not None and variable not in trace.values:
            trace = trace.outer
        return trace


_current: ContextVar[Trace | None] = ContextVar("fastclip_trace", default=None)

current_trace = _current.get


@contextmanager
def tracing(
    engine: str, values: Mapping[object, Any], constant: Callable[[npt.NDArray[Any]], Any] = _same
) -> Iterator[None]:
    """Let variables read as traced values."""
    token = _current.set(Trace(engine, values, constant, _current.get()))
    try:
        yield
    finally:
        _current.reset(token)
