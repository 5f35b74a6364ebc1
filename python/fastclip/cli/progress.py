"""Progress bars on stderr, shown if stderr is a terminal and rich is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
Describe = Callable[[str], None]


@contextlib.contextmanager
def bytes_progress(description: str, total: int) -> Iterator[Advance]:
    """Show how many of `total` bytes are done.

    Yields a function that advances the bar by a number of bytes.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError:
        yield lambda size: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(description, total=total)
    # A terminal that has gone away must not make a command fail whose work is done.
    with contextlib.suppress(OSError):
        progress.start()
    try:
        yield lambda size: progress.advance(task, size)
    finally:
        with contextlib.suppress(OSError):
            progress.stop()


@contextlib.contextmanager
def steps_progress(total: int) -> Iterator[tuple[Describe, Advance]]:
    """Show how many of `total` steps are done.

    Yields a function that sets the text beside the bar, and one that advances the bar by a number of steps.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield (lambda text: None), (lambda steps: None)
        return
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns,
        console=console,
        transient=True,
        # Few redraws, because they take CPU time from the calls that are timed meanwhile.
        refresh_per_second=2,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=total)
        yield (
            lambda text: progress.update(task, description=text),
            lambda steps: progress.advance(task, steps),
        )
