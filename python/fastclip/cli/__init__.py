"""The command line of fastclip: ``info``, ``clip``, ``bench`` and ``demo``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. Only the module of the
command that is run gets imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fastclip.cli import interruption, output_file, printing
from fastclip.cli.errors import CommandError

__all__ = ["main"]

# The module of each command, and a summary of the command in one line.
_COMMANDS = {
    "info": ("fastclip.cli.info", "print version, SIMD level and number of threads"),
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
  2    bad usage, a bad file, a missing optional package, or too little memory
  3    the output could not be printed
  130  interrupted
  141  the reader of the output closed the pipe
"""


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, and help that cannot be printed."""

    def print_help(self, file: Any = None) -> None:
        if file is None:  # argparse would ignore errors of stdout
            printing.print_result(self.format_help().rstrip("\n"))
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        printing.print_message(f"error: {message} (see '{self.prog} --help')", self.prog)
        self.exit(2)


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

        printing.print_result(f"fastclip {fastclip.config()['version']}")
        return 0
    if args.command is None:
        printing.print_message(f"error: a command is missing\n\n{parser.format_help()}")
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
        file, a missing optional package or too little memory; 3 if the output could not be printed; 130 if
        interrupted; 141 if the reader of stdout went away.

    Examples
    --------
    >>> from fastclip.cli import main
    >>> main(["clip", "nowhere.npz", "out.npz", "--global-norm", "1"])
    2
    """
    try:
        output_file.forget()
        with interruption.handled(restore=argv is not None), printing.any_character():
            printing.open_closed_streams()
            return _exit_code(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        written = output_file.is_written()
        printing.print_message("interrupted after the file was written" if written else "interrupted")
        return 3 if written else 130
    finally:
        output_file.forget()


def _exit_code(arguments: list[str]) -> int:
    """Run the command, print a message if it fails, and return its exit code."""
    try:
        return _run(arguments)
    except CommandError as error:
        printing.print_message(f"error: {error}")
        return error.exit_code
    except MemoryError as error:
        printing.print_message(
            f"error: not enough memory: {error}" if error.args else "error: not enough memory"
        )
        return 2
    except printing.StdoutError as error:
        if error.reader_left:
            return 141
        printing.print_message(f"error: the output cannot be printed: {error}")
        return 3
