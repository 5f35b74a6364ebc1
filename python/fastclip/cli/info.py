"""``fastclip info``: the version of fastclip, and the hardware it uses on this machine."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.errors import CommandError
from fastclip.cli.json_output import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip info``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the version, the SIMD level, the number of threads and the GPU adapters."""
    try:
        facts: dict[str, Any] = dict(fastclip.config())
    except ValueError as error:  # an environment variable has an invalid value
        raise CommandError(str(error)) from None
    facts["python"] = platform.python_version()
    facts["numpy"] = np.__version__
    if args.json:
        print(to_json(facts))
        return 0
    adapters = [str(adapter) for adapter in facts["gpu_adapters"]] or ["none"]
    print(f"fastclip      {facts['version']}")
    print(f"SIMD level    {facts['isa']} (this CPU has {facts['isa_detected']})")
    print(f"threads       {facts['threads']}")
    print(f"GPU adapters  {adapters[0]}")
    for adapter in adapters[1:]:
        print(f"              {adapter}")
    print(f"Python        {facts['python']}, NumPy {facts['numpy']}")
    return 0
