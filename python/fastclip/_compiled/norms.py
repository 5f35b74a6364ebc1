"""Undifferentiated bodies of the norm functions, and norms along axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.order import norms_dtype, parse_order

__all__ = ["global_norm", "slice_norms", "tensor_norms"]


def global_norm(t_list: Any, ord: float, comm: Any) -> np.floating[Any]:
    """Returns the norm of :func:`fastclip.global_norm`, where autograd traces no argument."""
    order = parse_order(ord)
    if comm is not None:
        from fastclip._compiled.reduction import reduced_norm

        known, norm = reduced_norm(comm, t_list, order)
        return _core.norm_scalar(norm, known[2])
    return _core.global_norm(t_list, order)


def tensor_norms(t_list: Any, ord: float) -> npt.NDArray[np.floating[Any]]:
    """Returns the norms of :func:`fastclip.tensor_norms`, where autograd traces no argument."""
    norms, is_float64 = _core.tensor_norms(t_list, parse_order(ord))
    finite = [norm for norm in norms if norm < float("inf")]
    return np.array(norms, norms_dtype(max(finite, default=0.0), is_float64))


def slice_norms(array: npt.NDArray[Any], reduced: list[bool], order: float) -> npt.NDArray[np.float64]:
    """Returns the norm of each slice of an array; reduced axes have length 1 in the result."""
    norms = np.empty([1 if r else n for n, r in zip(array.shape, reduced, strict=True)])
    _core.slice_norms(_core.open_tensor(array, "t"), [reduced], order, [norms])
    return norms
