"""`FullyShardedDataParallel` on two processes with an optimizer of fastclip.torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.interop("torch")

STEP = """
import copy
import sys

import torch
import torch.distributed as distributed
from torch.distributed.fsdp import FullyShardedDataParallel

import fastclip.torch

distributed.init_process_group("gloo")
results = []
for optimizer_class in (fastclip.torch.AdamW, torch.optim.AdamW):
    torch.manual_seed(0)
    module = torch.nn.Linear(9, 5)
    # With the original parameters, the optimizer may be made before they are divided.
    is_original = sys.argv[1] == "original"
    optimizer = optimizer_class(module.parameters(), lr=0.1) if is_original else None
    model = FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=is_original)
    optimizer = optimizer or optimizer_class(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 9), 1.0 + step + distributed.get_rank())).square().sum().backward()
        norm = model.clip_grad_norm_(1.0)
        if step == 0 and optimizer_class is fastclip.torch.AdamW:
            before = [parameter.detach().clone() for parameter in model.parameters()]
            for option, value, default in (
                ("max_norm", 1.0, None), ("skip_above", 1.0, None), ("on_nonfinite", "skip", "propagate")
            ):
                setattr(optimizer, option, value)
                for each in (optimizer, copy.copy(optimizer)):
                    try:
                        each.step()
                        raise AssertionError(option + " was taken")
                    except RuntimeError as error:
                        assert option in str(error) and "FullyShardedDataParallel" in str(error), error
                setattr(optimizer, option, default)
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
        optimizer.step()
    results.append([parameter.detach().clone() for parameter in model.parameters()])
for mine, theirs in zip(*results):
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
distributed.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's processes are not started so on Windows")
@pytest.mark.parametrize("parameters", ["flat", "original"])
def test_the_norm_of_a_part_is_refused_and_steps_without_it_are_those_of_torch(
    parameters: str, tmp_path: Path
) -> None:
    script = tmp_path / "step.py"
    script.write_text(STEP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script), parameters],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
