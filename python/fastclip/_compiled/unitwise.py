"""Undifferentiated bodies of the functions that clip each tensor, or each unit of one, by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_bound
from fastclip._arguments.axes import unit_axes
from fastclip._indexed_slices import IndexedSlices

__all__ = ["adaptive_clip", "clip_by_block_rms"]


def clip_by_block_rms(t_list: Any, threshold: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_block_rms`, where autograd traces no argument."""
    bound = as_bound(threshold, "threshold")
    if bound < 0:
        raise ValueError(f"threshold is {bound}; it takes a number, 0 or more")
    return _core.clip_by_block_rms(t_list, bound, out)


def adaptive_clip(
    params: Any, grads: Any, clipping: Any, eps: Any, axes: Sequence[int] | int | None, out: Any
) -> Any:
    """Clips as :func:`fastclip.adaptive_clip`, where autograd traces no argument."""
    clipping, eps = as_bound(clipping, "clipping"), as_bound(eps, "eps")
    for value, name in ((clipping, "clipping"), (eps, "eps")):
        if value < 0:
            raise ValueError(f"{name} is {value}; it takes a number, 0 or more")
    in_place = out is grads
    tree = _core.open_tensors(grads, "grads", writes=in_place, recorded=out is None)
    weights = _core.open_tensors(params, "params", recorded=out is None)
    target = tree if in_place else None if out is None else _core.open_tensors(out, "out", writes=True)
    weights.check_same_structure(tree)
    if target is not None:
        target.check_same_structure(tree)
        _core.check_no_overlap(weights, target)

    units: list[list[bool]] = []
    norms: list[npt.NDArray[np.float64] | None] = []
    snapshots = zip(tree.entries, tree.snapshots, weights.snapshots, strict=True)
    for i, (entry, grad, weight) in enumerate(snapshots):
        if isinstance(entry, IndexedSlices):
            name = tree.name(i).removesuffix(".values")
            raise TypeError(
                f"{name} is an IndexedSlices, whose rows are not those of its parameter; use to_dense()"
            )
        if grad is None:
            units.append([])
            norms.append(None)
            continue
        if weight is None or weight.shape != grad.shape:
            what = "None" if weight is None else f"of shape {weight.shape}"
            raise ValueError(f"{tree.name(i)} has shape {grad.shape}, its parameter in params is {what}")
        try:
            unit = unit_axes(grad.shape, axes, "grads")
        except ValueError:
            # The name of the entry takes time, and is needed for the message alone.
            unit = unit_axes(grad.shape, axes, tree.name(i))
        units.append(unit)
        norms.append(np.empty([1 if r else n for n, r in zip(grad.shape, unit, strict=True)]))

    # Parameters without a gradient are not read.
    _core.slice_norms(weights.keeping([n is not None for n in norms]), units, 2.0, norms)
    bounds = [None if n is None else _unit_bounds(n, clipping, eps) for n in norms]
    return _core.clip_slices(tree, units, bounds, 2.0, target)


def _unit_bounds(norms: npt.NDArray[np.float64], clipping: float, eps: float) -> npt.NDArray[np.float64]:
    if clipping == np.inf:
        # An infinite ratio clips nothing, whatever the norm; NaN parameters still give NaN.
        return np.asarray(norms + np.inf)
    return np.asarray(np.maximum(norms, eps) * clipping)
