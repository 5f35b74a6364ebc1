"""Runs code of a test between two lines of fastclip's Python code, as a signal handler does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fastclip

_PACKAGE = str(Path(fastclip.__file__).parent) + os.sep


def is_of_fastclip(frame: FrameType) -> bool:
    """Returns whether a frame runs Python code of fastclip."""
    return frame.f_code.co_filename.startswith(_PACKAGE)


def call_traced(
    call: Callable[[], Any], trace: Callable[[FrameType, str, Any], Any], catch: type[BaseException]
) -> BaseException | None:
    """Calls `call` with a trace function. Returns its exception of type `catch`, or None."""
    # A coverage tool may trace the tests: its trace function is set again afterwards.
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except catch as error:
        return error
    finally:
        sys.settrace(previous)
    return None


def call_with_action(
    call: Callable[[], Any],
    action: Callable[[], Any],
    at: int,
    *,
    catch: type[BaseException],
    opcodes: bool = False,
) -> tuple[bool, BaseException | None]:
    """Calls `call`, and `action` before one of the lines of fastclip's code that the call runs.

    Parameters
    ----------
    call, action : callable
        Called without arguments. An exception of `action` is raised in fastclip's code.
    at : int
        Number of the line, counted from 0 in the order in which lines run.
    catch : type
        Exceptions of this type that `call` raises are returned; others are raised.
    opcodes : bool
        Count bytecode instructions as well as lines.

    Returns
    -------
    ran : bool
        Whether the call ran so many lines, so that `action` was called.
    error : BaseException or None
        The exception of the call.
    """
    remaining, ran = at, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal remaining, ran
        if not is_of_fastclip(frame):
            return None
        frame.f_trace_opcodes = opcodes
        if event in ("line", "opcode"):
            if remaining == 0:
                sys.settrace(None)
                ran = True
                action()
                return None
            remaining -= 1
        return trace

    error = call_traced(call, trace, catch)
    return ran, error
