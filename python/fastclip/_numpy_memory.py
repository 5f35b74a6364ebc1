"""NumPy's reports that memory has run out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["raises_memory_error"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: What the interpreter says of a function that failed and did not say why.
_WITHOUT_REASON = ("error return without exception set", "returned NULL without setting an exception")


def raises_memory_error(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function raise MemoryError where NumPy cannot allocate what it needs.

    Ufuncs and their reductions sometimes fail then without setting an exception (seen with NumPy 2.4), which
    the interpreter reports as a SystemError.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except SystemError as error:
            if any(text in str(error) for text in _WITHOUT_REASON):
                raise MemoryError("NumPy cannot allocate memory") from error
            raise

    return call
