"""Suite of ``fastclip bench --torch``: the functions and optimizers of `fastclip.torch`, and PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence

from fastclip.cli.bench.cliffs.cliff import CliffRow, Size, Work
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.pytorch import clipping, optimizers
from fastclip.cli.bench.suites.peer_libraries import Peer
from fastclip.cli.bench.suites.suite import Suite
from fastclip.cli.bench.suites.targets import Target

_CASES = (*clipping.CASES, *optimizers.CASES)
CASES = tuple(case.case for case in _CASES)


def rows(size: str, dtypes: Sequence[str] | None = None) -> list[CliffRow]:
    """Return all rows.

    Parameters
    ----------
    size : {"full", "small"}
        The size of the shapes.
    dtypes : sequence of str, optional
        Selects the rows of these dtypes.
    """
    selected = [case for case in _CASES if dtypes is None or case.dtype in dtypes]
    return [CliffRow(case, Size("base", size == "small")) for case in selected]


def targets() -> list[Target]:
    """Return the targets: the bounds of each case."""
    return [
        Target(row.name, against, at_most)
        for row in rows("full")
        for against, at_most in row.cliff.at_most.items()
    ]


def _contender(name: str, work: Work) -> Contender | None:
    make = work.contenders.get(name)
    return None if make is None else make()


PYTORCH: Suite[CliffRow, Work] = Suite(
    cases=CASES,
    process_cases=(),
    quick=("*-many/*", "*-one/*", "transformer-step/*"),
    fastclip_contenders=("fastclip", "fastclip-reference"),
    peers={
        "torch": Peer("torch", ("torch",)),
        "deepspeed": Peer("torch's clip_grad_norm_, and DeepSpeedCPUAdam", ("torch", "deepspeed")),
    },
    rows=rows,
    check_memory=lambda row, count: None,
    workload=CliffRow.work,
    contender=_contender,
    check_result=lambda contender, work: work.check(contender),
    limit=lambda work: work.limit,
    targets=targets,
)
