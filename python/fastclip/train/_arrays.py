"""What may be a variable and what a gradient, and the arrays over their memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, as_output
from fastclip._arguments.foreign import foreign_array, foreign_slices, framework
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = ["as_gradient", "as_rows", "as_variable"]


def as_variable(value: Any, name: str) -> npt.NDArray[Any]:
    """Return the array over the memory of a variable.

    Parameters
    ----------
    value : ndarray, Variable, torch tensor or writable buffer
        What is updated in place.
    name : str
        What it is called in messages.

    Raises
    ------
    RuntimeError
        If it is a Variable, inside the loss that is differentiated by it.
    TypeError
        If it is no memory that can be written, such as a tensor of JAX or TensorFlow.
    ValueError
        If its bytes are not in native order.
    """
    if isinstance(value, Variable):
        return value._memory()
    kind = framework(value)
    if kind == "torch":
        return foreign_array(value, name, to_write=True)
    if kind is not None:
        raise TypeError(
            f"{name} is a {kind} {type(value).__name__}, which cannot be changed; it takes an array, a "
            "fastclip.Variable or a torch tensor, which are updated in place"
        )
    return as_output(value, name)


def as_gradient(value: Any, name: str) -> npt.NDArray[Any]:
    """Return the array over the memory of a gradient: of anything that ``np.asarray`` takes.

    Raises
    ------
    TypeError
        If it becomes no array, or is a tensor outside the memory of the CPU.
    """
    if type(value) is np.ndarray and value.dtype.isnative:
        return value
    if isinstance(value, Variable):
        return value._data
    return foreign_array(value, name) if framework(value) is not None else as_array(value, name)


def as_rows(gradient: Any, name: str) -> IndexedSlices | None:
    """Return a gradient that is made of rows; None if it is not."""
    if type(gradient) is np.ndarray or gradient is None:
        return None
    return gradient if isinstance(gradient, IndexedSlices) else foreign_slices(gradient, name)
