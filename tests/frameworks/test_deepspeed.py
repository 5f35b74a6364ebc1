"""ZeRO of DeepSpeed with an optimizer of fastclip.torch, as the recipe in the documentation says.

DeepSpeed is in no extra, as its installation needs PyTorch: the tests run where it and ninja, with which it
builds its operators for the CPU, are installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "deepspeed"))) or shutil.which("ninja") is None,
    reason="needs DeepSpeed and ninja, which no extra installs",
)

TRAINING = """
import json
import os
import sys

import deepspeed
import torch

import fastclip.torch

stage, clips_in_step = int(sys.argv[1]), sys.argv[2] == "in_step"
world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


calls = []
original = fastclip._core.torch_step
fastclip._core.torch_step = lambda *arguments: calls.append(1) or original(*arguments)

model, reference = make_model(), make_model()
optimizer = fastclip.torch.AdamW(model.parameters(), lr=0.1, max_norm=0.1 if clips_in_step else None)
zero = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if stage > 1 else {})}
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=optimizer,
    config={
        "train_batch_size": 4 * world,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # Without the key, DeepSpeed clips to 1.
        "gradient_clipping": 0.0 if clips_in_step else 0.1,
    },
)
want = torch.optim.AdamW(reference.parameters(), lr=0.1)
for step in range(5):
    generators = [torch.Generator().manual_seed(10 * step + process) for process in range(world)]
    batches = [(1 + step) * torch.randn(4, 8, generator=generator) for generator in generators]
    engine.backward(engine(batches[rank]).square().mean())
    engine.step()
    want.zero_grad()
    sum(reference(batch).square().mean() for batch in batches).div(world).backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    want.step()
    if clips_in_step:
        torch.testing.assert_close(optimizer.last_norm, float(norm), rtol=1e-4, atol=0.0)
assert len(calls) == 5
with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
    for found, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), other.detach(), rtol=1e-4, atol=1e-5)
print("the same on rank", rank)
"""


@pytest.mark.parametrize(
    ("stage", "processes", "clips"),
    [
        # The processes share the parameters: DeepSpeed clips, as a step sees the gradients of its own part.
        (1, 2, "by_deepspeed"),
        (2, 2, "by_deepspeed"),
        (3, 2, "by_deepspeed"),
        (2, 1, "in_step"),
    ],
)
def test_zero(tmp_path: Path, stage: int, processes: int, clips: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--local-addr=127.0.0.1"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(stage), clips],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same on rank") == processes
