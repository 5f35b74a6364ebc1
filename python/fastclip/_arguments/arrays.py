"""Conversion of array-likes to arrays and of numbers to floats, with errors that name the argument.

Tensors of other frameworks raise here. The optimizers, which accept them, convert them by
`_arguments/foreign.py`.
"""

from __future__ import annotations

import sys
from collections import UserString
from types import GeneratorType
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from fastclip._arguments.foreign import framework

__all__ = ["as_array", "as_bound", "as_number", "as_output", "describe", "is_array_like", "is_masked_array"]

#: Types that `float` converts, or that look like numbers, and are not accepted as numbers.
_NOT_NUMBERS = (bool, str, bytes, bytearray, complex, UserString)

#: For each framework, the expression to pass instead of its tensor.
_REPLACEMENTS = {
    "torch": "its .numpy() (on the CPU; torch.nn.utils.clip_grad_norm_ is torch's own)",
    "jax": "np.asarray(...) of it (optax.clip_by_global_norm is JAX's own)",
    "tensorflow": "its .numpy() (tf.clip_by_global_norm is TensorFlow's own)",
    "cupy": "cupy.asnumpy(...) of it",
}


def describe(value: object) -> str:
    """Returns a description of an argument for error messages: dtype and shape of an array, else the type."""
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__}"


def _check_accepted_type(value: object, name: str) -> None:
    """Raises TypeError for tensors of frameworks, masked arrays, generators and text."""
    kind = framework(value)
    if kind is not None:
        tensor = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
        raise TypeError(f"{name} is a {tensor}, which fastclip does not take yet; pass {_REPLACEMENTS[kind]}")
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
    """Returns an array of native byte order for anything that ``np.asarray`` accepts.

    Parameters
    ----------
    value : array_like
        An array is copied only if its byte order is not native.
    name : str
        Name of the argument in error messages.

    Raises
    ------
    TypeError
        If `value` is a tensor of a framework or a masked array, or converts to an array of dtype object.
    """
    if type(value) is not np.ndarray:
        _check_accepted_type(value, name)
        kind = type(value).__name__
        only_dlpack = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        try:
            value = np.from_dlpack(value) if only_dlpack else np.asarray(value)
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
        If `value` is not an array and exports no buffer.
    ValueError
        If its byte order is not native.
    """
    if type(value) is not np.ndarray:
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
