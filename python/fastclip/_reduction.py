"""Norms over several processes: the one all-reduce that a global norm takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._tree import Names

__all__ = ["reduced_norm"]


def reduced_norm(
    comm: Any, leaves: Sequence[npt.NDArray[Any] | None], order: float, names: Names
) -> tuple[tuple[float, int], float, bool]:
    """Return the 2-norm of the tensors of all processes.

    The sum of squares travels as three numbers, scaled for huge, ordinary and tiny norms, so that it neither
    overflows nor vanishes on the way; with it go the number of tensors that are not finite and whether an
    input was float64. Every process gets the same sums, and so the same bits.

    Parameters
    ----------
    comm : object
        With a method ``allreduce(array) -> array`` that sums over processes, such as an mpi4py communicator.
    leaves : sequence of ndarray or None
        This process's tensors.
    order : float
        The order of the norm: 2.
    names : tuple
        What the tensors are called in messages.

    Returns
    -------
    root : tuple of float and int
        The norm as a mantissa and an exponent of two.
    norm : float
        The norm.
    wide : bool
        Whether an input of any process was float64.

    Raises
    ------
    TypeError
        If `comm` has no ``allreduce``.
    ValueError
        If `order` is not 2.
    """
    allreduce = getattr(comm, "allreduce", None)
    if not callable(allreduce):
        raise TypeError(f"comm is a {type(comm).__name__}; it takes an object with an allreduce(array) method")
    if order != 2.0:
        raise ValueError(f"ord is {order}; with comm= only the norm of order 2 can be summed over processes")
    mine = np.array(_core.partial_sums(leaves, names), np.float64)
    total = np.asarray(allreduce(mine), np.float64)
    if total.shape != mine.shape:
        raise ValueError(f"comm.allreduce gave an array of shape {total.shape} for one of shape {mine.shape}")
    huge, ordinary, tiny, bad, wide = total.tolist()
    if bad > 0:
        # Infinity for infinity and NaN for NaN, as one process by itself would have it.
        return (ordinary, 0), ordinary, wide > 0
    root, exponent, norm = _core.combine_sums(huge, ordinary, tiny)
    return (root, exponent), norm, wide > 0
