"""Runs code of a test at the points of fastclip's Python code where the interpreter runs signal handlers.

The interpreter looks for signals after calls, at the beginning of functions and where a loop goes back, and
not between any two instructions, so that a flag that is set in front of a ``try`` is safe.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from support.line_tracing import call_traced, is_of_fastclip

_CHECKING = ("CALL", "RESUME", "JUMP_BACKWARD")

_names: dict[CodeType, dict[int, str]] = {}


def call_with_handler(
    call: Callable[[], Any], handler: Callable[[], Any], at: int, *, catch: type[BaseException]
) -> tuple[bool, BaseException | None]:
    """Calls `call`, and `handler` at one of the points where a signal may arrive.

    Parameters
    ----------
    call, handler : callable
        Called without arguments. An exception of `handler` is raised in fastclip's code.
    at : int
        Number of the point, counted from 0 in the order in which code runs.
    catch : type
        Exceptions of this type that `call` raises are returned; others are raised.

    Returns
    -------
    ran : bool
        Whether there were so many points, so that `handler` was called.
    error : BaseException or None
        The exception of the call.
    """
    remaining, ran = at, False
    last: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal remaining, ran
        if not is_of_fastclip(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "exception":
            # A call that raises is not followed by a look for signals.
            last[frame] = ""
        elif event == "opcode":
            before, last[frame] = last.get(frame), _name(frame)
            if before is not None and before.startswith(_CHECKING):
                if remaining == 0:
                    sys.settrace(None)
                    ran = True
                    handler()
                    return None
                remaining -= 1
        return trace

    try:
        error = call_traced(call, trace, catch)
    finally:
        last.clear()
    return ran, error


def _name(frame: FrameType) -> str:
    """Returns the name of the instruction that a frame is about to run."""
    code = frame.f_code
    if code not in _names:
        _names[code] = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
    return _names[code].get(frame.f_lasti, "")
