"""Runs code in a fresh interpreter, for behaviour that a running test process cannot show any more."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

#: Prefixes of environment variables that configure fastclip or other libraries' thread pools.
CONFIGURING = ("FASTCLIP_", "RAYON_", "OMP_", "OPENBLAS_", "MKL_")

TESTS = Path(__file__).parents[1]


def run(
    script: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    timeout: float = 120,
    expect: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, which may import from `support`, and checks its exit status.

    Parameters
    ----------
    script : str
        Source code, dedented before it is run.
    *arguments : str
        ``sys.argv[1:]`` of the script.
    env : dict, optional
        Environment variables to set. Of those that configure fastclip or a thread pool no others are set.
    timeout : float
        Seconds after which the interpreter is killed and `subprocess.TimeoutExpired` is raised.
    expect : int or None
        The exit status to check for; None accepts any.
    """
    return _run(["-c", textwrap.dedent(script), *arguments], [TESTS], env, timeout, expect)


def run_module(
    module: str,
    *arguments: str,
    folder: Path = TESTS,
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Runs a module found in `folder` or in ``tests/`` as a program, and checks that it exits with status 0.

    The other parameters are those of `run`.
    """
    return _run(["-m", module, *arguments], [folder, TESTS], env, timeout, 0)


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a script as `run` does, and returns the process, whose stdout and stderr are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=_environment([TESTS], None),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(
    command: list[str], folders: list[Path], env: dict[str, str] | None, timeout: float, expect: int | None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        env=_environment(folders, env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if expect is not None:
        assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _environment(folders: list[Path], env: dict[str, str] | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURING)}
    paths = [*map(str, folders), *filter(None, [clean.get("PYTHONPATH")])]
    return clean | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | (env or {})
