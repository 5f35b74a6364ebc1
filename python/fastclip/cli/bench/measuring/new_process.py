"""Runs Python in a new process, for measurements that the state of this one would distort."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_python(arguments: Sequence[str], purpose: str) -> str:
    """Run the Python interpreter with `arguments` and return what it prints to stdout.

    Raises
    ------
    RuntimeError
        If the process fails. The message is "`purpose` failed", followed by its stderr.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{purpose} failed:\n{done.stderr}")
    return done.stdout
