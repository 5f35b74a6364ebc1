"""Norms over several processes: the one all-reduce that a global norm takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.names import ArgumentNames

__all__ = ["KnownNorm", "reduced_norm"]

#: A norm that the compiled part is given, see :func:`reduced_norm`.
KnownNorm = tuple[float, int, bool, list[float] | None, list[int]]


#: Above this, the ranges that a sum of powers may lie in become too many to be worth sending.
_LARGEST_ORDER = 64.0
#: Below this, a norm of many elements may lie so far beyond float64 that they become too many again.
_SMALLEST_ORDER = 1.0 / 64.0


def reduced_norm(
    comm: Any, leaves: Sequence[npt.NDArray[Any] | None], order: float, names: ArgumentNames
) -> tuple[KnownNorm, float]:
    """Return the norm of the tensors of all processes.

    The sum of powers travels in the one of a few ranges that it fits, scaled, so that it neither
    overflows nor vanishes on the way; with it go the number of tensors that are not finite and whether
    an input was float64. Every process gets the same sums, and so the same bits.

    Parameters
    ----------
    comm : object
        With a method ``allreduce(array) -> array`` that sums over processes, such as an mpi4py communicator.
    leaves : sequence of ndarray or None
        This process's tensors.
    order : float
        The order of the norm.
    names : tuple
        What the tensors are called in messages.

    Returns
    -------
    given : tuple of float, int, bool, list of float and list of int
        The norm as a mantissa and an exponent of two, whether an input of any process was float64, the norms
        of this process's tensors, and the positions of those that hold NaN or infinity.
    norm : float
        The norm.

    Raises
    ------
    TypeError
        If `comm` has no ``allreduce``, or it gives no numbers.
    ValueError
        If `order` is below 1/64 or above 64, or ``allreduce`` gives another number of numbers.
    """
    allreduce = getattr(comm, "allreduce", None)
    if not callable(allreduce):
        raise TypeError(
            f"comm is a {type(comm).__name__}; it takes an object with an allreduce(array) method"
        )
    if not _SMALLEST_ORDER <= order <= _LARGEST_ORDER:
        raise ValueError(
            f"ord is {order}; with comm= it takes a number from 1/{1.0 / _SMALLEST_ORDER:.0f}"
            f" to {_LARGEST_ORDER:.0f}"
        )
    sums, norms, nonfinite = _core.partial_sums(leaves, order, names)
    answer = allreduce(np.array(sums, np.float64))
    try:
        total = np.asarray(answer, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"comm.allreduce gave {answer!r}; it must give an array of float64") from None
    if total.shape != (len(sums),):
        raise ValueError(
            f"comm.allreduce gave an array of shape {total.shape} for one of shape ({len(sums)},)"
        )
    *powers, _, wide = total.tolist()
    root, exponent, norm = _core.combine_sums(powers, order)
    return (root, exponent, wide > 0, norms, nonfinite), norm
