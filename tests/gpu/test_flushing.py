"""Kernels that replace subnormal results of float arithmetic by zero, as some devices do.

Dispatches have few workgroups then, each of which takes several chunks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.devices import require_device

require_device()


def test_every_number_is_the_same_where_devices_flush_subnormals() -> None:
    files = ["tests/gpu/test_clipping.py", "tests/gpu/test_optimizers.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "FASTCLIP_GPU_TEST_FLUSH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
