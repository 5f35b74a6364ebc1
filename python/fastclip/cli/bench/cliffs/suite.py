"""Suite of ``fastclip bench --cliffs``: shapes and types for which a fast library easily becomes slow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from fastclip.cli.bench.cliffs import backward, many_arrays, norms, slices, sparse_rows, values
from fastclip.cli.bench.cliffs.cliff import CliffRow, Work
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Peer
from fastclip.cli.bench.suites.suite import Suite
from fastclip.cli.bench.suites.targets import Target

_CLIFFS = (
    *norms.CASES,
    *slices.CASES,
    *values.CASES,
    *sparse_rows.CASES,
    *many_arrays.CASES,
    *backward.CASES,
)
CASES = tuple(dict.fromkeys(cliff.case for cliff in _CLIFFS))


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[CliffRow]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        Selects the rows of these dtypes.
    """
    needs_torch = {cliff.case for cliff in backward.CASES}
    return [
        row
        for cliff in _CLIFFS
        if cliff.case not in needs_torch or find_spec("torch") is not None
        for row in cliff.rows(is_small=size == "small")
        if dtypes is None or row.dtype in dtypes
    ]


def targets() -> list[Target]:
    """Return the targets: the bounds of each cliff, for all of its rows."""
    return [
        Target(row.name, against, at_most)
        for row in rows("full")
        for against, at_most in row.cliff.at_most.items()
    ]


def _contender(name: str, work: Work) -> Contender | None:
    make = work.contenders.get(name)
    return None if make is None else make()


CLIFFS: Suite[CliffRow, Work] = Suite(
    cases=CASES,
    process_cases=(),
    quick=("*/base",),
    fastclip_contenders=("fastclip", "fastclip-reference"),
    peers={"numpy": Peer("NumPy"), "torch": Peer("torch", ("torch",))},
    rows=rows,
    check_memory=lambda row, count: None,
    workload=CliffRow.work,
    contender=_contender,
    check_result=lambda contender, work: work.check(contender),
    limit=lambda work: work.limit,
    targets=targets,
)
