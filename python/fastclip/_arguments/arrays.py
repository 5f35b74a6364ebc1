"""What counts as an array, and how it becomes one that the compiled part can look at.

Tensors of other frameworks are refused here. What takes them (the optimizers) asks `_foreign.py`.
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

#: What `float` would make a number of, or that only looks like one.
_NO_NUMBERS = (bool, str, bytes, bytearray, complex, UserString)

#: What to pass instead of a framework's tensor.
_INSTEAD = {
    "torch": "its .numpy() (on the CPU; torch.nn.utils.clip_grad_norm_ is torch's own)",
    "jax": "np.asarray(...) of it (optax.clip_by_global_norm is JAX's own)",
    "tensorflow": "its .numpy() (tf.clip_by_global_norm is TensorFlow's own)",
    "cupy": "cupy.asnumpy(...) of it",
}


def describe(value: object) -> str:
    """Say what an argument is, for a message."""
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__}"


def _refuse(value: object, name: str) -> None:
    """Raise TypeError for what is never taken."""
    kind = framework(value)
    if kind is not None:
        tensor = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
        raise TypeError(f"{name} is a {tensor}, which fastclip does not take yet; pass {_INSTEAD[kind]}")
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
    """Whether a value is a masked array of NumPy."""
    # Importing numpy.ma takes as long as importing fastclip. Without it there are no masked arrays.
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def is_array_like(value: object) -> bool:
    """Whether an object says of itself that it is an array, or a number."""
    if isinstance(value, (np.ndarray, np.generic, int, float, complex, str, bytes, memoryview, bytearray)):
        return True
    return any(
        hasattr(value, name) for name in ("__array__", "__array_interface__", "__dlpack__", "__buffer__")
    ) or (type(value).__module__ == "array")


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """Return an array of native byte order for anything ``np.asarray`` takes.

    Parameters
    ----------
    value : array_like
        An array is not copied unless its bytes are in the other order.
    name : str
        What the argument is called in messages.

    Raises
    ------
    TypeError
        If `value` is a tensor of a framework, a masked array, or becomes an array of objects.
    """
    if type(value) is not np.ndarray:
        _refuse(value, name)
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
    """Return the array over memory that a result is to be written to.

    Raises
    ------
    TypeError
        If `value` is no array and exports no buffer.
    ValueError
        If its bytes are not in native order.
    """
    if type(value) is not np.ndarray:
        _refuse(value, name)
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


def as_number(value: Any, name: str, takes: str = "a number") -> float:
    """Return the float64 of a real number. This decides what counts as one.

    Parameters
    ----------
    value : object
        An int or float, a NumPy scalar or array of no dimensions of a float or integer type (bfloat16
        included), or anything else that says by ``__float__`` or ``__index__`` that it is a number, such as a
        Fraction, a Variable or a framework's tensor without dimensions.
    name : str
        What the argument is called in messages.
    takes : str, optional
        What is taken, for messages.

    Raises
    ------
    TypeError
        If `value` is no real number: a bool, a complex number, text, or an array of such.
    ValueError
        If it is an array with dimensions, or a whole number beyond float64.
    """
    kind = type(value)
    if kind is float:
        number: float = value
        return number
    if kind is not int:
        _check_number(value, name, takes)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond float64; it takes {takes}") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it takes {takes}") from None


def _check_number(value: Any, name: str, takes: str) -> None:
    """Raise TypeError if something is no real number although ``float`` may make one of it."""
    if isinstance(value, np.ndarray) and not is_masked_array(value) and value.ndim:
        raise ValueError(f"{name} is {describe(value)}; it takes one number")
    if isinstance(value, _NO_NUMBERS) or is_masked_array(value):
        raise TypeError(f"{name} is {value!r}; it takes {takes}")
    # `float` reads text in buffers as well.
    if not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise TypeError(f"{name} is {'None' if value is None else describe(value)}; it takes {takes}")
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return
    if not _is_real(dtype):
        raise TypeError(f"{name} is {value!r}; it takes {takes}")
    if len(getattr(value, "shape", None) or ()):
        raise ValueError(f"{name} is a {type(value).__name__} of shape {value.shape}; it takes one number")


def _is_real(dtype: Any) -> bool:
    """Whether a dtype, NumPy's or a framework's, is of real numbers."""
    if isinstance(dtype, np.dtype):
        return dtype.kind in "fiu" or dtype.name == "bfloat16"
    # torch.float32, <dtype: 'float32'>
    return any(word in str(dtype) for word in ("float", "int"))


def as_bound(value: Any, name: str) -> float:
    """Return a number for a scalar or an array of no dimensions.

    Raises
    ------
    TypeError
        If `value` is no real number.
    ValueError
        If it is an array with dimensions, or NaN.
    """
    number = as_number(value, name)
    if number != number:
        raise ValueError(f"{name} is NaN; it takes a number")
    return number
