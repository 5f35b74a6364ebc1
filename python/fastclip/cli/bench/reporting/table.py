"""Prints the results of the benchmark as tables in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastclip.cli.bench.measuring.import_time import ImportTime
from fastclip.cli.bench.measuring.peak_memory import MIB, PeakMemory
from fastclip.cli.bench.reporting.timed_row import NOTICEABLE_LOAD, TimedRow
from fastclip.cli.bench.suites.targets import Outcome
from fastclip.cli.durations import seconds_range_text, seconds_text


def print_rows(console: Console, rows: Sequence[TimedRow], peers: Sequence[str]) -> None:
    """Print a table for each case and dtype, with fastclip's time in each row and ratios to the others."""
    for (case, dtype), group in itertools.groupby(rows, key=lambda row: (row.row.case, row.row.dtype)):
        in_case = list(group)
        first = in_case[0].row
        variants = [name for row in in_case for name in row.timings if name.startswith("fastclip-")]
        others = ["limit", *peers, *dict.fromkeys(variants)]
        tensors = f"{len(first.shapes):,} tensors, " if len(first.shapes) > 1 else ""
        title = f"{case} {dtype} ({tensors}{first.elements:,} elements)"
        table = Table(
            title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
        )
        table.add_column("", width=max(12, *(len(row.row.variant[0]) for row in in_case)))
        table.add_column("fastclip", width=9, justify="right")
        for name in others:
            heading = name.replace("-", "\n")
            table.add_column(heading, width=max(7, *map(len, heading.split("\n"))), justify="right")
        for row in in_case:
            table.add_row(
                _variant_cell(row), _fastclip_cell(row), *(_ratio_cell(row, name) for name in others)
            )
        console.print(table)
    console.print(
        "Under fastclip: median time and quartiles. Under the others: fastclip's median time / theirs "
        "(below 1, fastclip is faster), and their median time. The limit is how fast this machine moves "
        "the same bytes.\n",
        style="dim",
        highlight=False,
    )
    print_other_load(console, rows)
    for row in rows:
        for name, reason in row.absent.items():
            console.print(f"{row.row.name}: without {name}: {reason}", style="yellow", markup=False)


def print_other_load(console: Console, rows: Sequence[TimedRow]) -> None:
    """Print a warning if other processes kept the machine busy while rows were timed."""
    disturbed = [row for row in rows if row.is_disturbed]
    if disturbed:
        worst = max(disturbed, key=lambda row: row.other_cores or 0.0)
        console.print(
            f"Not to be relied on: during {len(disturbed)} of {len(rows)} rows, other processes kept more "
            f"than {NOTICEABLE_LOAD:g} cores of this machine busy; during {worst.row.name}, "
            f"{worst.other_cores:.1f}.\n",
            style="yellow",
            highlight=False,
            markup=False,
        )


def _variant_cell(row: TimedRow) -> Text:
    first, second = row.row.variant
    cell = Text(first)
    cell.append(f"\n{second}", style="dim")
    return cell


def _fastclip_cell(row: TimedRow) -> Text:
    timing = row.timings["fastclip"]
    cell = Text(seconds_text(timing.median), style="bold")
    cell.append(f"\n{seconds_range_text(*timing.quartiles)}", style="dim not bold")
    return cell


def _ratio_cell(row: TimedRow, name: str) -> Text:
    ratio = row.ratio(name)
    if ratio is None:
        return Text("-", style="dim")
    faster = ratio <= (1.10 if name == "limit" else 1.0)
    cell = Text(f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}", style="green" if faster else "yellow")
    cell.append(f"\n{seconds_text(row.timings[name].median)}", style="dim not green")
    return cell


def print_memory(console: Console, memory: PeakMemory) -> None:
    """Print the peak memory of an out-of-place call."""
    console.print(
        f"peak memory, out of place: {memory.peak_bytes / MIB:,.1f} MiB; inputs and outputs are "
        f"{(memory.input_bytes + memory.output_bytes) / MIB:,.1f} MiB, "
        f"so {memory.excess_bytes / MIB:+,.1f} MiB on top",
        highlight=False,
    )


def print_import(console: Console, times: ImportTime) -> None:
    """Print the import time of fastclip minus that of NumPy."""
    console.print(
        f"import fastclip: {1e3 * times.difference:+.1f} ms on top of import numpy", highlight=False
    )


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print each target and whether it was met."""
    styles = {"met": "green", "missed": "bold red", "unclear": "yellow"}
    # Names are folded where the terminal is too narrow, and never cut.
    table = Table(title="targets", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("row", "against"):
        table.add_column(heading, overflow="fold")
    for heading in ("at most", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for outcome in outcomes:
        target = outcome.target
        if outcome.measured is not None:
            unit = "" if target.unit == "x" else f" {target.unit}"
            table.add_row(
                target.row,
                target.against,
                f"{target.at_most:g}{unit}",
                f"{outcome.measured:.3g}{unit}",
                Text(outcome.verdict, style=styles[outcome.verdict]),
            )
    if table.row_count:
        console.print(table)
    missing: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.measured is None:
            missing.setdefault(outcome.target.row, []).append(outcome.target.against)
    if missing:
        names = ", ".join(f"{row} ({', '.join(against)})" for row, against in missing.items())
        console.print(f"not measured: {names}", style="dim", highlight=False, markup=False)
