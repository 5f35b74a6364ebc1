"""Runs a script in a fresh interpreter: for what a running test process can no longer show."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

#: Variables that steer the library or the thread pools beside it.
STEERING = ("FASTCLIP_", "RAYON_", "OMP_", "OPENBLAS_", "MKL_")


def run(
    script: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    timeout: float = 120,
    expect: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with no steering variable set but those in ``env``; a hang is a failure."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
    clean |= {"OPENBLAS_NUM_THREADS": "1"} | (env or {})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if expect is not None:
        assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
