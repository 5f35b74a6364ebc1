"""Other threads and handlers of signals that change arrays and lists while calls are at work with them.

`hostile_driver.py` calls each function and each optimizer over and over, for FASTCLIP_HOSTILE_SECONDS in
every variant (a fifth of one, if that is not set), in a process of its own. Whatever is changed,
each call succeeds or raises what is documented, and no memory but that of the arrays is written. It is most
telling under AddressSanitizer.

Left out are ``resize(refcheck=False)`` and ``__setstate__`` of arrays that a call is working with: NumPy
itself frees their memory then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hostile_driver import SUBJECTS
from support import fresh_python

SECONDS = os.environ.get("FASTCLIP_HOSTILE_SECONDS", "0.2")
DRIVER = str(Path(__file__).with_name("hostile_driver.py"))
FOLDERS = [str(Path(__file__).parents[number]) for number in (0, 1)]
#: Optimizers share nearly everything: handlers of signals are tried with a few of them.
A_FEW = ("optimizer Adam", "optimizer Nesterov", "rows Adam")
WITH_SIGNALS = [name for name in SUBJECTS if " " not in name or name in A_FEW]
CASES = [(name, "thread") for name in SUBJECTS] + [(name, "signal") for name in WITH_SIGNALS]
RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize(("subject", "variant"), CASES)
def test_arguments_that_change_during_calls(subject: str, variant: str) -> None:
    if variant == "signal" and sys.platform == "win32":
        pytest.skip("needs POSIX's timers")
    path = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"RUST_BACKTRACE": "0", "PYTHONPATH": path}
    limit = 60 + 20 * float(SECONDS)
    done = fresh_python.run(RUN, DRIVER, subject, variant, SECONDS, env=environment, timeout=limit)
    assert done.stdout.endswith("done\n")
