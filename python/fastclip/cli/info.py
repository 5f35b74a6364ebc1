"""``fastclip info``: the version of fastclip, and the hardware it uses on this machine."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json
from fastclip.cli.printing import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip info``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the version, the SIMD level and the number of threads."""
    try:
        facts: dict[str, Any] = dict(fastclip.config())
    except ValueError as error:  # an environment variable has an invalid value
        raise CommandError(str(error)) from None
    facts["python"] = platform.python_version()
    facts["numpy"] = np.__version__
    if args.json:
        print_result(to_json(facts))
        return 0
    print_result(
        f"fastclip    {facts['version']}\n"
        f"SIMD level  {facts['isa']} (this CPU has {facts['isa_detected']})\n"
        f"threads     {facts['threads']}\n"
        f"Python      {facts['python']}, NumPy {facts['numpy']}"
    )
    return 0
