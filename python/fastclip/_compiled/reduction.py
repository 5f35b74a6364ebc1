"""Global norms over several processes, by one all-reduce."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip import _core

__all__ = ["KnownNorm", "reduced_norm"]

#: A norm that is passed to the compiled part instead of being computed, see :func:`reduced_norm`.
KnownNorm = tuple[float, int, bool, list[float] | None, list[int]]

#: Above this order, a sum of powers may lie in too many ranges for one number per range to be sent.
_LARGEST_ORDER = 64.0
#: Below this order, a norm of many elements may be so far beyond float64 that there are too many again.
_SMALLEST_ORDER = 1.0 / 64.0


def reduced_norm(comm: Any, t_list: Any, order: float) -> tuple[KnownNorm, float]:
    """Returns the norm of the tensors of all processes.

    The array that is summed over processes has one sum of powers for each of a few ranges of magnitude. A
    process puts its sum, scaled, into the range that it fits and zeros into the others, so that sums neither
    overflow nor underflow. Two further numbers count the tensors that are not finite and tell whether an
    input is float64. Every process gets the same sums, and so the same bits.

    Parameters
    ----------
    comm : object
        With a method ``allreduce(array) -> array`` that sums over processes, such as an mpi4py communicator.
    t_list : container or fastclip._core.Tree
        Tensors of this process.
    order : float
        Order of the norm.

    Returns
    -------
    known : tuple of float, int, bool, list of float and list of int
        The norm as a mantissa and an exponent of two, whether an input of any process is float64, the norms
        of this process's tensors, and the positions of those that hold NaN or infinity.
    norm : float
        The norm.

    Raises
    ------
    TypeError
        If `comm` has no ``allreduce``, or it does not return numbers.
    ValueError
        If `order` is below 1/64 or above 64, or ``allreduce`` returns an array of another shape.
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
    sums, norms, nonfinite = _core.partial_sums(t_list, order)
    reduced = allreduce(np.array(sums, np.float64))
    try:
        total = np.asarray(reduced, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"comm.allreduce gave {reduced!r}; it must give an array of float64") from None
    if total.shape != (len(sums),):
        raise ValueError(
            f"comm.allreduce gave an array of shape {total.shape} for one of shape ({len(sums)},)"
        )
    *powers, _, float64_count = total.tolist()
    root, exponent, norm = _core.combine_sums(powers, order)
    return (root, exponent, float64_count > 0, norms, nonfinite), norm
