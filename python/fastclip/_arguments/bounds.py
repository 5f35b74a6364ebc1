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
def norm_bounds(clip_norm: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Returns the bounds of :func:`fastclip.clip_by_norm` as float64, negative ones replaced by 0.

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
    clip_norm = clip_norm.astype(np.float64)
    bounds: npt.NDArray[np.float64] = np.maximum(np.asarray(clip_norm), 0.0)
    if np.isnan(bounds).any():
        raise ValueError("clip_norm is or holds NaN; it takes numbers")
    _check_broadcast(bounds, shape, "clip_norm")
    return bounds


def value_bound(value: Any, t: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Returns a bound of :func:`fastclip.clip_by_value` in the dtype of `t`: of one element, or of its shape.

    Raises
    ------
    TypeError
        If the bound is not real, or `t` holds integers and the bound does not.
    ValueError
        If it does not broadcast to the shape of `t`.
    OverflowError
        If it is an integer out of the range of an integer `t`, or beyond float64.
    """
    if t.dtype.kind in "iu":
        bound = np.array(value, object) if type(value) is int else as_array(value, name)
        if bound.dtype.kind not in "iu" and type(value) is not int:
            raise TypeError(f"{name} is {value!r} where t has dtype {t.dtype}; it takes whole numbers")
        _check_range(bound, value, t, name)
        bound = bound.astype(t.dtype, copy=False)
    elif isinstance(value, (float, int)) and not isinstance(value, bool):
        try:
            bound = _rounded(float(value), t.dtype)
        except OverflowError:
            raise OverflowError(
                f"{name} is a whole number beyond float64, and t has dtype {t.dtype}"
            ) from None
    else:
        bound = as_array(value, name)
        if bound.dtype.kind not in "fiu" and bound.dtype.name != "bfloat16":
            raise TypeError(f"{name} is {describe(bound)}; it takes real numbers")
        bound = _rounded(bound, t.dtype)
    _check_broadcast(bound, t.shape, name)
    return bound if bound.size == 1 else np.broadcast_to(bound, t.shape)


def _check_broadcast(bound: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    """Raises ValueError if a bound does not broadcast to the shape of the tensor."""
    if bound.ndim == 0:
        return
    aligned = shape[len(shape) - bound.ndim :] if bound.ndim <= len(shape) else None
    if aligned is None or any(n not in (1, of) for n, of in zip(bound.shape, aligned, strict=True)):
        raise ValueError(
            f"{name} has shape {bound.shape}, which does not broadcast to the shape of t, {shape}"
        )


def _rounded(bound: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Returns a bound converted to a floating-point dtype."""
    if type(bound) is float and (dtype.itemsize == 8 or -6e4 < bound < 6e4):
        return np.array(bound, dtype)
    # A bound beyond the range of a narrow dtype becomes infinite and clips nothing: no reason to warn.
    with np.errstate(over="ignore"):
        return np.asarray(bound, np.float64 if type(bound) is float else None).astype(dtype, copy=False)


@raises_memory_error
def _check_range(bound: npt.NDArray[Any], value: Any, t: npt.NDArray[Any], name: str) -> None:
    """Raises OverflowError if an integer of the bound is out of the range of the integer dtype of `t`."""
    info = np.iinfo(t.dtype)
    if bound.size and not (info.min <= int(bound.min()) and int(bound.max()) <= info.max):
        raise OverflowError(
            f"{name} is {value!r}, out of the range of t's dtype {t.dtype}: {info.min} to {info.max}"
        )
