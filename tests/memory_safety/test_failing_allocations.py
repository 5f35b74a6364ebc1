"""A call whose allocations fail raises MemoryError and changes nothing, and the next call succeeds.

`drivers/fail_allocation.c` makes single allocations fail, in fastclip's compiled module, in its threads, in
NumPy or in the interpreter. Each public function is called repeatedly, with the first allocation failing,
then the second, and so on to the last. `drivers/failing_allocations.py` makes these calls in processes of
their own, because an allocation failure that is not handled ends the process.

With FASTCLIP_THOROUGH=1 in the environment every single allocation of every call fails once. Otherwise, of a
call with many allocations, some of the first, some of the last and some between fail, and most modes try a
third of the calls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import fresh_python

FOLDER = Path(__file__).parent
THOROUGH = os.environ.get("FASTCLIP_THOROUGH", "0") != "0"
GROUPS = (
    "norms",
    "global",
    "one",
    "value",
    "rules",
    "optimizers",
    "caller_slots",
    "gradient_options",
    "state",
    "errors",
)
#: For each mode, how many allocations of a call fail in turn.
MODES = {"one": 18, "all": 9, "anywhere": 6, "cold": 6, "objects": 18}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="loads a library before the C library, as Linux does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has its own malloc"),
    pytest.mark.timeout(1800 if THOROUGH else 300),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("library") / "fail_allocation.so"
    flags = ["-shared", "-fPIC", "-O1", "-ftls-model=initial-exec"]
    source = FOLDER / "drivers" / "fail_allocation.c"
    subprocess.run(["cc", *flags, "-o", path, source, "-ldl", "-pthread"], check=True)
    return str(path)


def test_library_makes_numpys_allocation_of_an_array_fail(library: str) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import numpy as np
from drivers.failing_allocations import armed_calls
call, failures, count = armed_calls({library!r})
assert call(lambda: np.ones(1000), -1, 0, 0).sum() == 1000
assert failures() == 0
assert count() == 1
for all_after in (0, 1):
    try:
        call(lambda: np.ones(1000), 0, all_after, 0)
    except MemoryError:
        assert failures() >= 1
    else:
        raise SystemExit("it was allocated")
assert np.ones(1000).sum() == 1000
print("done")
"""
    assert fresh_python.run(script, env={"LD_PRELOAD": library}).stdout == "done\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", GROUPS)
def test_without_memory_a_call_raises_memory_error_and_changes_nothing(
    library: str, group: str, mode: str
) -> None:
    if mode in ("anywhere", "cold") and group == "errors":
        pytest.skip("none of these calls uses more than one thread")
    env = {"LD_PRELOAD": library, "RUST_BACKTRACE": "0", "PYTHONWARNINGS": "ignore"}
    if mode == "objects":
        env["PYTHONMALLOC"] = "malloc"
    most = 2000 if THOROUGH else MODES[mode]
    done = fresh_python.run_module(
        "drivers.failing_allocations",
        library,
        group,
        mode,
        str(most),
        folder=FOLDER,
        env=env,
        timeout=1700 if THOROUGH else 280,
    )
    *failures, summary = [json.loads(line) for line in done.stdout.splitlines()]
    shown = "\n".join(f"{f['case']}, allocation {f['n']}: {f['error']}" for f in failures[:25])
    assert not failures, f"{summary['failed']} of {summary['tried']} trials failed\n{shown}"
    assert summary["tried"] > 0
