"""Undifferentiated bodies of the functions that clip each tensor, or each unit of one, by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_bound
from fastclip._arguments.axes import unit_axes
from fastclip._arguments.tree import check_same_structure, flatten, flatten_like
from fastclip._indexed_slices import IndexedSlices

__all__ = ["adaptive_clip", "clip_by_block_rms"]


def clip_by_block_rms(t_list: Any, threshold: Any, out: Any) -> Any:
    """Clips as :func:`fastclip.clip_by_block_rms`, where autograd traces no argument."""
    bound = as_bound(threshold, "threshold")
    if bound < 0:
        raise ValueError(f"threshold is {bound}; it takes a number, 0 or more")
    tree = flatten(t_list, "t_list")
    target = None if out is None else flatten_like(out, tree)
    bounds = [bound] * sum(leaf is not None for leaf in tree.leaves)
    outputs = None if target is None else target.leaves
    results = _core.clip_tensors(tree.leaves, bounds, "root", 2.0, outputs, tree.argument_names(target))
    return tree.returned_container(results, target)


def adaptive_clip(
    params: Any, grads: Any, clipping: Any, eps: Any, axes: Sequence[int] | int | None, out: Any
) -> Any:
    """Clips as :func:`fastclip.adaptive_clip`, where autograd traces no argument."""
    clipping, eps = as_bound(clipping, "clipping"), as_bound(eps, "eps")
    for value, name in ((clipping, "clipping"), (eps, "eps")):
        if value < 0:
            raise ValueError(f"{name} is {value}; it takes a number, 0 or more")
    tree = flatten(grads, "grads")
    weights = flatten(params, "params")
    target = None if out is None else flatten_like(out, tree)
    check_same_structure(weights, tree)
    if target is not None:
        _core.check_no_overlap(weights.leaves, target.leaves, weights.argument_names(target))

    weights_with_grads: list[npt.NDArray[Any] | None] = []
    units: list[list[bool]] = []
    norms: list[npt.NDArray[np.float64] | None] = []
    for i, (weight, grad) in enumerate(zip(weights.leaves, tree.leaves, strict=True)):
        name = f"grads[{i}]" if tree.leaf_names is None else tree.leaf_names[i]
        if isinstance(tree.entries[i], IndexedSlices):
            raise TypeError(
                f"{name} is an IndexedSlices, whose rows are not those of its parameter; use to_dense()"
            )
        if grad is None:
            weights_with_grads.append(None)
            units.append([])
            norms.append(None)
            continue
        if weight is None or weight.shape != grad.shape:
            what = "None" if weight is None else f"of shape {weight.shape}"
            raise ValueError(f"{name} has shape {grad.shape}, its parameter in params is {what}")
        unit = unit_axes(grad.shape, axes, name)
        weights_with_grads.append(weight)
        units.append(unit)
        norms.append(np.empty([1 if r else n for n, r in zip(grad.shape, unit, strict=True)]))

    # Parameters without a gradient are not read.
    _core.slice_norms(weights_with_grads, units, 2.0, norms, weights.argument_names())
    bounds = [None if n is None else _unit_bounds(n, clipping, eps) for n in norms]
    outputs = None if target is None else target.leaves
    results = _core.clip_slices(tree.leaves, units, bounds, 2.0, outputs, tree.argument_names(target))
    return tree.returned_container(results, target)


def _unit_bounds(norms: npt.NDArray[np.float64], clipping: float, eps: float) -> npt.NDArray[np.float64]:
    if clipping == np.inf:
        # An infinite ratio clips nothing, whatever the norm; NaN parameters still give NaN.
        return np.asarray(norms + np.inf)
    return np.asarray(np.maximum(norms, eps) * clipping)
