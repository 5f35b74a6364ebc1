"""Conversion of NumPy's allocation failures to MemoryError."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["raises_memory_error"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Messages of the interpreter's SystemError for a function that failed without setting an exception.
_NO_EXCEPTION_SET = ("error return without exception set", "returned NULL without setting an exception")


def raises_memory_error(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a function to raise MemoryError when NumPy cannot allocate memory in it.

    When an allocation fails, ufuncs and their reductions sometimes fail without setting an exception (seen
    with NumPy 2.4), which the interpreter reports as a SystemError.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except SystemError as error:
            if any(text in str(error) for text in _NO_EXCEPTION_SET):
                raise MemoryError("NumPy cannot allocate memory") from error
            raise

    return call
