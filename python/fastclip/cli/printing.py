"""Prints results to stdout, and messages to stderr, whatever state these streams are in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class StdoutError(Exception):
    """The output of a command could not be printed.

    Parameters
    ----------
    message : str
        Why it could not be printed.
    reader_left : bool
        Whether the reason is that the reader has closed the pipe, as in ``fastclip info | head -1``.
    """

    def __init__(self, message: str, reader_left: bool = False) -> None:
        super().__init__(message)
        self.reader_left = reader_left


@contextlib.contextmanager
def to_stdout() -> Iterator[None]:
    """Flush stdout after the block, and raise StdoutError for an OSError or MemoryError inside it.

    Raises
    ------
    StdoutError
        Also if stdout is closed; the block is not run then.
    """
    if sys.stdout is None:
        raise StdoutError("stdout is closed")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        raise StdoutError("the reader has closed the pipe", reader_left=True) from None
    except (OSError, MemoryError) as error:
        _discard(sys.stdout)
        reason = "not enough memory" if isinstance(error, MemoryError) else error.strerror or str(error)
        raise StdoutError(reason) from None


def print_result(text: str) -> None:
    """Print a text and a line break to stdout, and flush it."""
    with to_stdout():
        print(text)


def print_message(text: str, program: str = "fastclip") -> None:
    """Print a text to stderr, in a line that begins with the name of the program, if stderr takes it."""
    if sys.stderr is None:
        return
    try:
        print(f"{program}: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def console() -> Console:
    """Return a console of rich for stdout, whose errors are those of stdout."""
    from rich.console import Console

    class StdoutConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with code 1. It calls this where it handles the BrokenPipeError.

    return StdoutConsole()


def open_closed_streams() -> None:
    """Open the null device in the place of each standard stream that is closed.

    Otherwise the next file that is opened would get the descriptor of stdout or stderr, and with it whatever
    a library prints there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest descriptor that is free, which is this one


@contextlib.contextmanager
def any_character() -> Iterator[None]:
    """Let characters that the encoding of stdout lacks be printed as escape sequences in the block."""
    stream: Any = sys.stdout
    errors = getattr(stream, "errors", None)
    if errors is None or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors=errors)


def _discard(stream: Any) -> None:
    """Connect a stream that cannot be written to the null device.

    What is left in its buffer goes there when the interpreter exits. It would otherwise exit with code 120.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
