"""Conversion of array-likes to arrays and of numbers to floats, with errors that name the argument."""

from __future__ import annotations

import sys
from collections import UserString
from collections.abc import Callable
from types import GeneratorType
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from fastclip._arguments.foreign import framework, held_tensor
from fastclip._arguments.numpy_view import numpy_view
from fastclip._indexed_slices import IndexedSlices

__all__ = [
    "as_array",
    "as_bound",
    "as_number",
    "as_output",
    "converted",
    "describe",
    "is_array_like",
    "is_masked_array",
    "native_view",
]

#: Types that `float` converts, or that look like numbers, and are not accepted as numbers.
_NOT_NUMBERS = (bool, str, bytes, bytearray, complex, UserString)


def describe(value: object) -> str:
    """Returns a description of an argument for error messages: dtype and shape of an array, else the type."""
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__}"


def _check_accepted_type(value: object, name: str) -> None:
    """Raises TypeError for masked arrays, generators and text."""
    if is_masked_array(value):
        raise TypeError(
            f"{name} is a masked array of dtype {value.dtype} and shape {value.shape}; "
            "pass .filled(0) or .compressed() of it"
        )
    if isinstance(value, GeneratorType):
        raise TypeError(f"{name} is a generator, which can be read only once; pass a list")
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is a {type(value).__name__}; it takes an array")


def is_masked_array(value: object) -> TypeGuard[np.ma.MaskedArray[Any, Any]]:
    """Whether a value is a masked array."""
    # Importing numpy.ma takes a fifth as long as importing fastclip; without it there are no masked arrays.
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def is_array_like(value: object) -> bool:
    """Whether an object is a number or text, or implements a protocol of arrays or buffers."""
    if isinstance(value, (np.ndarray, np.generic, int, float, complex, str, bytes, memoryview, bytearray)):
        return True
    return any(
        hasattr(value, name) for name in ("__array__", "__array_interface__", "__dlpack__", "__buffer__")
    ) or (type(value).__module__ == "array")


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """Returns an array of native byte order for a tensor, or anything that ``np.asarray`` accepts.

    Parameters
    ----------
    value : array_like
        An array is copied only if its byte order is not native. A tensor of another library shares its memory
        with the result.
    name : str
        Name of the argument in error messages.

    Raises
    ------
    TypeError
        If `value` is a tensor that cannot be read or a masked array, or converts to an array of dtype object.
    """
    if type(value) is not np.ndarray:
        if framework(value) is not None:
            return numpy_view(value, name)
        _check_accepted_type(value, name)
        kind = type(value).__name__
        if hasattr(type(value), "__dlpack__") and not hasattr(value, "__array__"):
            return numpy_view(value, name)
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise TypeError(f"{name} is a {kind}, which NumPy makes no array of: {error}") from error
        if value.dtype.kind == "O":
            raise TypeError(
                f"{name} is a {kind}, which becomes an array of dtype object and shape {value.shape}; "
                "it takes an array of numbers"
            )
    array: npt.NDArray[Any] = value
    if not array.dtype.isnative and array.dtype.kind in "fciu":
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def as_output(value: Any, name: str) -> npt.NDArray[Any]:
    """Returns an array over the memory of an output.

    Raises
    ------
    TypeError
        If `value` is no array or tensor that can be written, and exports no buffer.
    ValueError
        If its byte order is not native.
    """
    if type(value) is not np.ndarray:
        if framework(value) is not None:
            return numpy_view(value, name, to_write=True)
        _check_accepted_type(value, name)
        if isinstance(value, np.generic):
            raise TypeError(f"{name} is {describe(value)}; it takes an array to write to")
        if not isinstance(value, np.ndarray):
            try:
                value = np.asarray(memoryview(value))
            except (TypeError, ValueError):
                raise TypeError(f"{name} is {describe(value)}; it takes an array to write to") from None
        else:
            value = np.asarray(value)
    array: npt.NDArray[Any] = value
    if not array.dtype.isnative and array.dtype.kind in "fciu":
        raise ValueError(
            f"{name} is {describe(array)}, in the byte order of another machine; it takes native order"
        )
    return array


def converted(
    value: Any, name: str, to_write: bool, error: Exception | None
) -> tuple[Any, Callable[[Any], Any] | None]:
    """Converts an object that the compiled part does not read by itself, which calls this function.

    Parameters
    ----------
    value : object
        An array-like, or an object that holds a tensor.
    name : str
        Name of the object in error messages.
    to_write : bool
        Whether the caller writes to the tensor.
    error : Exception or None
        The exception that an attempt to read the object has ended with.

    Returns
    -------
    tensor : ndarray or tensor
        An object that the compiled part reads.
    make : callable or None
        Makes an object like `value` from the result of the tensor. Where it is None, the result is that of
        the tensor.
    """
    if isinstance(value, IndexedSlices):
        return value.values, value._with_values
    # A Variable, which is not imported here: it imports this module.
    tensor_of_variable = getattr(type(value), "_held_tensor", None)
    if tensor_of_variable is not None and not to_write:
        return tensor_of_variable(value), None
    held = held_tensor(value, name, to_write, error)
    if held is not None:
        return held
    if error is not None and not hasattr(value, "__array__"):
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(name):
            raise error
        raise TypeError(f"{name} is a {type(value).__name__}, which cannot be read: {error}") from error
    return (as_output(value, name) if to_write else as_array(value, name)), None


def native_view(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns an array over the same memory in native byte order: the values differ, the addresses do not."""
    return np.ndarray.view(array, array.dtype.newbyteorder("="), np.ndarray)


def as_number(value: Any, name: str, accepted: str = "a number") -> float:
    """Returns a real number as a float. Every argument that is a number is converted here.

    Parameters
    ----------
    value : object
        An int or float, a NumPy scalar or 0-dimensional array of a float or integer dtype (bfloat16
        included), or any other object with ``__float__`` or ``__index__``, such as a Fraction, a Variable or
        a 0-dimensional tensor of a framework.
    name : str
        Name of the argument in error messages.
    accepted : str, optional
        Description of the accepted values in error messages.

    Raises
    ------
    TypeError
        If `value` is not a real number: a bool, a complex number, text, or an array of these.
    ValueError
        If it is an array with dimensions, or an integer beyond the range of float64.
    """
    kind = type(value)
    if kind is float:
        number: float = value
        return number
    if kind is not int:
        _check_number(value, name, accepted)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond float64; it takes {accepted}") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it takes {accepted}") from None


def _check_number(value: Any, name: str, accepted: str) -> None:
    """Raises TypeError for values that are not real numbers, although ``float`` may convert them."""
    if isinstance(value, np.ndarray) and not is_masked_array(value) and value.ndim:
        raise ValueError(f"{name} is {describe(value)}; it takes one number")
    if isinstance(value, _NOT_NUMBERS) or is_masked_array(value):
        raise TypeError(f"{name} is {value!r}; it takes {accepted}")
    # `float` also parses text in buffers, which have neither method.
    if not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise TypeError(f"{name} is {'None' if value is None else describe(value)}; it takes {accepted}")
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return
    if not _is_real(dtype):
        raise TypeError(f"{name} is {value!r}; it takes {accepted}")
    if len(getattr(value, "shape", None) or ()):
        raise ValueError(f"{name} is a {type(value).__name__} of shape {value.shape}; it takes one number")


def _is_real(dtype: Any) -> bool:
    """Whether a dtype of NumPy or of a framework is a float or integer type."""
    if isinstance(dtype, np.dtype):
        return dtype.kind in "fiu" or dtype.name == "bfloat16"
    # Frameworks' dtypes print as torch.float32 or <dtype: 'float32'>.
    return any(word in str(dtype) for word in ("float", "int"))


def as_bound(value: Any, name: str) -> float:
    """Returns a scalar or 0-dimensional array as a float that is not NaN.

    Raises
    ------
    TypeError
        If `value` is not a real number.
    ValueError
        If it is an array with dimensions, or NaN.
    """
    number = as_number(value, name)
    if number != number:
        raise ValueError(f"{name} is NaN; it takes a number")
    return number
