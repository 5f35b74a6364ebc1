"""Progress bars on stderr, where there is a terminal to show them and rich to draw them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
Describe = Callable[[str], None]


@contextlib.contextmanager
def bytes_progress(description: str, total: int) -> Iterator[Advance]:
    """Show how many of `total` bytes are done; yields the function that is told of more."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError:
        yield lambda size: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda size: progress.advance(task, size)


@contextlib.contextmanager
def steps_progress(total: int) -> Iterator[tuple[Describe, Advance]]:
    """Show how many of `total` steps are done.

    Yields a function that says what is being done now, and one that is told of steps done.
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
        # Drawn twice a second: what is timed meanwhile should not share the CPU with a bar.
        refresh_per_second=2,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=total)
        yield (
            lambda text: progress.update(task, description=text),
            lambda steps: progress.advance(task, steps),
        )
