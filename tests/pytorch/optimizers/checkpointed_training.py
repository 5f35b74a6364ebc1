"""A training that is saved by `torch.distributed.checkpoint` in one process, and goes on in another.

``python -m checkpointed_training FOLDER`` loads the checkpoint in a folder, and prints what `final_state`
returns.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

# The search for doctests imports this file, also where PyTorch is not installed.
pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict  # noqa: E402

import fastclip.torch  # noqa: E402


def build(seed: int, max_norm: float) -> tuple[Any, Any]:
    """Returns a model of random weights and its optimizer."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    groups = [{"params": list(layer.parameters())} for layer in model]
    options: dict[str, Any] = {"max_norm": max_norm, "state_dtype": torch.bfloat16, "seed": 5}
    return model, fastclip.torch.AdamW(groups, lr=0.01, **options)


def take_step(model: Any, optimizer: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def save(model: Any, optimizer: Any, folder: str) -> None:
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder, no_dist=True)


def load(model: Any, optimizer: Any, folder: str) -> None:
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)


def final_state(model: Any, optimizer: Any) -> str:
    """Returns every number that training depends on, as text."""
    lines = [f"{optimizer.max_norm} {optimizer.last_norm}"]
    for parameter in model.parameters():
        lines.append(str(parameter.tolist()))
        for key, value in optimizer.state[parameter].items():
            lines.append(f"{key} {value.dtype} {value.tolist()}")
    return "\n".join(lines)


if __name__ == "__main__":
    model, optimizer = build(1, 9.0)
    load(model, optimizer, sys.argv[1])
    take_step(model, optimizer, 2)
    print(final_state(model, optimizer))
