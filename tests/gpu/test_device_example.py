"""The example that trains a network on a device."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from support.devices import require_device

require_device()


def test_the_example_trains_on_the_device_and_reads_losses_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    from fastclip import gpu

    before = gpu.statistics()["downloaded_bytes"]
    names = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "gpu_training_loop.py"))
    output = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1
    assert float(re.findall(r"correct: ([\d.]+)%", output)[0]) > 80
    # Four losses and norms, and the weights at the end.
    weights = names["w1"].nbytes + names["w2"].nbytes
    assert gpu.statistics()["downloaded_bytes"] - before == weights + 4 * (4 + 32)
