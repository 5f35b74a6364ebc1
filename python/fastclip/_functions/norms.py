"""Norms of containers of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._autodiff.traced import holds_traced
from fastclip._compiled import norms as compiled
from fastclip._functions.refused import functions_for

if TYPE_CHECKING:
    from fastclip._typing import Norm, SupportsAllreduce, Tensors

__all__ = ["global_norm", "tensor_norms"]


def global_norm(
    t_list: Tensors, name: str | None = None, *, ord: float = 2, comm: SupportsAllreduce | None = None
) -> Norm:
    """Return the norm of all tensors together.

    For `ord` 2 the norm is ``sqrt(sum(x**2 for every element x of every tensor))``, as in
    ``tf.linalg.global_norm`` [1]_.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Tensors of float16, bfloat16, float32, float64, complex64 or complex128, of any kind that
        :func:`clip_by_global_norm` takes; :class:`IndexedSlices`, of which the values count; or None, which
        is skipped.
    name : str, optional
        Accepted for compatibility with TensorFlow; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf`` for the largest absolute value.
    comm : object, optional
        Object with a method ``allreduce(array)`` that sums an array over processes, such as an mpi4py
        communicator. The norm is then that of the tensors of all processes. Orders from 1/64 to 64 are
        supported.

    Returns
    -------
    np.float32 or np.float64
        float64 if an input is float64 or complex128, or if a finite norm would be infinite in float32; else
        float32. A float32 norm is within one unit in the last place of the exact norm; the relative error of
        a float64 norm is at most 1e-14, or ``1e-14 / ord`` for `ord` below 1. The norm is infinite or NaN
        only if an input is, or if the exact norm is beyond the range of float64.

    Raises
    ------
    TypeError
        If `t_list` is not a container, an entry is not a tensor of the types above, or `ord` is not a
        number.
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
        from fastclip._autodiff import differentiation_rules as rules

        traced: np.floating[Any] = rules.global_norm(t_list, ord, comm)
        return traced
    try:
        return compiled.global_norm(t_list, ord, comm)
    except _core.OnDevice as error:
        functions = functions_for(error)
    norm: Norm = functions.global_norm(t_list, ord, comm)
    return norm


def tensor_norms(t_list: Tensors, *, ord: float = 2) -> npt.NDArray[np.floating[Any]]:
    """Return the norm of each tensor, in one pass over all of them.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Tensors, as for :func:`global_norm`.
    ord : float, optional
        Order of the norm, as for :func:`global_norm`.

    Returns
    -------
    ndarray, shape (n,)
        Norm of each entry that is not None, in the order of the container. The data type is chosen for all
        norms together, as for :func:`global_norm`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`global_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.tensor_norms([np.float32([3.0, 4.0]), None, np.float32([[12.0]])])
    array([ 5., 12.], dtype=float32)
    """
    if holds_traced(t_list):
        from fastclip._autodiff import differentiation_rules as rules

        traced: npt.NDArray[np.floating[Any]] = rules.tensor_norms(t_list, ord)
        return traced
    try:
        return compiled.tensor_norms(t_list, ord)
    except _core.OnDevice as error:
        functions = functions_for(error)
    norms: npt.NDArray[np.floating[Any]] = functions.tensor_norms(t_list, ord)
    return norms
