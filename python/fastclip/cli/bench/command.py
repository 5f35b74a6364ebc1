"""``fastclip bench``: clipping, and optimizer steps, beside what people use today."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastclip
from fastclip.cli import progress
from fastclip.cli.bench import targets, timing, workload
from fastclip.cli.bench.import_time import ImportTime, measure_import_time
from fastclip.cli.bench.machine import describe_machine
from fastclip.cli.bench.other_load import OtherLoad
from fastclip.cli.bench.peak_memory import MIB, PeakMemory, measure_peak_memory
from fastclip.cli.bench.peer_libraries import chosen_peers, import_peers
from fastclip.cli.bench.results import TimedRow
from fastclip.cli.bench.row import Row
from fastclip.cli.bench.suite import CLIPPING, TRAINING, AnySuite
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json

_DESCRIPTION = """\
Time clipping of gradients with the shapes of real models, beside what people use
today and beside the limit: how fast this machine moves the same bytes. With --train,
time clipping and an optimizer's step together.

All contenders run in one process in turns: each round runs each of them once, in
rotating order. What counts is the median over the rounds. In-place rows put the
gradients back before every call, so that there is always something to clip; so do
rows of --train, as a backward pass would.
"""

_EPILOG = """\
cases of clipping:
  gpt2           GPT-2 small: 148 tensors, 124 M elements
  resnet50       ResNet-50: 161 tensors, 25.6 M elements
  many           2000 tensors of 512 elements
  mlp            6 tensors, 0.1 M elements
  25.6M          one tensor, float16 and bfloat16, in place
  clip-by-norm   the rows of a 4096 x 4096 matrix
  clip-by-value  one tensor of 25.6 M elements
  memory         peak memory of an out-of-place call, in a process of its own
  import         import time, in processes of their own

cases of --train, with rows such as gpt2/adamw/bf16 (the type is that of the gradients;
variables and slots are float32):
  gpt2           clip by global norm + AdamW, with bfloat16 gradients too; + momentum
  resnet50       clip by global norm + AdamW; every other optimizer, without clipping
  many, mlp      clip by global norm + AdamW

peers of clipping:
  numpy    NumPy as people write it
  expert   NumPy as an expert writes it: np.vdot, np.multiply(out=)
  torch    torch.nn.utils.clip_grad_norm_, torch.renorm, torch.clamp
  tf       tf.clip_by_..., in a tf.function
  jax      optax.clip_by_global_norm, jitted; for the rest jitted JAX

peers of --train:
  numpy          NumPy as people write it, out of place
  torch          clip_grad_norm_, and AdamW or SGD with fused=True
  torch-foreach  the same with foreach=True
In rows of narrower gradients fastclip-f32 is fastclip with float32 gradients, in the same
run. (torch takes no such gradients for float32 parameters.)

limit:
  Plain SIMD loops over the same bytes, on the same threads, one pass after the other.
  Clipping: one that reads the gradients for their norm and one that scales them, or
  copies them out of place. --train: one that reads the gradients for their norm, where
  there is clipping; one that reads them again; and one that reads and writes as many
  bytes as variables and slots have.

exit codes:
  0    done
  1    --check: a target was missed; or fastclip gave a wrong result
  2    bad usage, or a missing optional package
  130  interrupted

examples:
  fastclip bench --quick
  fastclip bench --case gpt2 --peers torch,tf --seconds 30
  fastclip bench --case 'many/f32/in-place/*' --json -
  fastclip bench --check --json results.json --plot results.png
  fastclip bench --train --case gpt2 --case 'resnet50/ftrl/*'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip bench``."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("--train", action="store_true", help="time clipping + an optimizer's step")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds: less than 30 s")
    parser.add_argument(
        "--case",
        action="append",
        metavar="NAME",
        help="a case below, or a pattern of row names such as 'gpt2/f32/in-place/*'; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=workload.DTYPES,
        help="the type of the gradients; may be repeated (default: each case's own)",
    )
    parser.add_argument(
        "--peers", metavar="A,B", help="whom to compare with, or none (default: all that are installed)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads, of fastclip and its peers")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row (default: 10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="make N rounds, however long they take")
    parser.add_argument(
        "--size", choices=("full", "small"), default="full", help="small: toy shapes that show nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and exit")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", help="write JSON, to stdout without PATH or with -"
    )
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the times against the limit, as PNG")
    parser.add_argument(
        "--check", action="store_true", help="compare with the targets; exit code 1 if one is missed"
    )


@dataclass
class _Findings:
    """What a run has measured so far, of which targets."""

    goals: Sequence[targets.Target]
    rows: list[TimedRow] = field(default_factory=list)
    memory: PeakMemory | None = None
    imports: ImportTime | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def outcomes(self) -> list[targets.Outcome]:
        measured: dict[tuple[str, str], float] = {}
        for row in self.rows:
            for name in row.timings:
                ratio = row.ratio(name)
                if ratio is not None:
                    measured[row.row.name, name] = ratio
        if self.memory is not None:
            measured["memory/f32/out-of-place", "inputs + outputs"] = self.memory.excess_bytes / MIB
        if self.imports is not None:
            measured["import", "import numpy"] = 1e3 * self.imports.difference
        return targets.compare(measured, self.goals)


def run(args: argparse.Namespace) -> int:
    """Measure the rows asked for and show what was found."""
    suite = TRAINING if args.train else CLIPPING
    rows, extras = _chosen(args, suite)
    if args.list:
        print("\n".join([*(row.name for row in rows), *extras]))
        return 0
    names = chosen_peers(args.peers, suite.peers)
    _check_usage(args)
    with fastclip.threads(args.threads or fastclip.get_num_threads()):
        return _run(args, suite, rows, extras, names)


def _run(
    args: argparse.Namespace, suite: AnySuite, rows: list[Row], extras: list[str], names: list[str]
) -> int:
    started = time.time()
    findings = _Findings(suite.targets())
    with progress.steps_progress(len(rows) + len(extras)) as (describe, advance):
        if rows:
            describe("importing " + ", ".join(names))
            import_peers(names, suite.peers, fastclip.get_num_threads())
        for row in rows:
            describe(row.name)
            try:
                suite.check_memory(row, 1 + len(names))
                findings.rows.append(_time_row(suite, row, names, args, describe))
            except MemoryError as error:
                findings.skipped[row.name] = ": ".join(["not enough memory", *map(str, error.args)])
            gc.collect()  # libraries leave cycles, and some of these hold gigabytes
            advance(1)
        for extra in extras:
            describe(extra)
            _measure_extra(extra, findings, args)
            advance(1)
    outcomes = findings.outcomes() if args.check else []
    _show(args, findings, names, outcomes, started)
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _chosen(args: argparse.Namespace, suite: AnySuite) -> tuple[list[Row], list[str]]:
    """Return the rows to time and the cases that are not timed in this process."""
    rows: list[Row] = suite.rows(args.size, args.dtype)
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


def _check_usage(args: argparse.Namespace) -> None:
    """Find what is wrong with the arguments before the long work."""
    if args.check and args.size != "full":
        raise CommandError("--check: the targets are for --size full")
    for name, least in (("threads", 1), ("rounds", 1), ("seconds", 0)):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise CommandError(f"--{name} has to be at least {least}, and is {value}")
    if args.json != "-":
        _need("rich", "the table", "; --json prints without it")
    if args.plot is not None:
        _need("matplotlib", "--plot")
    for name, path in (("--json", args.json), ("--plot", args.plot)):
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise CommandError(f"{name}: there is no directory {Path(path).parent}")


def _need(package: str, purpose: str, otherwise: str = "") -> None:
    if importlib.util.find_spec(package) is None:
        raise CommandError(f"{purpose} needs the package {package}: pip install 'fastclip[cli]'{otherwise}")


def _time_row(
    suite: AnySuite,
    row: Row,
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
            reason = " ".join(str(error).split()) or type(error).__name__
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


def _measure_extra(extra: str, findings: _Findings, args: argparse.Namespace) -> None:
    try:
        if extra == "memory":
            findings.memory = measure_peak_memory(args.size)
        else:
            findings.imports = measure_import_time(5 if args.quick or args.size == "small" else 21)
    except RuntimeError as error:
        findings.skipped[extra] = str(error).splitlines()[-1]


def _show(
    args: argparse.Namespace,
    findings: _Findings,
    names: list[str],
    outcomes: list[targets.Outcome],
    started: float,
) -> None:
    machine = describe_machine()
    config = fastclip.config()
    if args.plot is not None:
        from fastclip.cli.bench.plot import plot_rows

        title = f"fastclip {config['version']} on {machine['cpu']}, {config['threads']} threads"
        try:
            plot_rows(findings.rows, title, args.plot)
        except (OSError, ValueError) as error:
            raise CommandError(f"--plot: {args.plot} cannot be written: {error}") from None
    if args.json is not None:
        report: dict[str, Any] = {
            "fastclip": config,
            "machine": machine,
            "settings": {
                "train": args.train,
                "size": args.size,
                "threads": config["threads"],
                "peers": names,
                "seconds_in_all": time.time() - started,
            },
            "rows": [row.to_dict() for row in findings.rows],
            "skipped": findings.skipped,
        }
        report["rows"] += [extra.to_dict() for extra in (findings.memory, findings.imports) if extra]
        if args.check:
            report["targets"] = [outcome.to_dict() for outcome in outcomes]
        _write_json(args.json, to_json(report))
    if args.json != "-":
        _print_tables(findings, names, outcomes, f"{machine['cpu']}, {config['threads']} threads")


def _write_json(path: str, text: str) -> None:
    if path == "-":
        print(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise CommandError(f"--json: {path} cannot be written: {error.strerror}") from None


def _print_tables(
    findings: _Findings, names: list[str], outcomes: list[targets.Outcome], machine: str
) -> None:
    from rich.console import Console

    from fastclip.cli.bench import table

    console = Console()
    console.print(machine, highlight=False)
    if findings.rows:
        table.print_rows(console, findings.rows, names)
    if findings.memory is not None:
        table.print_memory(console, findings.memory)
    if findings.imports is not None:
        table.print_import(console, findings.imports)
    for name, reason in findings.skipped.items():
        console.print(f"{name}: not measured: {reason}", style="yellow", markup=False)
    if outcomes:
        table.print_outcomes(console, outcomes)
