"""Times all contenders of one row."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fastclip.cli.bench.measuring import timing
from fastclip.cli.bench.measuring.other_load import OtherLoad
from fastclip.cli.bench.reporting.timed_row import TimedRow
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.suites.suite import AnySuite
from fastclip.cli.errors import CommandError, one_line_message


def time_row(
    suite: AnySuite,
    row: BenchmarkRow,
    peers: list[str],
    args: argparse.Namespace,
    describe: Callable[[str], None],
) -> TimedRow:
    """Time fastclip, the peers and the limit on one row.

    Parameters
    ----------
    suite : Suite
        The suite that the row belongs to.
    row : BenchmarkRow
        The row.
    peers : list of str
        The selected peers. One that fails is left out; the result contains the reason.
    args : argparse.Namespace
        The arguments of the command.
    describe : callable
        Called with a text on the progress after each round.

    Raises
    ------
    CommandError
        If fastclip fails or returns a wrong result.
    MemoryError
        If there is too little memory for all contenders.
    """
    work = suite.workload(row)
    absent: dict[str, str] = {}
    contenders = []
    for name in (*suite.fastclip_contenders, *peers):
        try:
            contender = suite.contender(name, work)
            if contender is None:
                continue
            contender.refresh()
            contender.result = contender.call()
            suite.check_result(contender, work)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            reason = one_line_message(error)
            if name in suite.fastclip_contenders:
                raise CommandError(f"{row.name}: {reason}", exit_code=1) from error
            absent[name] = reason  # the installed version may not support the dtype, for example
            continue
        contenders.append(contender)
    contenders.append(suite.limit(work))
    quick = args.quick or args.size == "small"
    other_load = OtherLoad()
    timings = timing.measure(
        contenders,
        seconds=args.seconds if args.seconds is not None else (0.5 if quick else 10.0),
        rounds=args.rounds,
        min_rounds=3 if quick else 7,
        pause=0.0 if args.size == "small" else timing.PAUSE_SECONDS,
        on_round=lambda done: describe(f"{row.name}, round {done}"),
    )
    labels = {contender.name: contender.label for contender in contenders}
    return TimedRow(row, timings, labels, absent, other_load.cores())
