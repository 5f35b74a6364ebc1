"""The command line of fastclip: ``info``, ``clip``, ``bench`` and ``demo``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. Only the module of the
command that is run gets imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastclip.cli.errors import CommandError

__all__ = ["main"]

# The module of each command, and a summary of the command in one line.
_COMMANDS = {
    "info": ("fastclip.cli.info", "print version, SIMD level, threads and GPU adapters"),
    "clip": ("fastclip.cli.clip_file", "clip the tensors of an npz or safetensors file"),
    "bench": (
        "fastclip.cli.bench.command",
        "compare the speed of fastclip with NumPy, torch, TensorFlow and JAX",
    ),
    "demo": ("fastclip.cli.demo.command", "train a small network with and without clipping"),
}

_EXIT_CODES = """\
exit codes:
  0    done
  1    a non-finite gradient was found, or a target was missed
  2    bad usage, a bad file, or a missing optional package
  130  interrupted
"""


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see '{self.prog} --help')\n")


def _is_negative_number(argument: str) -> bool:
    """Whether `argument` is a negative number, such as "-1e-3" or "-inf"."""
    if not argument.startswith("-"):
        return False
    try:
        float(argument)
    except ValueError:
        return False
    return True


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return a parser of all commands that knows the arguments of `command` only."""
    parser = _Parser(
        prog="fastclip",
        description="Gradient clipping at memory speed.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, (module, summary) in _COMMANDS.items():
        command_parser = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            importlib.import_module(module).add_arguments(command_parser)
    return parser


def _run(arguments: list[str]) -> int:
    command = next((a for a in arguments if not a.startswith("-")), None)
    parser = _parser(command)
    # argparse would read "-1e-3" and "-inf" as options. A leading space makes them values.
    args = parser.parse_args([f" {a}" if _is_negative_number(a) else a for a in arguments])
    if args.version:
        import fastclip

        print(f"fastclip {fastclip.config()['version']}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    code = importlib.import_module(_COMMANDS[args.command][0]).run(args)
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program name. Defaults to ``sys.argv[1:]``.

    Returns
    -------
    int
        0 on success; 1 if a non-finite gradient was found or a target was missed; 2 for bad usage, a bad
        file or a missing optional package; 130 if interrupted; 141 if the reader of stdout went away.

    Examples
    --------
    >>> from fastclip.cli import main
    >>> main(["clip", "nowhere.npz", "out.npz", "--global-norm", "1"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        print(f"fastclip: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fastclip: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout has closed the pipe, as in `fastclip info | head -1`. With stdout redirected to
        # the null device, the interpreter can flush it at exit without an error message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code
