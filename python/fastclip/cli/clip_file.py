"""``fastclip clip``: clips the tensors of an npz or safetensors file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fastclip
from fastclip.cli.array_files import (
    Array,
    ArrayFile,
    check_can_hold,
    output_format,
    read_arrays,
    write_arrays,
)
from fastclip.cli.array_formats.content import dtype_name
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json
from fastclip.cli.option_checks import check_at_least
from fastclip.cli.output_file import is_stdout
from fastclip.cli.printing import print_message, print_result
from fastclip.cli.progress import bytes_progress

_DESCRIPTION = """\
Clip the tensors of IN and write them to OUT.

IN and OUT are npz or safetensors files, depending on their suffix. They may be the
same file. Names, order, dtypes and the metadata of safetensors are kept. OUT is
replaced as a whole at the end, and keeps its owner and mode: if the command fails,
OUT does not change. If OUT is a pipe or a device, it is written to instead, and may
have received a part if the command fails; without a suffix, it gets the format of IN.
"""

_EPILOG = """\
exit codes:
  0    done; OUT is written
  1    NaN or inf was found under --on-nonfinite raise; OUT is not written
  2    bad usage, a bad file, a missing package or too little memory; OUT is not written
  3    OUT is written, but the report could not be printed
  130  interrupted; OUT is not written
  141  OUT is written, but the reader of the report closed the pipe

examples:
  fastclip clip grads.npz clipped.npz --global-norm 1.0
  fastclip clip grads.safetensors grads.safetensors --global-norm 1.0 --on-nonfinite raise
  fastclip clip update.npz update.safetensors --value -0.5 0.5 --skip-integers
"""

_CLIPPABLE = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_NAMES_SHOWN = 8  # in an error message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip clip``."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("input", metavar="IN", type=Path, help="the file to read (.npz, .safetensors)")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write (.npz, .safetensors)")
    methods = parser.add_mutually_exclusive_group(required=True)
    methods.add_argument(
        "--global-norm",
        metavar="C",
        type=float,
        help="scale all tensors by one factor so that their global norm is at most C",
    )
    methods.add_argument(
        "--norm", metavar="C", type=float, help="scale each tensor so that its norm is at most C"
    )
    methods.add_argument(
        "--value", metavar=("LO", "HI"), type=float, nargs=2, help="clip each element to the range LO to HI"
    )
    parser.add_argument(
        "--ord", metavar="P", type=float, help="the order of the norm: a number above 0, or inf (default: 2)"
    )
    parser.add_argument(
        "--on-nonfinite",
        choices=("propagate", "raise", "zero"),
        help="with --global-norm, what to do if a tensor contains NaN or inf: make all elements NaN "
        "(propagate), fail with exit code 1 (raise), or make all elements 0 (zero) (default: propagate)",
    )
    parser.add_argument(
        "--skip-integers",
        action="store_true",
        help="copy integer and bool tensors unchanged (default: fail)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Clip the tensors of the file and print a report."""
    _check_usage(args)
    format_name = output_format(args.output, args.input)  # raises for a bad suffix now, before the long work
    with bytes_progress(f"reading {args.input.name}", _size(args.input)) as progress:
        content = read_arrays(args.input, progress)
    gradients = _clippable(args.input, content, args.skip_integers)
    check_can_hold(args.output, content, format_name)  # raises now rather than after the long work
    try:
        outcome = _clip(gradients, args)
    except fastclip.NonFiniteError:
        raise CommandError(f"{args.input}: {_where_nonfinite(gradients)}", exit_code=1) from None
    except (TypeError, ValueError) as error:
        raise CommandError(f"{args.input}: {error}") from None
    content.arrays.update(gradients)
    if content.metadata and format_name == "npz":
        print_message(f"note: {args.output}: a npz file has no place for the metadata")
    report = {
        "input": str(args.input),
        "output": str(args.output),
        "tensors": len(gradients),
        "elements": sum(array.size for array in gradients.values()),
        "copied": [name for name in content.arrays if name not in gradients],
        **outcome,
    }
    # Once OUT is written, nothing is left to do that could fail but printing the text.
    text = to_json(report) if args.json else _report_text(report)
    output_is_stdout = is_stdout(args.output)
    total = sum(array.nbytes for array in content.arrays.values())
    with bytes_progress(f"writing {args.output.name}", total) as progress:
        write_arrays(args.output, content, progress, format_name=format_name)
    if output_is_stdout:
        print_message(text)  # the arrays have gone to stdout
    else:
        print_result(text)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.ord is not None and args.value is not None:
        raise CommandError("--ord says which norm: it goes with --global-norm and --norm")
    if args.on_nonfinite is not None and args.global_norm is None:
        raise CommandError("--on-nonfinite goes with --global-norm")
    if args.ord is not None and not args.ord > 0:
        raise CommandError(f"--ord has to be above 0, and is {args.ord}")
    bound = args.norm if args.global_norm is None else args.global_norm
    if bound is not None:
        check_at_least("--norm" if args.global_norm is None else "--global-norm", bound, 0)
    if args.value is not None and not args.value[0] <= args.value[1]:
        raise CommandError(f"--value: LO ({args.value[0]}) has to be at most HI ({args.value[1]})")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # read_arrays reports the error


def _clippable(path: Path, content: ArrayFile, skip_integers: bool) -> dict[str, Array]:
    """Return the entries to clip: all but those of integers or bools.

    Raises
    ------
    CommandError
        If there are integer or bool entries and `skip_integers` is false, or if there are entries of any
        other type that cannot be clipped.
    """
    gradients = {}
    for name, array in content.arrays.items():
        if array.dtype.name in _CLIPPABLE:
            gradients[name] = array
        elif array.dtype.kind not in "biu":
            raise CommandError(
                f"{path}: entry {name!r} is of type {dtype_name(array.dtype)}, which fastclip does not clip; "
                f"it clips {', '.join(_CLIPPABLE)}"
            )
        elif not skip_integers:
            raise CommandError(
                f"{path}: entry {name!r} is {array.dtype}, not a gradient; "
                "--skip-integers copies such entries unchanged"
            )
    return gradients


def _where_nonfinite(gradients: dict[str, Array]) -> str:
    """Return a message that names the entries that hold NaN or infinity, by their names in the file."""
    names = [repr(name) for name, array in gradients.items() if not np.isfinite(array).all()]
    if not names:  # finite elements, whose norm is beyond the largest float64
        return "the global norm is infinite; nothing was written"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    if len(names) == 1:
        return f"NaN or infinity in entry {shown}; nothing was written"
    return f"NaN or infinity in {len(names):,} entries: {shown}; nothing was written"


def _clip(gradients: dict[str, Array], args: argparse.Namespace) -> dict[str, Any]:
    """Clip the arrays in `gradients`, by replacing or overwriting them, and return the report."""
    # The arrays are clipped in place, which needs native byte order. Only a big-endian file has others.
    dtypes = {name: array.dtype for name, array in gradients.items()}
    for name, array in gradients.items():
        if not array.dtype.isnative:
            gradients[name] = array.astype(array.dtype.newbyteorder("="))
    order = 2.0 if args.ord is None else args.ord
    if args.global_norm is not None:
        report = _clip_by_global_norm(gradients, args.global_norm, order, args.on_nonfinite or "propagate")
    elif args.norm is not None:
        report = _clip_by_norm(gradients, args.norm, order)
    else:
        report = _clip_by_value(gradients, *args.value)
    for name, dtype in dtypes.items():
        if gradients[name].dtype != dtype:
            gradients[name] = gradients[name].astype(dtype)
    return report


def _clip_by_global_norm(
    gradients: dict[str, Array],
    bound: float,
    order: float,
    on_nonfinite: Literal["propagate", "raise", "zero"],
) -> dict[str, Any]:
    _, norm = fastclip.clip_by_global_norm(
        gradients, bound, ord=order, out=gradients, on_nonfinite=on_nonfinite
    )
    return {
        "rule": "global-norm",
        "bound": bound,
        "ord": order,
        "norm": float(norm),
        "scale": _scale(float(norm), bound, on_nonfinite),
        "clipped": not float(norm) <= bound,
    }


def _scale(norm: float, bound: float, on_nonfinite: str = "propagate") -> float:
    """Return the factor that clips a tensor of the given norm."""
    if not math.isfinite(norm):
        return 0.0 if on_nonfinite == "zero" else math.nan
    return 1.0 if norm <= bound else bound / norm


def _clip_by_norm(gradients: dict[str, Array], bound: float, order: float) -> dict[str, Any]:
    norms = [float(norm) for norm in fastclip.tensor_norms(list(gradients.values()), ord=order)]
    for array in gradients.values():
        fastclip.clip_by_norm(array, bound, ord=order, out=array)
    return {
        "rule": "norm",
        "bound": bound,
        "ord": order,
        "norm": dict(zip(gradients, norms, strict=True)),
        "scale": {name: _scale(norm, bound) for name, norm in zip(gradients, norms, strict=True)},
        "clipped": sum(math.isfinite(norm) and norm > bound for norm in norms),
    }


def _clip_by_value(gradients: dict[str, Array], low: float, high: float) -> dict[str, Any]:
    clipped = nan = 0
    for name, array in gradients.items():
        if array.dtype.kind == "c":
            raise TypeError(f"entry {name!r} is {array.dtype}, and complex numbers have no order to clip by")
        with np.errstate(invalid="ignore", over="ignore"):  # a bound beyond the dtype compares as infinity
            clipped += int(np.count_nonzero((array < low) | (array > high)))
        nan += int(np.count_nonzero(np.isnan(array)))
        fastclip.clip_by_value(array, low, high, out=array)
    return {"rule": "value", "low": low, "high": high, "clipped": clipped, "nan": nan}


def _report_text(report: dict[str, Any]) -> str:
    head = (
        f"{report['input']} -> {report['output']}: "
        f"{_count_text(report['tensors'], 'tensor')}, {_count_text(report['elements'], 'element')}"
    )
    if report["copied"]:
        head += f", {len(report['copied']):,} copied unchanged"
    if report["rule"] == "global-norm":
        outcome = "clipped" if report["clipped"] else "not clipped"
        if not math.isfinite(report["norm"]):
            outcome = "NaN or inf was found"
        return f"{head}\nglobal norm {report['norm']:.9g}, scale {report['scale']:.9g} ({outcome})"
    if report["rule"] == "norm":
        finite = [norm for norm in report["norm"].values() if math.isfinite(norm)]
        parts = [f"{report['clipped']:,} of {_count_text(report['tensors'], 'tensor')} clipped"]
        if finite:
            smallest = _scale(max(finite), report["bound"])
            parts.insert(0, f"largest norm {max(finite):.9g}, smallest scale {smallest:.9g}")
        if len(finite) < report["tensors"]:
            parts.append(f"NaN or inf was found in {_count_text(report['tensors'] - len(finite), 'tensor')}")
        return f"{head}\n{'; '.join(parts)}"
    text = f"{head}\n{report['clipped']:,} of {_count_text(report['elements'], 'element')} clipped"
    if report["nan"]:
        text += f"; NaN was found in {_count_text(report['nan'], 'element')}, and stays NaN"
    return text


def _count_text(count: int, noun: str) -> str:
    """Return a number and a noun, such as "1 tensor" or "2,000 tensors"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
