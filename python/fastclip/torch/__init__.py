"""Gradient clipping and optimizers for PyTorch on the CPU, with PyTorch's signatures.

The functions replace those of `torch.nn.utils`. What fastclip does not take, such as tensors on other
devices, goes to PyTorch's own, so that one import serves both.

Examples
--------
>>> import torch
>>> import fastclip.torch
>>> weight = torch.nn.Parameter(torch.zeros(2))
>>> weight.grad = torch.tensor([3.0, 4.0])
>>> fastclip.torch.clip_grad_norm_([weight], max_norm=1.0)
tensor(5.)
"""

from __future__ import annotations

from fastclip._public import name_public_module as _name_public_module
from fastclip.torch._clipping import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from fastclip.torch._errors import NonFiniteGradientError
from fastclip.torch._optimizers.adagrad import Adagrad
from fastclip.torch._optimizers.adam import Adam, AdamW
from fastclip.torch._optimizers.lion import Lion
from fastclip.torch._optimizers.sgd import SGD
from fastclip.torch._patching import patch, unpatch

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NonFiniteGradientError",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "patch",
    "unpatch",
]

_name_public_module(globals())
