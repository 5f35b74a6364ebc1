"""Gradient clipping at memory speed on CPUs, over NumPy buffers, with TensorFlow's API.

The functions are those of ``tf.clip_by_value``, ``tf.clip_by_norm``, ``tf.clip_by_global_norm`` and
``tf.linalg.global_norm``, on NumPy arrays and nested containers of them. Norms are exact to the last
digit of the type returned and never overflow, results have the same bits for any number of threads,
and a call that fails has written nothing.

Examples
--------
>>> import numpy as np
>>> import fastclip
>>> grads = [np.array([3.0, 4.0], dtype=np.float32), np.array([[12.0]], dtype=np.float32)]
>>> clipped, norm = fastclip.clip_by_global_norm(grads, 6.5)
>>> norm
np.float32(13.0)
>>> clipped[0]
array([1.5, 2. ], dtype=float32)
"""

from __future__ import annotations

import warnings as _warnings
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from fastclip import _core
from fastclip._config import (
    config,
    free_cached_memory,
    get_num_threads,
    set_num_threads,
    show_config,
    threads,
)
from fastclip._errors import NonFiniteError
from fastclip._functions.accumulation import accumulate
from fastclip._functions.clip import (
    clip_by_average_norm,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
)
from fastclip._functions.norms import global_norm, tensor_norms
from fastclip._functions.unitwise import adaptive_clip, clip_by_block_rms
from fastclip._indexed_slices import IndexedSlices
from fastclip._norm_accumulator import NormAccumulator
from fastclip._public import name_public_module as _name_public_module
from fastclip._variables.collections import GraphKeys, get_collection, trainable_variables
from fastclip._variables.variable import Variable

__version__: str = _core.__version__

__all__ = [
    "GraphKeys",
    "IndexedSlices",
    "NonFiniteError",
    "NormAccumulator",
    "Variable",
    "__version__",
    "accumulate",
    "adaptive_clip",
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "config",
    "free_cached_memory",
    "get_collection",
    "get_num_threads",
    "global_norm",
    "set_num_threads",
    "show_config",
    "tensor_norms",
    "threads",
    "train",
    "trainable_variables",
]

if _TYPE_CHECKING:
    from fastclip import train as train

# Submodules that are imported when they are first used: the optimizers take as long to import as the rest.
_SUBMODULES = ("gpu", "torch", "train")


def __getattr__(name: str) -> _Any:
    if name in _SUBMODULES:
        from importlib import import_module

        return import_module(f"fastclip.{name}")
    raise AttributeError(f"module 'fastclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    # The public names alone, for completion in interactive shells.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_name_public_module(globals())

for _message in _core.settings_complaints():
    _warnings.warn(_message, RuntimeWarning, stacklevel=2)
