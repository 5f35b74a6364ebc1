"""Tensors of the frameworks and other objects over memory: how each is made of an array, and read as one."""

from __future__ import annotations

import array as stdlib_array
import contextlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support import dlpack_capsules
from support.dtypes import BFLOAT16, FLOAT_DTYPES, INTEGER_DTYPES
from support.strategies import finite_values

Array = npt.NDArray[Any]

NUMBER_DTYPES = FLOAT_DTYPES + INTEGER_DTYPES
#: Dtypes that have a format of the buffer protocol.
BUFFER_DTYPES = tuple(dtype for dtype in NUMBER_DTYPES if dtype != BFLOAT16)


@dataclass(frozen=True)
class Kind:
    """A kind of tensor.

    Attributes
    ----------
    name : str
        Name of the kind.
    make : callable
        Returns a tensor with the values of an array, in memory of its own.
    read : callable
        Returns the values of a tensor as an array, bit for bit.
    is_result : callable
        Whether an object is of the type that results for this kind have.
    dtypes : sequence of dtype
        The dtypes that the kind has.
    library : str or None
        The library that has to be installed.
    is_immutable : bool
        Whether such tensors are never written.
    """

    name: str
    make: Callable[[Array], Any]
    read: Callable[[Any], Array]
    is_result: Callable[[Any], bool]
    dtypes: Sequence[np.dtype[Any]]
    library: str | None = None
    is_immutable: bool = False


# --- torch --------------------------------------------------------------------------------------


def to_torch(array: Array) -> Any:
    """Returns a torch tensor that shares the memory of an array, which has no negative strides."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Any) -> Array:
    """Returns an array over the memory of a torch tensor, or over a copy if the tensor has lazy bits."""
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    array: Array = tensor.numpy()
    return array


def _is_torch(result: Any) -> bool:
    import torch

    return type(result) is torch.Tensor


# --- JAX and TensorFlow -------------------------------------------------------------------------


def x64() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which JAX makes arrays of 64-bit elements."""
    import jax

    if hasattr(jax, "enable_x64"):
        context: contextlib.AbstractContextManager[Any] = jax.enable_x64(True)
        return context
    from jax.experimental import enable_x64

    return enable_x64()


def to_jax(array: Array) -> Any:
    import jax.numpy as jnp

    with x64():
        # `array` would otherwise be shared where it is aligned.
        return jnp.array(array.copy()).block_until_ready()


def _is_jax(result: Any) -> bool:
    import jax

    return isinstance(result, jax.Array)


def to_tensorflow(array: Array) -> Any:
    import tensorflow as tf

    return tf.constant(array)


def _is_tensorflow(result: Any) -> bool:
    import tensorflow as tf

    return type(result) is type(tf.constant(0.0))


# --- objects over memory ------------------------------------------------------------------------


def _contiguous(array: Array) -> Array:
    return np.array(array, order="C", copy=True)


def to_memoryview(array: Array) -> memoryview:
    """Returns a writable memoryview of a bytearray, in the shape of the array."""
    memory = bytearray(array.tobytes())
    if array.size == 0 or array.ndim == 0 or array.dtype.char not in "bBhHiIlLqQfd":
        # `cast` knows neither the format of float16 nor a shape with zeros.
        return memoryview(_contiguous(array))
    return memoryview(memory).cast(array.dtype.char, array.shape)


def to_stdlib_array(array: Array) -> Any:
    return stdlib_array.array(array.dtype.char, array.ravel().tolist())


def to_ctypes(array: Array) -> Any:
    """Returns a ctypes array in the shape of the array."""
    kind: Any = np.ctypeslib.as_ctypes_type(array.dtype)
    for side in reversed(array.shape):
        kind = kind * side
    return kind.from_buffer(bytearray(array.tobytes()))


def to_mmap(array: Array) -> Any:
    """Returns a memoryview of anonymous mapped memory, in the shape of the array."""
    memory = mmap.mmap(-1, max(array.nbytes, 1))
    memory[: array.nbytes] = array.tobytes()
    mapped: Any = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    return memoryview(mapped)


def to_exporter(array: Array) -> dlpack_capsules.Exporter:
    """Returns an object with ``__dlpack__``, of memory in the order of the array's."""
    return dlpack_capsules.exporter(array.copy(order="K"))


def _is_array(result: Any) -> bool:
    return type(result) is np.ndarray


_PLAIN = tuple(np.dtype(code) for code in "bBhHiIlLfd")

KINDS = {
    kind.name: kind
    for kind in (
        Kind("torch", lambda a: to_torch(a.copy(order="K")), from_torch, _is_torch, NUMBER_DTYPES, "torch"),
        Kind("jax", to_jax, np.asarray, _is_jax, NUMBER_DTYPES, "jax", is_immutable=True),
        Kind(
            "tensorflow",
            to_tensorflow,
            lambda t: np.asarray(t.numpy()),
            _is_tensorflow,
            NUMBER_DTYPES,
            "tensorflow",
            is_immutable=True,
        ),
        Kind("exporter", to_exporter, lambda e: e.array, _is_array, NUMBER_DTYPES),
        Kind("memoryview", to_memoryview, np.asarray, _is_array, BUFFER_DTYPES),
        Kind("mmap", to_mmap, np.asarray, _is_array, _PLAIN),
        Kind("ctypes", to_ctypes, np.ctypeslib.as_array, _is_array, _PLAIN),
        Kind("array", to_stdlib_array, np.asarray, _is_array, _PLAIN),
        Kind("ndarray", lambda a: a.copy(order="K"), np.asarray, _is_array, NUMBER_DTYPES),
    )
}

FRAMEWORKS = ("torch", "jax", "tensorflow")


def _parameter(name: str) -> Any:
    library = KINDS[name].library
    marks = [] if library is None else [pytest.mark.interop(library), pytest.mark.filterwarnings("ignore")]
    return pytest.param(KINDS[name], marks=marks, id=name)


EVERY_KIND = pytest.mark.parametrize("kind", [_parameter(name) for name in KINDS])
EVERY_FRAMEWORK = pytest.mark.parametrize("kind", [_parameter(name) for name in FRAMEWORKS])
#: The kinds that have more than one dimension.
EVERY_SHAPED_KIND = pytest.mark.parametrize("kind", [_parameter(name) for name in KINDS if name != "array"])
EVERY_IMMUTABLE = pytest.mark.parametrize(
    "kind", [_parameter(name) for name, kind in KINDS.items() if kind.is_immutable]
)
EVERY_WRITABLE = pytest.mark.parametrize(
    "kind", [_parameter(name) for name, kind in KINDS.items() if not kind.is_immutable]
)


def values(shape: Any = (6, 5), dtype: Any = np.float32, seed: int = 1) -> Any:
    """Returns an array of random values, finite ones of every size for floats."""
    if np.dtype(dtype).kind in "iu":
        return np.random.default_rng(seed).integers(0, 100, shape, dtype)
    return finite_values(np.random.default_rng(seed), np.empty(shape).shape, dtype)


def shape_of(kind: Kind) -> tuple[int, ...]:
    """Returns a shape that tensors of a kind may have."""
    return (30,) if kind.name == "array" else (6, 5)
