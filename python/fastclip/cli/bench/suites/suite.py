"""Definition of a suite: the rows that ``fastclip bench`` can time, and their contenders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Peers
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.suites.targets import Target

RowT = TypeVar("RowT", bound=BenchmarkRow)
WorkT = TypeVar("WorkT")


@dataclass(frozen=True)
class Suite(Generic[RowT, WorkT]):
    """A set of benchmark rows, and the functions that prepare their contenders.

    Attributes
    ----------
    cases : tuple of str
        The cases of the rows.
    process_cases : tuple of str
        Further cases, which are no rows and are measured in new processes: "memory" and "import".
    quick : tuple of str
        Patterns of the names of the rows that ``--quick`` selects.
    fastclip_contenders : tuple of str
        The names of the contenders that call fastclip. The first one takes part in every row.
    peers : Peers
        The contenders that call other libraries.
    rows : callable
        Takes ``--size`` and the selected dtypes (None for the defaults) and returns the rows.
    check_memory : callable
        Takes a row and the number of contenders. Raises MemoryError if the machine has too little memory
        for all of them at the same time.
    workload : callable
        Takes a row and returns its workload: the gradients and whatever else the contenders share.
    contender : callable
        Takes a name and a workload. Returns None if that contender does not support the row.
    check_result : callable
        Takes a contender that has been called once, and the workload. Raises if the result is wrong.
    limit : callable
        Takes a workload and returns the contender that only moves the bytes.
    targets : callable
        Returns the performance targets.
    """

    cases: tuple[str, ...]
    process_cases: tuple[str, ...]
    quick: tuple[str, ...]
    fastclip_contenders: tuple[str, ...]
    peers: Peers
    rows: Callable[[str, Sequence[str] | None], list[RowT]]
    check_memory: Callable[[RowT, int], None]
    workload: Callable[[RowT], WorkT]
    contender: Callable[[str, WorkT], Contender | None]
    check_result: Callable[[Contender, WorkT], None]
    limit: Callable[[WorkT], Contender]
    targets: Callable[[], Sequence[Target]]


AnySuite = Suite[Any, Any]
