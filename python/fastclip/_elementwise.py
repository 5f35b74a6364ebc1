"""`clip_by_norm` with a bound that differs inside a slice: a scale of its own for every element.

TensorFlow's function allows it by broadcasting. It is rare, and done with NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core

__all__ = ["clip_elements"]


def clip_elements(
    t: npt.NDArray[Any],
    bounds: npt.NDArray[np.float64],
    reduced: list[bool],
    order: float,
    out: list[npt.NDArray[Any]] | None,
) -> list[npt.NDArray[Any]]:
    """Scale each element by its bound over the larger of its slice's norm and its bound.

    Parameters
    ----------
    t : ndarray
    bounds : ndarray of float64
        With as many dimensions as `t`, each 1 or that of `t`.
    reduced : list of bool
        Whether each axis is reduced.
    order : float
    out : list of one ndarray, optional

    Returns
    -------
    list of one ndarray
    """
    names = ("t", ["t"], "out", ["out"])
    # Checks `out` as every other call does, before anything is written: infinite bounds clip nothing.
    fresh = _core.clip_tensors([t], [np.inf], "one", order, None, names)[0]
    if out is not None:
        _core.check_outputs([t], out, names)
    norms = np.empty([1 if r else n for n, r in zip(t.shape, reduced, strict=True)])
    _core.slice_norms([t], [reduced], order, [norms], names)
    with np.errstate(all="ignore"):
        scale = np.where(norms > bounds, bounds / norms, np.where(np.isfinite(norms), 1.0, np.nan))
        if fresh.dtype.itemsize == 2:
            product = fresh.astype(np.float64) * scale.astype(np.float32)
            clipped = _to_odd_float32(product).astype(fresh.dtype)
        else:
            single = fresh.dtype in (np.float32, np.complex64)
            clipped = fresh * (scale.astype(np.float32) if single else scale)
        # Where nothing is clipped the bits stay, whatever they are.
        np.copyto(fresh, clipped, where=scale != 1.0)
    if out is not None:
        np.copyto(out[0], fresh)
        return out
    return [fresh]


def _to_odd_float32(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """float64 to float32, towards the neighbour with an odd last bit: rounding that on rounds once."""
    nearest = x.astype(np.float32)
    bits = nearest.view(np.uint32)
    back = nearest.astype(np.float64)
    adjust = (back != x) & (bits & 1 == 0) & np.isfinite(x)
    step = np.where(np.abs(back) < np.abs(x), np.uint32(1), np.uint32(0xFFFFFFFF))
    return np.where(adjust, bits + step, bits).astype(np.uint32).view(np.float32)
