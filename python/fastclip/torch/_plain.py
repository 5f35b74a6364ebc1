"""Tensors that fastclip takes."""

from __future__ import annotations

import torch

__all__ = ["is_plain"]


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a dense one of floats on the CPU, and of no derived class but
    `Parameter`.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
    )
