"""Bounds of clipping as arrays that broadcast to the tensor they clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, as_bound, describe
from fastclip._numpy_memory import raises_memory_error

__all__ = ["is_one_number", "norm_bounds", "value_bound"]


def is_one_number(value: Any) -> bool:
    """Whether a value is a number, or an object that converts to one and has no dimensions."""
    kind = type(value)
    converts = hasattr(kind, "__float__") or hasattr(kind, "__index__")
    return converts and not len(getattr(value, "shape", None) or ())


@raises_memory_error
def norm_bounds(clip_norm: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """Returns the bounds of :func:`fastclip.clip_by_norm`, negative ones replaced by 0.

    An array of float32 or float64 without negative numbers is returned as it is: for a bound per
    element, each copy would take longer than clipping. Other types become float64.

    Raises
    ------
    TypeError
        If `clip_norm` is not real.
    ValueError
        If it holds NaN, or does not broadcast to `shape`.
    """
    if is_one_number(clip_norm):
        return np.asarray(max(as_bound(clip_norm, "clip_norm"), 0.0))
    clip_norm = as_array(clip_norm, "clip_norm")
    if clip_norm.dtype.kind not in "fiu" and clip_norm.dtype.name != "bfloat16":
        raise TypeError(f"clip_norm is {describe(clip_norm)}; it takes real numbers")
    bounds = np.asarray(clip_norm)
    if bounds.dtype.newbyteorder("=") not in (np.float32, np.float64) or not bounds.dtype.isnative:
        bounds = bounds.astype(np.float64)
    least = bounds.min(initial=np.inf)  # NaN if an element is
    if np.isnan(least):
        raise ValueError("clip_norm is or holds NaN; it takes numbers")
    if least < 0.0:
        bounds = np.maximum(bounds, 0.0)
    _check_broadcast(bounds, shape, "clip_norm")
    return bounds


def value_bound(value: Any, dtype_name: str, shape: tuple[int, ...], name: str) -> npt.NDArray[Any]:
    """Returns a bound of :func:`fastclip.clip_by_value` in the dtype of `t`: of one element, or of its shape.

    Parameters
    ----------
    value : array_like
        The bound.
    dtype_name : str
        Name of the dtype of `t`.
    shape : tuple of int
        Shape of `t`.
    name : str
        Name of the bound in error messages.

    Returns
    -------
    ndarray
        For bfloat16 where NumPy has no such dtype, an array of uint16 with the bits of bfloat16.

    Raises
    ------
    TypeError
        If the bound is not real, or `t` holds integers and the bound does not.
    ValueError
        If it does not broadcast to the shape of `t`.
    OverflowError
        If it is an integer out of the range of an integer `t`, or beyond float64.
    """
    dtype = _numpy_dtype(dtype_name)
    if dtype is not None and dtype.kind in "iu":
        bound = np.array(value, object) if type(value) is int else as_array(value, name)
        if bound.dtype.kind not in "iu" and type(value) is not int:
            raise TypeError(f"{name} is {value!r} where t has dtype {dtype}; it takes whole numbers")
        _check_range(bound, value, dtype, name)
        bound = bound.astype(dtype, copy=False)
    elif isinstance(value, (float, int)) and not isinstance(value, bool):
        try:
            bound = _rounded(float(value), dtype)
        except OverflowError:
            raise OverflowError(
                f"{name} is a whole number beyond float64, and t has dtype {dtype_name}"
            ) from None
    else:
        bound = as_array(value, name)
        if bound.dtype.kind not in "fiu" and bound.dtype.name != "bfloat16":
            raise TypeError(f"{name} is {describe(bound)}; it takes real numbers")
        bound = _rounded(bound, dtype)
    _check_broadcast(bound, shape, name)
    return bound if bound.size == 1 else np.broadcast_to(bound, shape)


def _numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Returns the dtype of a name; None for bfloat16 without ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _check_broadcast(bound: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    """Raises ValueError if a bound does not broadcast to the shape of the tensor."""
    if bound.ndim == 0:
        return
    aligned = shape[len(shape) - bound.ndim :] if bound.ndim <= len(shape) else None
    if aligned is None or any(n not in (1, of) for n, of in zip(bound.shape, aligned, strict=True)):
        raise ValueError(
            f"{name} has shape {bound.shape}, which does not broadcast to the shape of t, {shape}"
        )


def _rounded(bound: Any, dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
    """Returns a bound converted to a floating-point dtype; None stands for the bits of bfloat16."""
    if dtype is not None and type(bound) is float and (dtype.itemsize == 8 or -6e4 < bound < 6e4):
        return np.array(bound, dtype)
    # A bound beyond the range of a narrow dtype becomes infinite and clips nothing: no reason to warn.
    with np.errstate(over="ignore"):
        bound = np.asarray(bound, np.float64 if type(bound) is float else None)
        if dtype is not None:
            rounded: npt.NDArray[Any] = bound.astype(dtype, copy=False)
            return rounded
        bits = bound.astype(np.float32).view(np.uint32)
    # Rounds to nearest, ties to even. A NaN keeps its upper bits, one of which makes it quiet.
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    rounded_bits: npt.NDArray[Any] = np.where(is_nan, quiet, upper).astype(np.uint16)
    return rounded_bits


@raises_memory_error
def _check_range(bound: npt.NDArray[Any], value: Any, dtype: np.dtype[Any], name: str) -> None:
    """Raises OverflowError if an integer of the bound is out of the range of the integer dtype of `t`."""
    info = np.iinfo(dtype)
    if bound.size and not (info.min <= int(bound.min()) and int(bound.max()) <= info.max):
        raise OverflowError(
            f"{name} is {value!r}, out of the range of t's dtype {dtype}: {info.min} to {info.max}"
        )
