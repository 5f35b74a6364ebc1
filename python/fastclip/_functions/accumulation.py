"""Sums of the gradients of micro-batches."""

from __future__ import annotations

import math
from typing import Any

from fastclip import _core
from fastclip._arguments.arrays import as_number

__all__ = ["accumulate"]


def accumulate(acc: Any, grads: Any, scale: float = 1.0) -> Any:
    """Add gradients to sums in place, and return the norm of the sums, from the same pass over memory.

    ``acc[i] += scale * grads[i]`` for every tensor, as for the gradients of micro-batches. With the norm of
    the last call, :func:`clip_by_global_norm` or an optimizer needs no pass to measure the sums.

    Parameters
    ----------
    acc : list, tuple, dict or nested container
        The sums: tensors of float16, bfloat16, float32 or float64, of any kind that
        :func:`clip_by_global_norm` writes in place. They are written.
    grads : list, tuple, dict or nested container
        The gradients, in the structure of `acc`. Each has the shape of its sum and the same or a narrower
        type; None adds nothing.
    scale : float, optional
        A finite number by which the gradients are multiplied, such as one over the number of micro-batches.

    Returns
    -------
    np.float32 or np.float64
        The norm of all sums after the addition, as :func:`global_norm` returns it.

    Raises
    ------
    TypeError
        If an entry is not a tensor of the types above, or a gradient has a wider type than its sum.
    ValueError
        If the structures or shapes differ, `scale` is not finite, or sums are read-only or share memory.
    MemoryError
        If memory runs out. The sums have been written if that happens while they are measured.

    Notes
    -----
    A product is rounded to the type of the sum or, for 16-bit sums, to float32; each sum is rounded once.

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> acc = [np.zeros(2, dtype=np.float32)]
    >>> for grad in ([6.0, 0.0], [0.0, 8.0]):
    ...     norm = fastclip.accumulate(acc, [np.array(grad, dtype=np.float32)], scale=0.5)
    >>> acc[0], norm
    (array([3., 4.], dtype=float32), np.float32(5.0))
    """
    factor = as_number(scale, "scale")
    if not math.isfinite(factor):
        raise ValueError(f"scale is {factor}; it takes a finite number")
    return _core.accumulate(acc, grads, factor)
