"""Undifferentiated bodies of TensorFlow's clip functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_bound, as_number
from fastclip._arguments.axes import reduced_axes
from fastclip._arguments.bounds import is_one_number, norm_bounds, value_bound
from fastclip._arguments.order import parse_order
from fastclip._compiled.reduction import KnownNorm, reduced_norm
from fastclip._norm_accumulator import NormAccumulator

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]


def clip_by_global_norm(
    t_list: Any,
    clip_norm: Any,
    use_norm: Any,
    ord: float,
    out: Any,
    on_nonfinite: str,
    comm: Any,
    norms: npt.NDArray[np.float64] | None,
) -> tuple[Any, Any]:
    """Clips as :func:`fastclip.clip_by_global_norm`, where autograd traces no argument."""
    bound = clip_norm if type(clip_norm) is float else as_bound(clip_norm, "clip_norm")
    if not bound >= 0.0:
        raise ValueError(f"clip_norm is {bound}; it takes a number, 0 or more")
    order = parse_order(ord)
    known: KnownNorm | None = None
    if use_norm is not None:
        if comm is not None:
            raise ValueError("use_norm= is the norm that comm= would sum; pass one of them")
        if norms is not None:
            raise ValueError(
                "norms= needs the pass over the tensors that use_norm= does without; pass one of them"
            )
        if isinstance(use_norm, NormAccumulator):
            mantissa, exponent, use_norm = use_norm._combined()
            known = (mantissa, exponent, True, None, [])
        else:
            known = (_norm_argument(use_norm), 0, True, None, [])
    elif comm is not None:
        # The same tensors are measured before the norm is summed, and clipped after that.
        in_place = out is t_list
        t_list = _core.open_tensors(t_list, "t_list", writes=in_place, recorded=out is None)
        if in_place:
            out = t_list
        elif out is not None:
            out = _core.open_tensors(out, "out", writes=True)
            out.check_same_structure(t_list)
        known, _ = reduced_norm(comm, t_list, order)
    clipped, norm = _core.clip_by_global_norm(t_list, bound, known, order, out, on_nonfinite, norms)
    return clipped, (norm if use_norm is None else use_norm)


def _norm_argument(use_norm: Any) -> float:
    norm = as_number(use_norm, "use_norm")
    if norm < 0:
        raise ValueError(f"use_norm is {norm}; a norm is 0 or more")
    return norm


def clip_by_norm(t: Any, clip_norm: Any, axes: int | Sequence[int] | None, ord: float, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_norm`, where autograd traces no argument."""
    order = parse_order(ord)
    if axes is None and is_one_number(clip_norm):
        limit = max(as_bound(clip_norm, "clip_norm"), 0.0)
        return _core.clip_tensor(t, limit, "one", order, out)
    tensor, target, shape = _opened(t, out)
    reduced = reduced_axes(axes, len(shape)) or [axes is None] * len(shape)
    bound = norm_bounds(clip_norm, shape)
    if target is not None and not is_one_number(clip_norm):
        _check_no_overlap(target, clip_norm, "clip_norm")
    if bound.size == 1 and all(reduced):
        return _core.clip_tensor(tensor, float(bound.reshape(())), "one", order, target)
    lengths: tuple[int, ...] = (1,) * (len(shape) - bound.ndim) + bound.shape
    bound = bound.reshape(lengths)
    if any(n != 1 and is_reduced for n, is_reduced in zip(lengths, reduced, strict=True)):
        return _core.clip_elements(tensor, [reduced], [bound], order, target)
    slices = [1 if is_reduced else n for n, is_reduced in zip(shape, reduced, strict=True)]
    bounds = np.broadcast_to(bound.astype(np.float64, copy=False), slices)
    return _core.clip_slices(tensor, [reduced], [bounds], order, target)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_average_norm`, where autograd traces no argument."""
    bound = max(as_bound(clip_norm, "clip_norm"), 0.0)
    return _core.clip_tensor(t, bound, "count", 2.0, out)


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_value`, where autograd traces no argument."""
    if (
        type(clip_value_min) is type(clip_value_max) is float
        and type(t) is np.ndarray
        and t.dtype.char in "efd"
        and t.dtype.isnative
        and (out is None or out is t)
    ):
        # Nothing to convert: reading the name of a dtype alone takes as long as clipping 1000 elements.
        return _core.clip_by_value(t, clip_value_min, clip_value_max, out)
    if type(t) is np.ndarray and t.dtype.isnative and (out is None or out is t):
        # Most calls: an array needs no snapshot to read its dtype and shape.
        tensor, target, shape, dtype = t, out, t.shape, t.dtype.name
    else:
        tensor, target, shape = _opened(t, out)
        dtype = tensor.snapshots[0].dtype_name
    if dtype not in _ORDERED:
        # Bounds have no meaning for this dtype; `_core` raises the error about `t`.
        _core.clip_by_value(tensor, _ZERO, _ZERO, None)
    lower = value_bound(clip_value_min, dtype, shape, "clip_value_min")
    upper = value_bound(clip_value_max, dtype, shape, "clip_value_max")
    for value, bound, name in (
        (clip_value_min, lower, "clip_value_min"),
        (clip_value_max, upper, "clip_value_max"),
    ):
        if target is not None and not isinstance(value, (int, float)):
            _check_no_overlap(target, bound, name)
    return _core.clip_by_value(tensor, lower, upper, target)


#: The dtypes that have an order.
_ORDERED = frozenset(
    ["float16", "bfloat16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_ZERO = np.zeros(())


def _opened(t: Any, out: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Returns a tensor and its output as trees of `_core`, and the shape of the tensor."""
    tensor = _core.open_tensor(t, "t", writes=out is t, recorded=out is None)
    target = out
    if out is not None:
        target = tensor if out is t else _core.open_tensor(out, "out", writes=True)
    return tensor, target, tensor.snapshots[0].shape


def _check_no_overlap(target: Any, bound: Any, name: str) -> None:
    """Raises ValueError if a bound shares memory with the output."""
    if isinstance(target, np.ndarray):
        target = _core.open_tensor(target, "out")
    _core.check_no_overlap(_core.open_tensor(bound, name), target)
