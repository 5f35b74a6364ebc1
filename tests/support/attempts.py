"""Calls that may succeed or be refused, where both are right as long as it is one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What a refusal of an argument may be.
REFUSALS = (TypeError, ValueError, BufferError, OverflowError, MemoryError)


def attempt(
    call: Callable[[], Any], errors: type[Exception] | tuple[type[Exception], ...] = REFUSALS
) -> tuple[Any, str | None]:
    """Returns the result of a call and None, or None and the message of its refusal, one of `errors`."""
    try:
        return call(), None
    except errors as error:
        return None, str(error)
