"""Writes the results of a run as tables, JSON and a plot."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import fastclip
from fastclip.cli.bench.measuring.machine import describe_machine
from fastclip.cli.bench.reporting.results import Results
from fastclip.cli.bench.suites.targets import Outcome
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json
from fastclip.cli.printing import console, print_result, to_stdout


def write_results(
    args: argparse.Namespace,
    results: Results,
    peers: list[str],
    outcomes: list[Outcome],
    started: float,
) -> None:
    """Write the plot, the JSON and the tables that the options request.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments of the command.
    results : Results
        The results of the run.
    peers : list of str
        The selected peers.
    outcomes : list of Outcome
        The comparison with the targets; empty without ``--check``.
    started : float
        The value of `time.time` at the start of the run.
    """
    machine = describe_machine()
    config = fastclip.config()
    if args.plot is not None:
        from fastclip.cli.bench.reporting.plot import plot_rows

        title = f"fastclip {config['version']} on {machine['cpu']}, {config['threads']} threads"
        try:
            plot_rows(results.rows, title, args.plot)
        except (OSError, ValueError) as error:
            raise CommandError(f"--plot: {args.plot} cannot be written: {error}") from None
    if args.json is not None:
        report: dict[str, Any] = {
            "fastclip": config,
            "machine": machine,
            "settings": {
                "train": args.train,
                "gpu": args.gpu,
                "torch": args.torch,
                "size": args.size,
                "threads": config["threads"],
                "peers": peers,
                "seconds_in_all": time.time() - started,
            },
            "rows": [row.to_dict() for row in results.rows],
            "skipped": results.skipped,
            "not_installed": results.not_installed,
        }
        report["rows"] += [result.to_dict() for result in (results.memory, results.imports) if result]
        if args.check:
            report["targets"] = [outcome.to_dict() for outcome in outcomes]
        _write_json(args.json, to_json(report))
    if args.json != "-":
        with to_stdout():
            _print_tables(results, peers, outcomes, f"{machine['cpu']}, {config['threads']} threads")


def _write_json(path: str, text: str) -> None:
    if path == "-":
        print_result(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise CommandError(f"--json: {path} cannot be written: {error.strerror}") from None


def _print_tables(results: Results, peers: list[str], outcomes: list[Outcome], machine: str) -> None:
    from fastclip.cli.bench.reporting import table

    output = console()
    output.print(machine, highlight=False)
    if results.rows:
        table.print_rows(output, results.rows, peers)
    if results.memory is not None:
        table.print_memory(output, results.memory)
    if results.imports is not None:
        table.print_import(output, results.imports)
    if results.rows and results.not_installed:
        missing = (f"{peer} (pip install {' '.join(names)})" for peer, names in results.not_installed.items())
        output.print(f"not compared with, as not installed: {', '.join(missing)}", style="dim", markup=False)
    for name, reason in results.skipped.items():
        output.print(f"{name}: not measured: {reason}", style="yellow", markup=False)
    if outcomes:
        table.print_outcomes(output, outcomes)
