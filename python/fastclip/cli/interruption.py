"""What signals do to a command: Ctrl-C, and the signals that end a process.

Ctrl-C raises KeyboardInterrupt, until the command's file is in its place: from then on it has no effect, so
that the exit code tells what happened to the file. SIGTERM and SIGHUP end the process as they do without
handlers, after its temporary files have been removed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

# Names are entered before the files are created, so that a signal cannot come between the two.
_temporary_files: set[Path] = set()
_ignoring = False


@contextlib.contextmanager
def handled(restore: bool) -> Iterator[None]:
    """Handle signals for the duration of the block, and remove the temporary files that it leaves.

    A signal for which the process has a handler of its own, or which it ignores (as under nohup), is left
    alone. Outside the main thread, which alone can set handlers, so are all signals.

    Parameters
    ----------
    restore : bool
        Whether to restore the previous handlers after the block. A process that ends then does not need them,
        and a late Ctrl-C must not change its exit code.
    """
    heed()
    previous = {}
    try:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                previous[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
            for number in _ENDING:
                if signal.getsignal(number) == signal.SIG_DFL:
                    previous[number] = signal.signal(number, _end)
        yield
    finally:
        _remove_temporary_files()
        if restore:
            for number in reversed(previous):
                signal.signal(number, previous[number])
        elif _ignoring and signal.SIGINT in previous:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # lasts until the process has ended


def ignore() -> None:
    """Let Ctrl-C have no effect from now on."""
    global _ignoring
    _ignoring = True


def heed() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    global _ignoring
    _ignoring = False


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[None]:
    """Remove a file that the block creates, unless it has been renamed, after the block and on a signal."""
    _temporary_files.add(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _temporary_files.discard(path)


def _remove_temporary_files() -> None:
    for path in list(_temporary_files):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        _temporary_files.discard(path)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _ignoring:
        raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    """Remove the temporary files and end the process by the same signal.

    The files are removed here, because an exception that a handler raises is lost in code that ignores
    exceptions, such as finalizers.
    """
    _remove_temporary_files()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
