"""``fastclip demo``: a training run that needs its gradients clipped."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastclip
from fastclip.cli import training
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json
from fastclip.cli.progress import steps_progress

_DESCRIPTION = f"""\
Train a small recurrent network on scikit-learn's handwritten digits three times:
without clipping, with the gradients clipped by value ({training.VALUE_BOUND:g}), and with
them clipped by global norm ({training.GLOBAL_NORM_BOUND:g}). Data, first weights, batches and
learning rate are the same. Shows what became of each, draws the losses and the
gradient norms, and then runs 'fastclip bench --quick'.
"""

_INTRODUCTION = """\
A small recurrent network reads handwritten digits, 16 time steps each. Three training
runs from the same weights, over the same batches; they differ in the clipping alone.
"""

# What is imported, and the distribution it comes from.
_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}
_FORMATS = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip demo``."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--steps", type=int, default=800, metavar="N", help="steps of each run (default: 800)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastclip-demo.png"),
        metavar="PATH",
        help="the picture to write (default: fastclip-demo.png)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-bench", action="store_true", help="leave out 'fastclip bench --quick'")


def run(args: argparse.Namespace) -> int:
    """Train three times, show what was found, and run the short benchmark."""
    _check_usage(args)
    _need_packages()
    if not args.json:
        print(_INTRODUCTION, flush=True)
    runs = _train(args)
    _write_picture(runs, args.out)
    if args.json:
        return _print_json(runs, args)
    _print_table(runs, args)
    if args.no_bench:
        return 0
    print("\nfastclip bench --quick", flush=True)
    return _bench()


def _check_usage(args: argparse.Namespace) -> None:
    """Find what is wrong with the arguments before the work."""
    for name, least in (("steps", 1), ("seed", 0)):
        value = getattr(args, name)
        if value < least:
            raise CommandError(f"--{name} has to be at least {least}, and is {value}")
    if args.out.suffix.lower() not in _FORMATS:
        raise CommandError(f"--out: {args.out} has to end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if not args.out.absolute().parent.is_dir():
        raise CommandError(f"--out: there is no directory {args.out.parent}")


def _need_packages() -> None:
    missing = []
    for module, distribution in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(distribution)
    if missing:
        names = " and ".join(missing)
        raise CommandError(f"the demo needs {names}, not installed here: pip install 'fastclip[demo]'")


def _train(args: argparse.Namespace) -> list[training.Run]:
    task = training.digits_task(steps=args.steps, seed=args.seed)
    clippings = (training.NO_CLIPPING, training.BY_VALUE, training.BY_GLOBAL_NORM)
    runs = []
    with steps_progress(len(clippings) * args.steps) as (describe, advance):
        for clipping in clippings:
            describe(f"clipping: {clipping.name}")
            runs.append(training.train(task, clipping, advance))
            advance(args.steps - runs[-1].steps)
    return runs


def _write_picture(runs: Sequence[training.Run], path: Path) -> None:
    from fastclip.cli.training_plot import plot_runs

    try:
        plot_runs(runs, path)
    except OSError as error:
        raise CommandError(f"--out: {path} cannot be written: {error.strerror}") from None


def _print_table(runs: Sequence[training.Run], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from fastclip.cli.table import seconds_text

    table = Table(
        title=f"plain SGD, batches of {training.BATCH}, learning rate up to {training.LEARNING_RATE:g}",
        title_justify="left",
    )
    table.add_column("clipping")
    for run in runs:
        bound = "" if run.clipping is training.NO_CLIPPING else f" {run.clipping.bound:g}"
        table.add_column(f"{run.clipping.name}{bound}", justify="right", style="red" if run.diverged else "")
    rows: dict[str, Callable[[training.Run], str]] = {
        "final loss": lambda run: "NaN" if run.diverged else f"{run.final_loss:.4f}",
        "test accuracy": lambda run: f"{run.test_accuracy:.1%}",
        "largest gradient norm": lambda run: f"{run.largest_norm:.3g}",
        "largest norm applied": lambda run: f"{run.largest_applied_norm:.3g}",
        "steps taken": lambda run: str(run.steps),
        "steps clipped": lambda run: f"{run.clipped_share:.0%}",
        "time for a step": lambda run: seconds_text(run.step_seconds / run.steps),
        "of that, clipping": lambda run: (
            "-"
            if run.clipping is training.NO_CLIPPING
            else f"{seconds_text(run.clip_seconds / run.steps)} ({run.clip_seconds / run.step_seconds:.1%})"
        ),
    }
    for heading, cell in rows.items():
        table.add_row(heading, *(cell(run) for run in runs))
    console = Console()
    console.print(table)
    for run in runs:
        if run.diverged:
            what = f"clipping {run.clipping.name}: the weights became NaN or infinite at step {run.steps}"
            console.print(what, highlight=False, markup=False)
    console.print(f"picture: {args.out}", highlight=False, markup=False, soft_wrap=True)


def _print_json(runs: Sequence[training.Run], args: argparse.Namespace) -> int:
    """Print all that was found as one object, the benchmark's with it."""
    report: dict[str, Any] = {
        "fastclip": fastclip.config(),
        "settings": {
            "steps": args.steps,
            "seed": args.seed,
            "batch": training.BATCH,
            "hidden": training.HIDDEN,
            "learning_rate": training.LEARNING_RATE,
        },
        "runs": [_run_to_dict(run) for run in runs],
        "picture": str(args.out),
    }
    code = 0
    if not args.no_bench:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = _bench("--json")
        report["bench"] = json.loads(printed.getvalue() or "null")
    print(to_json(report))
    return code


def _run_to_dict(run: training.Run) -> dict[str, Any]:
    return {
        "clipping": run.clipping.name,
        "bound": run.clipping.bound,
        "steps": run.steps,
        "diverged": run.diverged,
        "final_loss": run.final_loss,
        "test_accuracy": run.test_accuracy,
        "largest_norm": run.largest_norm,
        "largest_applied_norm": run.largest_applied_norm,
        "clipped_share": run.clipped_share,
        "clip_seconds": run.clip_seconds,
        "step_seconds": run.step_seconds,
    }


def _bench(*options: str) -> int:
    from fastclip.cli import main

    return main(["bench", "--quick", *options])
