"""``fastclip bench``: times clipping and optimizer steps in fastclip and in other libraries."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import time

import fastclip
from fastclip.cli.bench.arguments import add_arguments, check_usage
from fastclip.cli.bench.cliffs.suite import CLIFFS
from fastclip.cli.bench.clipping.suite import CLIPPING
from fastclip.cli.bench.measuring.import_time import measure_import_time
from fastclip.cli.bench.measuring.peak_memory import measure_peak_memory
from fastclip.cli.bench.pytorch.suite import PYTORCH, check_torch
from fastclip.cli.bench.reporting.output import write_results
from fastclip.cli.bench.reporting.results import Results
from fastclip.cli.bench.row_timing import time_row
from fastclip.cli.bench.suites.peer_libraries import import_peers, not_installed, select_peers
from fastclip.cli.bench.suites.row import BenchmarkRow
from fastclip.cli.bench.suites.suite import AnySuite
from fastclip.cli.bench.training.suite import TRAINING
from fastclip.cli.errors import CommandError
from fastclip.cli.printing import print_result
from fastclip.cli.progress import steps_progress

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Measure the selected rows and print the results."""
    suite = _suite(args)
    rows, process_cases = _select(args, suite)
    if args.list:
        print_result("\n".join([*(row.name for row in rows), *process_cases]))
        return 0
    peers = select_peers(args.peers, suite.peers)
    check_usage(args)
    with fastclip.threads(args.threads or fastclip.get_num_threads()):
        return _measure(args, suite, rows, process_cases, peers)


def _suite(args: argparse.Namespace) -> AnySuite:
    """Return the suite that the options select."""
    for option, suite in (("cliffs", CLIFFS), ("torch", PYTORCH)):
        if getattr(args, option):
            others = [other for other in ("train", "gpu", "cliffs", "torch") if other != option]
            if any(getattr(args, other) for other in others):
                names = ", ".join(f"--{other}" for other in others)
                raise CommandError(f"--{option}: it has rows of its own; leave out {names}")
            if option == "torch":
                check_torch()
            return suite
    if not args.gpu:
        return TRAINING if args.train else CLIPPING
    if args.train:
        raise CommandError("--gpu: rows with optimizer steps are among its own; leave out --train")
    try:
        # Imported here because builds without the GPU path lack the module that it needs.
        from fastclip.cli.bench.device.suite import DEVICE
    except ImportError as error:
        raise CommandError(f"--gpu: {error}") from None
    return DEVICE


def _measure(
    args: argparse.Namespace,
    suite: AnySuite,
    rows: list[BenchmarkRow],
    process_cases: list[str],
    peers: list[str],
) -> int:
    """Measure, print the results and return the exit code."""
    started = time.time()
    results = Results(suite.targets())
    if args.peers is None:
        results.not_installed = not_installed(suite.peers)
    with steps_progress(len(rows) + len(process_cases)) as (describe, advance):
        if rows:
            describe("importing " + ", ".join(peers))
            import_peers(peers, suite.peers, fastclip.get_num_threads())
        for row in rows:
            describe(row.name)
            try:
                suite.check_memory(row, 1 + len(peers))
                results.rows.append(time_row(suite, row, peers, args, describe))
            except MemoryError as error:
                results.skipped[row.name] = ": ".join(["not enough memory", *map(str, error.args)])
            gc.collect()  # libraries leave reference cycles, some of which hold gigabytes
            advance(1)
        for case in process_cases:
            describe(case)
            _measure_process_case(case, results, args)
            advance(1)
    outcomes = results.outcomes(quick=args.quick) if args.check else []
    write_results(args, results, peers, outcomes, started)
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _select(args: argparse.Namespace, suite: AnySuite) -> tuple[list[BenchmarkRow], list[str]]:
    """Return the rows, and the cases that are measured in new processes, that the options select."""
    rows: list[BenchmarkRow] = suite.rows(args.size, args.dtype)
    process_cases = list(suite.process_cases)
    if args.case:
        for pattern in args.case:
            if not any(_matches(row.name, pattern) for row in rows) and pattern not in process_cases:
                known = ", ".join((*suite.cases, *process_cases))
                raise CommandError(f"--case: {pattern!r} is no case ({known}), and no row of --list fits it")
        rows = [row for row in rows if any(_matches(row.name, pattern) for pattern in args.case)]
        process_cases = [case for case in process_cases if case in args.case]
    elif args.quick:
        rows = [row for row in rows if any(_matches(row.name, pattern) for pattern in suite.quick)]
    return rows, process_cases


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is the case of the row `name`, or a shell-style pattern that matches `name`."""
    return name.split("/")[0] == pattern or fnmatch.fnmatchcase(name, pattern)


def _measure_process_case(case: str, results: Results, args: argparse.Namespace) -> None:
    try:
        if case == "memory":
            results.memory = measure_peak_memory(args.size)
        else:
            results.imports = measure_import_time(5 if args.quick or args.size == "small" else 21)
    except RuntimeError as error:
        results.skipped[case] = str(error).splitlines()[-1]
