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
    names: list[str],
    args: argparse.Namespace,
    describe: Callable[[str], None],
) -> TimedRow:
    work = suite.workload(row)
    absent: dict[str, str] = {}
    runners = []
    for name in (*suite.own, *names):
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
            if name in suite.own:
                raise CommandError(f"{row.name}: {reason}", exit_code=1) from error
            absent[name] = reason  # a peer may not know the type, or fail in this version
            continue
        runners.append(contender)
    runners.append(suite.limit(work))
    quick = args.quick or args.size == "small"
    others = OtherLoad()
    timings = timing.measure(
        runners,
        seconds=args.seconds if args.seconds is not None else (0.5 if quick else 10.0),
        rounds=args.rounds,
        min_rounds=3 if quick else 7,
        pause=0.0 if args.size == "small" else timing.PAUSE,
        on_round=lambda done: describe(f"{row.name}, round {done}"),
    )
    labels = {runner.name: runner.label for runner in runners}
    return TimedRow(row, timings, labels, absent, others.cores())
