"""`clip_by_norm` with a bound that differs inside a slice: a scale of its own for every element.

TensorFlow's function allows it by broadcasting. It is rare, and done with NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._numpy_memory import raises_memory_error

__all__ = ["clip_elements"]


@raises_memory_error
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
    # A copy in the memory order of `t`: an infinite bound clips nothing.
    fresh = _core.clip_tensors([t], [np.inf], "one", order, None, names)[0]
    if out is not None:
        _core.check_outputs([t], out, names)
    norms = _norms(t, reduced, order, names)
    with np.errstate(all="ignore"):
        clips = norms > bounds
        scale = np.where(clips, bounds / norms, np.where(np.isnan(norms), np.nan, 1.0))
        parts = [fresh.real, fresh.imag] if fresh.dtype.kind == "c" else [fresh]
        for part in parts:
            clipped = _products(part, scale, norms, bounds)
            # Where nothing is clipped the bits stay, whatever they are.
            np.copyto(part, clipped, where=scale != 1.0)
        # A norm beyond float64, of finite numbers: everything a power of two smaller.
        lost = np.isinf(norms) & clips
        if lost.any():
            whole = np.isfinite(t.astype(np.complex128 if t.dtype.kind == "c" else np.float64))
            small = (
                (t * t.real.dtype.type(2.0**-64))
                if t.dtype.itemsize >= 8
                else t.astype(np.float64) * 2.0**-64
            )
            smaller = _norms(np.asarray(small), reduced, order, names)
            broken = np.broadcast_to(lost & ~np.isfinite(smaller), fresh.shape)
            saved = np.broadcast_to(lost & np.isfinite(smaller), fresh.shape) & whole
            for part, source in zip(
                parts, [small.real, small.imag] if len(parts) == 2 else [small], strict=True
            ):
                np.copyto(part, (source / smaller * bounds).astype(part.dtype), where=saved)
                np.copyto(part, np.asarray(np.nan, part.dtype), where=broken)
    if out is not None:
        if out[0] is not t or bool(np.any(scale != 1.0)):
            np.copyto(out[0], fresh)
        return out
    return [fresh]


def _norms(
    t: npt.NDArray[Any], reduced: list[bool], order: float, names: tuple[str, list[str], str, list[str]]
) -> npt.NDArray[np.float64]:
    norms = np.empty([1 if r else n for n, r in zip(t.shape, reduced, strict=True)])
    _core.slice_norms([t], [reduced], order, [norms], names)
    return norms


def _products(
    x: npt.NDArray[Any],
    scale: npt.NDArray[np.float64],
    norms: npt.NDArray[np.float64],
    bounds: npt.NDArray[np.float64],
) -> npt.NDArray[Any]:
    """`x` times the scale, in float32 where it holds the scale well, else in float64 or as a quotient."""
    if x.dtype == np.float64:
        quotient = x / norms * bounds
        return np.where(scale < np.finfo(np.float64).tiny, quotient, x * scale)
    narrow = scale.astype(np.float32)
    wide = np.where(narrow < np.finfo(np.float32).tiny, scale, narrow.astype(np.float64))
    product = x.astype(np.float64) * wide
    return _to_odd_float32(product).astype(x.dtype) if x.dtype.itemsize == 2 else product.astype(x.dtype)


def _to_odd_float32(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """float64 to float32, towards the neighbour with an odd last bit: rounding that on rounds once."""
    nearest = x.astype(np.float32)
    bits = nearest.view(np.uint32)
    back = nearest.astype(np.float64)
    adjust = (back != x) & (bits & 1 == 0) & np.isfinite(x)
    step = np.where(np.abs(back) < np.abs(x), np.uint32(1), np.uint32(0xFFFFFFFF))
    return np.where(adjust, bits + step, bits).astype(np.uint32).view(np.float32)
