"""Conversion of tensors of other frameworks to arrays that share their memory.

A framework is recognised by the module that defines a tensor's type, and is never imported.
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
    """Returns the framework of a tensor: torch, jax, tensorflow or cupy; None for any other object."""
    roots = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((_ROOTS[root] for root in roots if root in _ROOTS), None)


def foreign_array(value: Any, name: str, to_write: bool = False) -> npt.NDArray[Any]:
    """Returns an array that shares the memory of a framework's tensor.

    Parameters
    ----------
    value : tensor
        Tensor of a framework that :func:`framework` returns.
    name : str
        Name of the tensor in error messages.
    to_write : bool, optional
        Whether the caller writes to the array, so that it must not be a copy.

    Raises
    ------
    TypeError
        If the tensor is not in CPU memory, or not dense.
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
            "pip install 'fastclip-grad[bf16]'"
        ) from None
    # torch does not convert bfloat16 to NumPy; a view as int16 has the same bits.
    bits = tensor.view(sys.modules["torch"].int16)
    bfloat16: npt.NDArray[Any] = bits.numpy().view(ml_dtypes.bfloat16)
    return bfloat16


def foreign_slices(value: Any, name: str) -> IndexedSlices | None:
    """Returns the rows of a framework's sparse gradient; None for any other object.

    Sparse gradients are TensorFlow's IndexedSlices, and torch's sparse tensors with one sparse dimension,
    such as those of ``torch.nn.Embedding(sparse=True)``.
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
