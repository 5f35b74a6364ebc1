"""PyTorch's own functions, which take what fastclip does not."""

from __future__ import annotations

from typing import Any

import torch.nn.utils
from torch.nn.utils import clip_grad

__all__ = ["ORIGINALS", "is_of_pytorch"]


def is_of_pytorch(function: Any) -> bool:
    """Return whether PyTorch defines a function, and not other code that has put it in its place."""
    return bool(function.__module__ == clip_grad.__name__)


def _original(public: str, private: str) -> Any:
    for module, name in ((clip_grad, private), (torch.nn.utils, public)):
        function = getattr(module, name)
        if is_of_pytorch(function):
            return function
    # Other code has replaced both, and is called in the place of PyTorch.
    return getattr(clip_grad, private)


#: The functions by the names that `torch.nn.utils` has for them, looked up before `patch` replaces them.
ORIGINALS = {
    "clip_grad_norm_": _original("clip_grad_norm_", "clip_grad_norm_"),
    "clip_grad_value_": _original("clip_grad_value_", "clip_grad_value_"),
    "get_total_norm": _original("get_total_norm", "_get_total_norm"),
    "clip_grads_with_norm_": _original("clip_grads_with_norm_", "_clip_grads_with_norm_"),
}
