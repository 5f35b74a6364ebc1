"""Conversion of variables and gradients to arrays that share their memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip._arguments.arrays import as_array, as_output
from fastclip._arguments.devices import is_on_device
from fastclip._arguments.foreign import foreign_slices, framework, is_mutable_tensor
from fastclip._arguments.numpy_view import numpy_view
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable
from fastclip.train._memory_owner import note_storage

__all__ = ["as_gradient", "as_slices", "as_variable", "view_of_variable"]


def as_variable(value: Any, name: str) -> Any:
    """Return an array that shares the memory of a variable, or a tensor that the compiled part reads itself.

    Arrays on a device are returned as they are.

    Parameters
    ----------
    value : ndarray, Variable, tensor or writable buffer
        The variable.
    name : str
        The variable's name in error messages.

    Raises
    ------
    RuntimeError
        If the variable is a Variable, and a loss is being differentiated with respect to it.
    TypeError
        If its memory cannot be written, such as that of a tensor of JAX or TensorFlow.
    ValueError
        If its byte order is not the native one.
    """
    if isinstance(value, Variable):
        return value._memory()
    if is_on_device(value):
        return value
    if is_mutable_tensor(value):
        note_storage(value)
        return value
    if framework(value) is None and not isinstance(value, np.ndarray) and hasattr(type(value), "__dlpack__"):
        # The compiled part finds out whether it may be written.
        return value
    return as_output(value, name)


def view_of_variable(variable: Any) -> Any:
    """Return an array over the memory of what :func:`as_variable` has returned."""
    if isinstance(variable, np.ndarray) or is_on_device(variable):
        return variable
    return numpy_view(variable, "variable", to_write=True)


def as_gradient(value: Any, name: str) -> Any:
    """Return a gradient as an array, which shares its memory where possible, or as a tensor.

    Parameters
    ----------
    value : array_like, Variable or tensor on the CPU
        The gradient.
    name : str
        The gradient's name in error messages.

    Raises
    ------
    TypeError
        If the gradient cannot be converted to an array.
    """
    if (type(value) is np.ndarray and value.dtype.isnative) or is_on_device(value):
        return value
    if isinstance(value, Variable):
        return value._data
    return value if framework(value) is not None else as_array(value, name)


def as_slices(gradient: Any, name: str) -> IndexedSlices | None:
    """Return a sparse gradient as IndexedSlices; None for any other gradient.

    Sparse gradients are IndexedSlices and sparse tensors of other frameworks. `name` is the gradient's name
    in error messages.
    """
    if type(gradient) is np.ndarray or gradient is None or is_on_device(gradient):
        return None
    return gradient if isinstance(gradient, IndexedSlices) else foreign_slices(gradient, name)
