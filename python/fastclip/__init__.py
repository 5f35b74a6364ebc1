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
from fastclip._functions.clip import (
    clip_by_average_norm,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
)
from fastclip._functions.norms import global_norm, tensor_norms
from fastclip._functions.unitwise import adaptive_clip, clip_by_block_rms
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.collections import GraphKeys, get_collection, trainable_variables
from fastclip._variables.variable import Variable

__version__: str = _core.__version__

__all__ = [
    "GraphKeys",
    "IndexedSlices",
    "NonFiniteError",
    "Variable",
    "__version__",
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


def __getattr__(name: str) -> _Any:
    # The optimizers take as long to import as all the rest: only who uses them waits for them.
    if name == "train":
        from importlib import import_module

        return import_module("fastclip.train")
    raise AttributeError(f"module 'fastclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "train"})


for _complaint in _core.settings_complaints():
    _warnings.warn(_complaint, RuntimeWarning, stacklevel=2)
