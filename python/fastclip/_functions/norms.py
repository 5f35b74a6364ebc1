"""Norms of lists of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._autodiff.traced import holds_traced
from fastclip._compiled import norms as compiled

__all__ = ["global_norm", "tensor_norms"]


def global_norm(
    t_list: Any, name: str | None = None, *, ord: float = 2, comm: Any = None
) -> np.floating[Any]:
    """Return the norm of all tensors together.

    ``sqrt(sum(x**2 for every element x of every tensor))`` for `ord` 2, as ``tf.linalg.global_norm`` [1]_.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Of arrays (float16, bfloat16, float32, float64, complex64, complex128; any shape and layout),
        :class:`IndexedSlices`, of which the values count, or None, which counts for nothing.
    name : str, optional
        Taken for compatibility; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf`` for the largest absolute value.
    comm : object, optional
        With an ``allreduce`` method that sums an array over processes: the norm is that over the tensors
        of all of them. Orders from 1/64 to 64.

    Returns
    -------
    np.float32 or np.float64
        float64 if an input is float64 or complex128, or if a finite norm would be infinite in float32; else
        float32. A float32 is within one unit in the last place of the exact norm; the relative error of a
        float64 is at most 1e-14. For `ord` below 1 that bound is ``1e-14 / ord``. The norm is infinite or NaN
        only if an input is, or if it is beyond float64.

    Raises
    ------
    TypeError
        If `t_list` is no container, an entry is no array of these types, or `ord` is no number.
    ValueError
        If `ord` is not above 0.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/linalg/global_norm

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.global_norm([np.float32([3.0, 4.0]), None, np.float32([12.0])])
    np.float32(13.0)
    >>> fastclip.global_norm([np.array([1e308, 1e308])])
    np.float64(1.4142135623730951e+308)
    """
    if holds_traced(t_list):
        from fastclip._autodiff import rules

        traced: np.floating[Any] = rules.global_norm(t_list, ord, comm)
        return traced
    return compiled.global_norm(t_list, ord, comm)


def tensor_norms(t_list: Any, *, ord: float = 2) -> npt.NDArray[np.floating[Any]]:
    """Return the norm of each tensor, in one pass over all.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        As for :func:`global_norm`.
    ord : float, optional
        As for :func:`global_norm`.

    Returns
    -------
    ndarray, shape (n,)
        One norm for each entry that is not None, in the order of the container. The type is that
        of :func:`global_norm`, for all of them.

    Raises
    ------
    TypeError, ValueError
        As :func:`global_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.tensor_norms([np.float32([3.0, 4.0]), None, np.float32([[12.0]])])
    array([ 5., 12.], dtype=float32)
    """
    if holds_traced(t_list):
        from fastclip._autodiff import rules

        traced: npt.NDArray[np.floating[Any]] = rules.tensor_norms(t_list, ord)
        return traced
    return compiled.tensor_norms(t_list, ord)
