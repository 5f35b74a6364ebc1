"""Tensors of other libraries: what the door of the compiled part leaves to Python code.

`src/py/tensors` reads arrays, tensors of torch, and objects with ``__dlpack__``. It calls this module for
objects that hold a tensor, such as sparse gradients, for errors about tensors that cannot be read, and to
import results. A library is recognised by the module that defines a tensor's type, and is never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastclip._arguments.numpy_view import numpy_view
from fastclip._indexed_slices import IndexedSlices

__all__ = ["find_tangent", "foreign_slices", "framework", "held_tensor", "is_mutable_tensor", "resolved"]

_ROOTS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow", "cupy": "cupy"}

#: For each library, what to do with a tensor on another device than the CPU.
_OTHER_DEVICE = {
    "torch": "pass its .cpu(), or use torch.nn.utils.clip_grad_norm_, torch's own",
    "jax": "pass jax.device_get(...) of it, or use optax.clip_by_global_norm",
    "tensorflow": "copy it under tf.device('CPU'), or use tf.clip_by_global_norm, TensorFlow's own",
    "cupy": "pass cupy.asnumpy(...) of it",
}

#: Makes a new object from the result of the tensor that an object holds.
_Make = Callable[[Any], Any]


def framework(value: object) -> str | None:
    """Returns the library of a tensor: torch, jax, tensorflow or cupy; None for any other object."""
    roots = (str(kind.__module__).partition(".")[0] for kind in type(value).__mro__)
    return next((_ROOTS[root] for root in roots if root in _ROOTS), None)


def is_mutable_tensor(value: object) -> bool:
    """Whether a value is a tensor of a library whose tensors can be written to: torch."""
    return framework(value) == "torch"


def held_tensor(
    value: Any, name: str, to_write: bool, error: Exception | None
) -> tuple[Any, _Make | None] | None:
    """Returns the tensor that an object of another library holds.

    Parameters
    ----------
    value : object
        Object that the compiled part cannot read by itself.
    name : str
        Name of the object in error messages.
    to_write : bool
        Whether the caller writes to the tensor.
    error : Exception or None
        The exception that an attempt to read the object has ended with.

    Returns
    -------
    tuple of (tensor, callable or None), or None
        The tensor, and a function that makes an object like `value` from the result of the tensor; None if
        `value` belongs to no library that is known here.

    Raises
    ------
    TypeError
        If the object holds no tensor on the CPU, or one that cannot be written.
    """
    kind = framework(value)
    if kind is None:
        return None
    if kind in ("jax", "tensorflow") and to_write:
        raise TypeError(
            f"{name} is a {kind} {type(value).__name__}, which is immutable; it takes a tensor that can be "
            "written to, such as an ndarray or a torch tensor"
        )
    if kind == "torch" and _layout(value) == "torch.sparse_coo" and value.device.type == "cpu":
        values, make = _torch_sparse(value)
        return resolved(values, name, to_write), make
    if kind == "tensorflow":
        if _is_indexed_slices(value):
            return value.values, lambda values: type(value)(values, value.indices, value.dense_shape)
        if hasattr(value, "read_value") and error is None:
            return value.read_value(), None
    raise _refusal(value, kind, name, error)


def _is_indexed_slices(value: Any) -> bool:
    """Whether a value is TensorFlow's IndexedSlices; its SparseTensor has attributes of the same names."""
    return isinstance(value, getattr(sys.modules.get("tensorflow"), "IndexedSlices", ()))


def _layout(value: Any) -> str:
    return str(getattr(value, "layout", None))


def _torch_sparse(value: Any) -> tuple[Any, _Make]:
    """Returns the values of a sparse tensor, and the function that makes one with other values."""
    torch = sys.modules["torch"]
    tensor = value.detach()
    indices, is_coalesced = tensor._indices(), tensor.is_coalesced()

    def make(values: Any) -> Any:
        return torch.sparse_coo_tensor(
            indices, values, tensor.shape, is_coalesced=is_coalesced, check_invariants=False
        )

    return tensor._values(), make


def _refusal(value: Any, kind: str, name: str, error: Exception | None) -> TypeError:
    """Returns the error about a tensor that cannot be read."""
    what = f"{name} is a {kind} {type(value).__name__}"
    device = _device(value)
    if device is not None and not device.lower().startswith(("cpu", "tfrt_cpu")) and "CPU" not in device:
        return TypeError(f"{what} on {device}; it takes tensors on the CPU: {_OTHER_DEVICE[kind]}")
    layout = getattr(value, "layout", None)
    if kind == "torch" and layout is not None and str(layout) != "torch.strided":
        return TypeError(f"{what} of layout {layout}; it takes a strided or sparse COO tensor")
    if getattr(value, "is_nested", False):
        return TypeError(f"{what} that is nested; pass the list of its .unbind()")
    if isinstance(error, (TypeError, ValueError)) and str(error).startswith(name):
        return TypeError(str(error))
    reason = "it has no values in memory, as in a function that the library transforms or traces"
    if error is not None:
        # Some libraries append the trace of their own code.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason += f" ({lines[0][:200]})"
    return TypeError(f"{what} that cannot be read: {reason}")


def _device(value: Any) -> str | None:
    """Returns the name of a tensor's device; None if the tensor does not tell."""
    try:
        device = value.device
        return None if device is None or callable(device) else str(device) or None
    except Exception:
        return None


def resolved(tensor: Any, name: str, to_write: bool) -> Any:
    """Returns a tensor of torch whose memory has its values: `tensor`, or a copy of it.

    torch conjugates and negates lazily: memory of such a tensor has other values than the tensor.

    Raises
    ------
    TypeError
        If the memory has other values, and the caller writes to it.
    """
    if not (tensor.is_neg() or tensor.is_conj()):
        return tensor
    if to_write:
        raise TypeError(
            f"{name} is a torch {type(tensor).__name__} that stands for the negative or conjugate of memory; "
            "pass .resolve_neg().resolve_conj() of it"
        )
    return tensor.detach().resolve_conj().resolve_neg()


def find_tangent(tensors: list[Any]) -> int | None:
    """Returns the index of a tensor of torch that carries a tangent, which results would lose.

    Tangents belong to torch's forward-mode differentiation, for which the clip functions have no rules.
    """
    forward_ad = sys.modules["torch"].autograd.forward_ad
    if forward_ad._current_level < 0:
        return None
    with_tangent = (forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    return next((i for i, found in enumerate(with_tangent) if found), None)


def torch_tensor(exported: Any) -> Any:
    """Returns a tensor of torch over the memory of a result."""
    return sys.modules["torch"].utils.dlpack.from_dlpack(exported.__dlpack__())


def jax_array(exported: Any) -> Any:
    """Returns an array of JAX over the memory of a result."""
    jax = sys.modules["jax"]
    # JAX narrows elements of 64 bits where the mode for them is off. The input has them all the same.
    modes = jax if hasattr(jax, "enable_x64") else jax.experimental
    with modes.enable_x64(True):
        return jax.dlpack.from_dlpack(exported)


def tensorflow_tensor(exported: Any) -> Any:
    """Returns a tensor of TensorFlow over the memory of a result."""
    return sys.modules["tensorflow"].experimental.dlpack.from_dlpack(exported.__dlpack__())


def foreign_slices(value: Any, name: str) -> IndexedSlices | None:
    """Returns the rows of another library's sparse gradient; None for any other object.

    Sparse gradients are TensorFlow's IndexedSlices, and torch's sparse tensors with one sparse dimension,
    such as those of ``torch.nn.Embedding(sparse=True)``.
    """
    kind = framework(value)
    if kind == "tensorflow" and _is_indexed_slices(value):
        shape = None if value.dense_shape is None else np.asarray(value.dense_shape)
        return IndexedSlices(value.values, np.asarray(value.indices), shape)
    if kind == "torch" and getattr(value, "is_sparse", False):
        if value.sparse_dim() != 1:
            raise TypeError(
                f"{name} is a sparse torch tensor with {value.sparse_dim()} sparse dimensions; it takes one"
            )
        value = value.detach()
        indices = numpy_view(value._indices()[0], name)
        return IndexedSlices(value._values(), indices, tuple(value.shape))
    return None
