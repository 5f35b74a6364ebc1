"""``fastclip demo``: training runs that need gradient clipping."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastclip
from fastclip.cli.demo import training
from fastclip.cli.durations import seconds_text
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json
from fastclip.cli.option_checks import check_at_least, check_directory_exists
from fastclip.cli.printing import console, print_result, to_stdout
from fastclip.cli.progress import steps_progress

_DESCRIPTION = f"""\
Train a small recurrent network on scikit-learn's handwritten digits: by Adam without
clipping, with clipvalue={training.VALUE_BOUND:g}, and with global_clipnorm={training.GLOBAL_NORM_BOUND:g};
then by plain SGD without clipping, and with global_clipnorm={training.GLOBAL_NORM_BOUND:g}.
Data, initial weights and batches are the same in all runs, and the learning rate in all
runs of an optimizer. Prints the results, draws losses and gradient norms, then runs
'fastclip bench --quick'.
"""

_INTRODUCTION = f"""\
A small recurrent network reads handwritten digits, 16 time steps each. Its
recurrent weights start at {training.GAIN:g} times an orthogonal matrix, on purpose so large
that gradients explode. (From 1.7 times, Adam trains as well without clipping.)
All runs start from the same weights and see the same batches; those of an
optimizer differ in clipping alone.
"""

# The modules that the demo imports, and their distributions.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "autograd.numpy": "autograd",
    "matplotlib": "matplotlib",
    "rich": "rich",
}
_SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip demo``."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--steps", type=int, default=800, metavar="N", help="the number of steps of each run (default: 800)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the seed of all random numbers (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastclip-demo.png"),
        metavar="PATH",
        help="the plot to write: a .png, .svg or .pdf file (default: fastclip-demo.png)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--no-bench", action="store_true", help="do not run 'fastclip bench --quick'")


def run(args: argparse.Namespace) -> int:
    """Train with and without clipping, print the results and run the short benchmark."""
    _check_usage(args)
    _check_packages()
    if not args.json:
        print_result(_INTRODUCTION)
    runs = _train(args)
    _write_plot(runs, args.out)
    if args.json:
        return _print_json(runs, args)
    with to_stdout():
        _print_table(runs, args)
    if args.no_bench:
        return 0
    print_result("\nfastclip bench --quick")
    return _bench()


def _check_usage(args: argparse.Namespace) -> None:
    """Raise CommandError for invalid arguments, before the long work."""
    check_at_least("--steps", args.steps, 1)
    check_at_least("--seed", args.seed, 0)
    if args.out.suffix.lower() not in _SUFFIXES:
        raise CommandError(f"--out: {args.out} has to end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")
    check_directory_exists("--out", args.out)


def _check_packages() -> None:
    """Raise CommandError if a package is missing."""
    missing = []
    for module, distribution in _DISTRIBUTIONS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(distribution)
    if missing:
        names = " and ".join(missing)
        raise CommandError(f"the demo needs {names}, not installed here: pip install 'fastclip-grad[demo]'")


def _train(args: argparse.Namespace) -> list[training.Run]:
    task = training.digits_task(steps=args.steps, seed=args.seed)
    runs = []
    with steps_progress(len(training.METHODS) * args.steps) as (describe, advance):
        for method in training.METHODS:
            describe(method.name)
            runs.append(training.train(task, method, advance))
            advance(args.steps - runs[-1].steps)
    return runs


def _write_plot(runs: Sequence[training.Run], path: Path) -> None:
    from fastclip.cli.demo.training_plot import plot_runs

    try:
        plot_runs(runs, path)
    except OSError as error:
        raise CommandError(f"--out: {path} cannot be written: {error.strerror}") from None


def _print_table(runs: Sequence[training.Run], args: argparse.Namespace) -> None:
    from rich import box
    from rich.table import Table

    rates = {run.method.rule: run.method.learning_rate for run in runs}
    table = Table(
        title=f"batches of {training.BATCH}, learning rates up to "
        + " and ".join(f"{rate:g} ({rule})" for rule, rate in rates.items()),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    columns: dict[str, Callable[[training.Run], str]] = {
        "loss": lambda run: "NaN" if run.diverged else f"{run.final_loss:.4f}",
        "accuracy": lambda run: f"{run.test_accuracy:.1%}",
        "max norm": lambda run: f"{run.largest_norm:.3g}",
        "clipped": lambda run: "-" if run.method.clipping == "none" else f"{run.clipped_share:.0%}",
        "step": lambda run: seconds_text(run.step_seconds / run.steps),
        "update": lambda run: seconds_text(run.update_seconds / run.steps),
    }
    table.add_column("", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        cells = [cell(run) for cell in columns.values()]
        table.add_row(run.method.name, *cells, style="red" if run.diverged else "")
    output = console()
    output.print(table)
    lines = [
        "loss: at the end of the training; accuracy: on the test digits. (A guess has a",
        f"loss of {math.log(training.CLASSES):.4f} and is right {1 / training.CLASSES:.0%} of the time.) "
        "max norm: the largest global norm",
        "of the gradients before clipping; clipped: the share of steps that clipped;",
        "step: the time of a step, of which update is apply_gradients, with clipping",
    ]
    for run in runs:
        if run.diverged:
            lines.append(f"{run.method.name}: the weights became NaN or infinite at step {run.steps}")
    for line in [*lines, f"picture: {args.out}"]:
        output.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_json(runs: Sequence[training.Run], args: argparse.Namespace) -> int:
    """Print the results of the runs and of the benchmark as one JSON object."""
    report: dict[str, Any] = {
        "fastclip": fastclip.config(),
        "settings": {
            "steps": args.steps,
            "seed": args.seed,
            "batch": training.BATCH,
            "hidden": training.HIDDEN,
            "gain": training.GAIN,
        },
        "runs": [_run_to_dict(run) for run in runs],
        "picture": str(args.out),
    }
    code = 0
    if not args.no_bench:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = _bench("--json")
        report["bench"] = json.loads(printed.getvalue() or "null")
    print_result(to_json(report))
    return code


def _run_to_dict(run: training.Run) -> dict[str, Any]:
    return {
        "optimizer": run.method.rule,
        "learning_rate": run.method.learning_rate,
        "clipping": run.method.clipping,
        "bound": run.method.bound,
        "steps": run.steps,
        "diverged": run.diverged,
        "final_loss": run.final_loss,
        "test_accuracy": run.test_accuracy,
        "largest_norm": run.largest_norm,
        "clipped_share": run.clipped_share,
        "update_seconds": run.update_seconds,
        "step_seconds": run.step_seconds,
    }


def _bench(*options: str) -> int:
    from fastclip.cli import main

    return main(["bench", "--quick", *options])
