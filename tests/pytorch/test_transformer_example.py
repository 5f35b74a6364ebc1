"""The example that trains a transformer, at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.interop("torch")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torch_transformer.py"


def test_all_contenders_train() -> None:
    sizes = ["--steps", "12", "--width", "16", "--layers", "1", "--seeds", "1"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *sizes],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:5]}
    assert set(rows) == {"torch", "fastclip", "backward", "bfloat16"}
    losses = {name: float(row[-1]) for name, row in rows.items()}
    assert losses["fastclip"] == pytest.approx(losses["torch"], rel=1e-3)
    assert losses["backward"] == losses["fastclip"]
    assert losses["bfloat16"] == pytest.approx(losses["torch"], rel=0.05)
