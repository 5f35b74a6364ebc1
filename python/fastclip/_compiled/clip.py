"""Undifferentiated bodies of TensorFlow's clip functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_array, as_bound, as_number, as_output, describe
from fastclip._arguments.axes import reduced_axes
from fastclip._arguments.bounds import is_one_number, norm_bounds, value_bound
from fastclip._arguments.names import single_tensor_names
from fastclip._arguments.order import parse_order
from fastclip._arguments.tree import flatten, flatten_like
from fastclip._compiled.reduction import KnownNorm, reduced_norm
from fastclip._indexed_slices import IndexedSlices

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]

_T = single_tensor_names("t")


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
    tree = flatten(t_list, "t_list")
    # Most calls clip a flat list in place; its outputs are the arrays that were flattened already.
    in_place = out is t_list and tree.leaf_names is None
    target = None if out is None else tree if in_place else flatten_like(out, tree)
    names = tree.argument_names(target)
    known: KnownNorm | None = None
    if use_norm is not None:
        if comm is not None:
            raise ValueError("use_norm= is the norm that comm= would sum; pass one of them")
        if norms is not None:
            raise ValueError(
                "norms= needs the pass over the tensors that use_norm= does without; pass one of them"
            )
        known = (_norm_argument(use_norm), 0, True, None, [])
    elif comm is not None:
        known, _ = reduced_norm(comm, tree.leaves, order, names)
    outputs = None if target is None else target.leaves
    norms_before = norms.copy() if tree.leaf_names is not None and isinstance(norms, np.ndarray) else None
    results, norm = _core.clip_by_global_norm(
        tree.leaves, bound, known, order, outputs, on_nonfinite, norms, names
    )
    if target is None and tree.leaf_names is None:
        clipped: Any = results
    else:
        try:
            clipped = tree.returned_container(results, target)
        except BaseException:
            # Code of a container's class failed, although it succeeded on trial before the pass.
            if norms is not None and norms_before is not None:
                norms[...] = norms_before
            raise
    return clipped, (norm if use_norm is None else use_norm)


def _norm_argument(use_norm: Any) -> float:
    norm = as_number(use_norm, "use_norm")
    if norm < 0:
        raise ValueError(f"use_norm is {norm}; a norm is 0 or more")
    return norm


def clip_by_norm(t: Any, clip_norm: Any, axes: int | Sequence[int] | None, ord: float, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_norm`, where autograd traces no argument."""
    array, target = _values(t), _output(out)
    order = parse_order(ord)
    reduced = reduced_axes(axes, array.ndim)
    one_norm = reduced is None or all(reduced)
    if one_norm and type(clip_norm) is float:
        # Most calls: nothing to broadcast.
        limit = max(as_bound(clip_norm, "clip_norm"), 0.0)
        results = _core.clip_tensors([array], [limit], "one", order, target, _T)
        return _clipped(t, results[0], out)
    bound = norm_bounds(clip_norm, array.shape)
    if target is not None and (isinstance(clip_norm, np.ndarray) or not is_one_number(clip_norm)):
        _check_no_overlap(target[0], as_array(clip_norm, "clip_norm"), "clip_norm")
    if one_norm and bound.size == 1:
        results = _core.clip_tensors([array], [float(bound.reshape(()))], "one", order, target, _T)
    else:
        reduced = reduced or [True] * array.ndim
        lengths: tuple[int, ...] = (1,) * (array.ndim - bound.ndim) + bound.shape
        bound = bound.reshape(lengths)
        if any(n != 1 and is_reduced for n, is_reduced in zip(lengths, reduced, strict=True)):
            results = _core.clip_elements([array], [reduced], [bound], order, target, _T)
        else:
            shape = [1 if is_reduced else n for n, is_reduced in zip(array.shape, reduced, strict=True)]
            bounds = [np.broadcast_to(bound, shape)]
            results = _core.clip_slices([array], [reduced], bounds, order, target, _T)
    return _clipped(t, results[0], out)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_average_norm`, where autograd traces no argument."""
    array, target = _values(t), _output(out)
    bound = max(as_bound(clip_norm, "clip_norm"), 0.0)
    results = _core.clip_tensors([array], [bound], "count", 2.0, target, _T)
    return _clipped(t, results[0], out)


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_value`, where autograd traces no argument."""
    array = _values(t)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        # Bounds have no meaning for this dtype; `_core` raises the error about `t`.
        _core.clip_by_value(array, array, array, None)
    lower = value_bound(clip_value_min, array, "clip_value_min")
    upper = value_bound(clip_value_max, array, "clip_value_max")
    output = None
    if out is not None:
        output = as_output(out.values if isinstance(out, IndexedSlices) else out, "out")
        if not isinstance(clip_value_min, (int, float)):
            _check_no_overlap(output, lower, "clip_value_min")
        if not isinstance(clip_value_max, (int, float)):
            _check_no_overlap(output, upper, "clip_value_max")
    return _clipped(t, _core.clip_by_value(array, lower, upper, output), out)


def _check_no_overlap(output: npt.NDArray[Any], bound: npt.NDArray[Any], name: str) -> None:
    if np.may_share_memory(output, bound):
        _core.check_no_overlap([bound], [output], single_tensor_names(name))


def _values(t: Any) -> npt.NDArray[Any]:
    if type(t) is np.ndarray and t.dtype.isnative:
        return t
    if isinstance(t, IndexedSlices):
        return as_array(t.values, "t.values")
    if t is None or isinstance(t, dict):
        raise TypeError(f"t is {describe(t)}; it takes an array")
    return as_array(t, "t")


def _output(out: Any) -> list[npt.NDArray[Any]] | None:
    if out is None:
        return None
    return [as_output(out.values if isinstance(out, IndexedSlices) else out, "out")]


def _clipped(t: Any, result: npt.NDArray[Any], out: Any) -> Any:
    """Returns `out` if there is one, else the result as an array or as IndexedSlices, whichever `t` is."""
    if out is not None:
        return out
    return t._with_values(result) if isinstance(t, IndexedSlices) else result
