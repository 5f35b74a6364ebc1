"""Replacing PyTorch's clip functions by those of fastclip."""

from __future__ import annotations

from typing import Any

import torch.nn.utils
from torch.nn.utils import clip_grad

from fastclip.torch import _clipping
from fastclip.torch._originals import ORIGINALS, is_of_pytorch

__all__ = ["patch", "unpatch"]

#: The modules in which each function is found.
_MODULES = {
    "clip_grad_norm_": (torch.nn.utils, clip_grad),
    "clip_grad_value_": (torch.nn.utils, clip_grad),
    "get_total_norm": (torch.nn.utils,),
    "clip_grads_with_norm_": (torch.nn.utils,),
}


def _replace(present: dict[str, Any], replacements: dict[str, Any]) -> None:
    for name, modules in _MODULES.items():
        for module in modules:
            if getattr(module, name, None) is present[name] and is_of_pytorch(ORIGINALS[name]):
                setattr(module, name, replacements[name])


def patch() -> None:
    """Put fastclip's clip functions into `torch.nn.utils`.

    Libraries that look the functions up there when they clip, such as Accelerate, Transformers and
    Lightning, use those of fastclip from then on. A function that other code has replaced is left as it is.

    See Also
    --------
    unpatch : Puts PyTorch's functions back.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> fastclip.torch.patch()
    >>> torch.nn.utils.clip_grad_norm_ is fastclip.torch.clip_grad_norm_
    True
    >>> fastclip.torch.unpatch()
    >>> torch.nn.utils.clip_grad_norm_ is fastclip.torch.clip_grad_norm_
    False
    """
    _replace(ORIGINALS, {name: getattr(_clipping, name) for name in _MODULES})


def unpatch() -> None:
    """Put PyTorch's clip functions back into `torch.nn.utils`, see `patch`.

    Examples
    --------
    >>> import fastclip.torch
    >>> fastclip.torch.unpatch()
    """
    _replace({name: getattr(_clipping, name) for name in _MODULES}, ORIGINALS)
