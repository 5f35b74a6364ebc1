"""Tensors of other frameworks as arrays over the same memory.

A framework is known by the module that a tensor's type comes from, and is never imported.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._indexed_slices import IndexedSlices

__all__ = ["foreign_array", "foreign_slices", "framework"]

_ROOTS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow", "cupy": "cupy"}


def framework(value: object) -> str | None:
    """Return the framework that a tensor is of: torch, jax, tensorflow or cupy; None for anything else."""
    roots = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((_ROOTS[root] for root in roots if root in _ROOTS), None)


def foreign_array(value: Any, name: str, to_write: bool = False) -> npt.NDArray[Any]:
    """Return the array over the memory of a framework's tensor.

    Parameters
    ----------
    value : tensor
        Of a kind that :func:`framework` knows.
    name : str
        What it is called in messages.
    to_write : bool, optional
        Whether the array will be written to, so that it must not be a copy.

    Raises
    ------
    TypeError
        If the tensor is not in the memory of the CPU, or not dense.
    """
    if framework(value) == "torch":
        return _torch_array(value, name, to_write)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"{name} is a {framework(value)} {type(value).__name__}, which is not read as an array: {error}"
        ) from error


def _torch_array(value: Any, name: str, to_write: bool) -> npt.NDArray[Any]:
    if not hasattr(value, "detach"):
        raise TypeError(f"{name} is a torch {type(value).__name__}; it takes a tensor")
    if value.device.type != "cpu":
        raise TypeError(f"{name} is a torch tensor on {value.device}; pass its .cpu(), or use torch's own")
    if str(value.layout) != "torch.strided":
        raise TypeError(f"{name} is a torch tensor of layout {value.layout}; it takes a strided one")
    if to_write and (value.is_neg() or value.is_conj()):
        raise TypeError(
            f"{name} is a torch tensor that stands for the negative of memory; pass .resolve_neg() of it"
        )
    tensor = value.detach().resolve_conj().resolve_neg()
    if str(tensor.dtype) != "torch.bfloat16":
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            f"{name} is a torch tensor of bfloat16, for which NumPy needs ml_dtypes: "
            "pip install 'fastclip[bf16]'"
        ) from None
    # torch gives NumPy no bfloat16; its bits are those of an int16.
    bits = tensor.view(sys.modules["torch"].int16)
    bfloat16: npt.NDArray[Any] = bits.numpy().view(ml_dtypes.bfloat16)
    return bfloat16


def foreign_slices(value: Any, name: str) -> IndexedSlices | None:
    """Return the rows that a sparse gradient of a framework is made of; None if it is no such thing.

    These are TensorFlow's IndexedSlices, and torch's sparse tensors with one sparse dimension, which
    ``torch.nn.Embedding(sparse=True)`` gives.
    """
    kind = framework(value)
    if kind == "tensorflow" and all(hasattr(value, part) for part in ("values", "indices", "dense_shape")):
        shape = None if value.dense_shape is None else np.asarray(value.dense_shape)
        return IndexedSlices(np.asarray(value.values), np.asarray(value.indices), shape)
    if kind == "torch" and getattr(value, "is_sparse", False):
        if value.sparse_dim() != 1:
            raise TypeError(
                f"{name} is a sparse torch tensor with {value.sparse_dim()} sparse dimensions; it takes one"
            )
        value = value.detach()
        indices = foreign_array(value._indices()[0], name)
        return IndexedSlices(foreign_array(value._values(), name), indices, tuple(value.shape))
    return None
