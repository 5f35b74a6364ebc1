"""What ``fastclip bench`` can run: the rows of a suite, and who takes part in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Catalogue
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.suites.targets import Target

RowT = TypeVar("RowT", bound=BenchmarkRow)
WorkT = TypeVar("WorkT")


@dataclass(frozen=True)
class Suite(Generic[RowT, WorkT]):
    """Rows, what makes the contenders of one, and what they are measured for.

    Attributes
    ----------
    cases, extras : tuple of str
        The cases of the rows, and those that are not timed in this process.
    quick : tuple of str
        Patterns of the rows that ``--quick`` leaves.
    own : tuple of str
        The contenders that are fastclip; the first has to take part.
    peers : mapping
        The other contenders: what each is, and the packages it needs.
    rows : callable
        Takes ``--size`` and the types asked for, if any, and returns the rows.
    check_memory : callable
        Takes a row and the number of contenders that were asked for; raises MemoryError where
        the machine cannot have them side by side.
    workload : callable
        Returns the data of a row.
    contender : callable
        Takes a name and the data of a row; returns None where that one has nothing to compare.
    check_result : callable
        Raises if a contender's first call has not done what the row is about.
    limit : callable
        Returns the contender that only moves the bytes.
    targets : callable
        Returns what fastclip is to reach.
    """

    cases: tuple[str, ...]
    extras: tuple[str, ...]
    quick: tuple[str, ...]
    own: tuple[str, ...]
    peers: Catalogue
    rows: Callable[[str, Sequence[str] | None], list[RowT]]
    check_memory: Callable[[RowT, int], None]
    workload: Callable[[RowT], WorkT]
    contender: Callable[[str, WorkT], Contender | None]
    check_result: Callable[[Contender, WorkT], None]
    limit: Callable[[WorkT], Contender]
    targets: Callable[[], Sequence[Target]]


AnySuite = Suite[Any, Any]
