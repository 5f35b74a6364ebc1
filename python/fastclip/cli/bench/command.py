"""``fastclip bench``: clipping, and optimizer steps, beside what people use today."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import time

import fastclip
from fastclip.cli.bench.arguments import add_arguments, check_usage
from fastclip.cli.bench.clipping.suite import CLIPPING
from fastclip.cli.bench.measuring.import_time import measure_import_time
from fastclip.cli.bench.measuring.peak_memory import measure_peak_memory
from fastclip.cli.bench.reporting.findings import Findings
from fastclip.cli.bench.reporting.output import show
from fastclip.cli.bench.row_timing import time_row
from fastclip.cli.bench.suites.peer_libraries import chosen_peers, import_peers
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.suites.suite import AnySuite
from fastclip.cli.bench.training.suite import TRAINING
from fastclip.cli.errors import CommandError
from fastclip.cli.progress import steps_progress

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Measure the rows asked for and show what was found."""
    suite = TRAINING if args.train else CLIPPING
    rows, extras = _chosen(args, suite)
    if args.list:
        print("\n".join([*(row.name for row in rows), *extras]))
        return 0
    names = chosen_peers(args.peers, suite.peers)
    check_usage(args)
    with fastclip.threads(args.threads or fastclip.get_num_threads()):
        return _run(args, suite, rows, extras, names)


def _run(
    args: argparse.Namespace, suite: AnySuite, rows: list[BenchmarkRow], extras: list[str], names: list[str]
) -> int:
    started = time.time()
    findings = Findings(suite.targets())
    with steps_progress(len(rows) + len(extras)) as (describe, advance):
        if rows:
            describe("importing " + ", ".join(names))
            import_peers(names, suite.peers, fastclip.get_num_threads())
        for row in rows:
            describe(row.name)
            try:
                suite.check_memory(row, 1 + len(names))
                findings.rows.append(time_row(suite, row, names, args, describe))
            except MemoryError as error:
                findings.skipped[row.name] = ": ".join(["not enough memory", *map(str, error.args)])
            gc.collect()  # libraries leave cycles, and some of these hold gigabytes
            advance(1)
        for extra in extras:
            describe(extra)
            _measure_extra(extra, findings, args)
            advance(1)
    outcomes = findings.outcomes() if args.check else []
    show(args, findings, names, outcomes, started)
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _chosen(args: argparse.Namespace, suite: AnySuite) -> tuple[list[BenchmarkRow], list[str]]:
    """Return the rows to time and the cases that are not timed in this process."""
    rows: list[BenchmarkRow] = suite.rows(args.size, args.dtype)
    extras = list(suite.extras)
    if args.case:
        for wanted in args.case:
            if not any(_matches(row.name, wanted) for row in rows) and wanted not in extras:
                known = ", ".join((*suite.cases, *extras))
                raise CommandError(f"--case: {wanted!r} is no case ({known}), and no row of --list fits it")
        rows = [row for row in rows if any(_matches(row.name, wanted) for wanted in args.case)]
        extras = [extra for extra in extras if extra in args.case]
    elif args.quick:
        rows = [row for row in rows if any(_matches(row.name, wanted) for wanted in suite.quick)]
    return rows, extras


def _matches(name: str, wanted: str) -> bool:
    return name.split("/")[0] == wanted or fnmatch.fnmatchcase(name, wanted)


def _measure_extra(extra: str, findings: Findings, args: argparse.Namespace) -> None:
    try:
        if extra == "memory":
            findings.memory = measure_peak_memory(args.size)
        else:
            findings.imports = measure_import_time(5 if args.quick or args.size == "small" else 21)
    except RuntimeError as error:
        findings.skipped[extra] = str(error).splitlines()[-1]
