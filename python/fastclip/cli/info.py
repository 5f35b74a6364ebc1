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
    """Print the version, the SIMD level, the number of threads and the graphics processors."""
    try:
        facts: dict[str, Any] = dict(fastclip.config())
    except ValueError as error:  # an environment variable has an invalid value
        raise CommandError(str(error)) from None
    facts["python"] = platform.python_version()
    facts["numpy"] = np.__version__
    facts["gpus"] = _gpus()
    if args.json:
        print_result(to_json(facts))
        return 0
    print_result(
        f"fastclip    {facts['version']}\n"
        f"SIMD level  {facts['isa']} (this CPU has {facts['isa_detected']})\n"
        f"threads     {facts['threads']} ({facts['threads_from']})\n"
        f"Python      {facts['python']}, NumPy {facts['numpy']}\n"
        f"GPUs        {_described(facts['gpus'])}"
    )
    return 0


def _gpus() -> list[dict[str, Any]] | None:
    """Return the graphics processors, also those in software; None if fastclip was built without them."""
    try:
        from fastclip import gpu
    except ImportError:
        return None
    return [
        {
            "name": device.name,
            "backend": device.backend,
            "driver": device.driver,
            "is_software": device.is_software,
        }
        for device in gpu.devices(allow_software=True)
    ]


def _described(gpus: list[dict[str, Any]] | None) -> str:
    """Return graphics processors as text, one a line."""
    if gpus is None:
        return "not in this build"
    if not gpus:
        return "none that Vulkan, Metal or DX12 finds"
    lines = []
    for gpu in gpus:
        software = ", in software: used if FASTCLIP_GPU_SOFTWARE=1" if gpu["is_software"] else ""
        lines.append(f"{gpu['name']} ({gpu['backend']}, {gpu['driver']}{software})")
    return "\n            ".join(lines)
