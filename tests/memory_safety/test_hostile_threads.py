"""Other threads and signal handlers that change arrays and lists while calls use them.

`drivers/hostile_threads.py` calls each function and each optimizer repeatedly in a process of its own, for
FASTCLIP_HOSTILE_SECONDS per test (0.2 seconds by default). Whatever is changed, each call succeeds or raises
a documented exception, and no memory but that of the arrays is written. AddressSanitizer finds most of the
errors that this test can provoke.

``resize(refcheck=False)`` and ``__setstate__`` of arrays in use are left out: NumPy itself frees their
memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from drivers.hostile_threads import SUBJECTS
from support import fresh_python

SECONDS = os.environ.get("FASTCLIP_HOSTILE_SECONDS", "0.2")
#: Optimizers share most of their code, so only a few of them run with signal handlers.
A_FEW = ("optimizer Adam", "optimizer Nesterov", "rows Adam")
WITH_SIGNALS = [name for name in SUBJECTS if " " not in name or name in A_FEW]
CASES = [(name, "thread") for name in SUBJECTS] + [(name, "signal") for name in WITH_SIGNALS]


@pytest.mark.parametrize(("subject", "variant"), CASES)
def test_arguments_that_change_during_calls(subject: str, variant: str) -> None:
    if variant == "signal" and sys.platform == "win32":
        pytest.skip("needs POSIX's timers")
    done = fresh_python.run_module(
        "drivers.hostile_threads",
        subject,
        variant,
        SECONDS,
        folder=Path(__file__).parent,
        env={"RUST_BACKTRACE": "0"},
        timeout=60 + 20 * float(SECONDS),
    )
    assert done.stdout.endswith("done\n")
