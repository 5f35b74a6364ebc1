"""The parts of PyTorch that the extension module needs, passed to it once."""

from __future__ import annotations

from typing import Any

import torch

from fastclip import _core

__all__ = ["BINDING"]


def _any_is_negative(tensors: list[Any]) -> bool:
    # A complex tensor that is lazily conjugated has real views whose negative bit is set.
    return any(map(torch.Tensor.is_neg, tensors))


if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(
        f"fastclip.torch needs a newer PyTorch than {torch.__version__}: one whose tensors have the exchange "
        "functions of DLPack (__dlpack_c_exchange_api__), such as 2.13"
    )

#: What calls of the extension module that take plain tensors get as their first argument.
BINDING = _core.TorchBinding(
    torch.Tensor, torch.nn.Parameter, torch.autograd.graph.increment_version, _any_is_negative
)
