"""The command line of fastclip: ``info``, ``clip``, ``bench`` and ``demo``.

Each command is a module of this package with ``add_arguments(parser)`` and
``run(args) -> int``; it is imported only when it is the command asked for.
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

# command: (module, what it does in a line)
_COMMANDS = {
    "info": ("fastclip.cli.info", "print version, SIMD level, threads and GPU adapters"),
    "clip": ("fastclip.cli.clip_file", "clip the tensors of a npz or safetensors file"),
    "bench": ("fastclip.cli.bench.command", "time fastclip beside NumPy, torch, TensorFlow and JAX"),
    "demo": ("fastclip.cli.demo.command", "see clipping at work in a small training run"),
}

_EXIT_CODES = """\
exit codes:
  0    done
  1    the answer is no: a non-finite gradient was found, a target was missed
  2    bad usage, a bad file, or a missing optional package
  130  interrupted
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see '{self.prog} --help')\n")


def _is_negative_number(argument: str) -> bool:
    if not argument.startswith("-"):
        return False
    try:
        float(argument)
    except ValueError:
        return False
    return True


def _parser(command: str | None) -> argparse.ArgumentParser:
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
    # argparse takes "-1e-3" and "-inf" for options; a leading blank makes them values.
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
        The arguments after the program's name; ``sys.argv[1:]`` if not given.

    Returns
    -------
    int
        0 done, 1 the answer is no, 2 bad usage or a bad file, 130 interrupted.

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
        # The reader went away (`fastclip info | head -1`); keep the interpreter from
        # complaining when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code
