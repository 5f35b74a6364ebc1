"""TensorFlow's clip functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastclip._autodiff.traced import holds_traced, is_traced
from fastclip._compiled import clip as compiled

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]


def clip_by_global_norm(
    t_list: Any,
    clip_norm: float,
    use_norm: Any = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: Any = None,
    on_nonfinite: Literal["propagate", "raise", "zero"] = "propagate",
    comm: Any = None,
    norms: npt.NDArray[np.float64] | None = None,
) -> tuple[Any, Any]:
    """Scale tensors so that the norm of all of them together is at most `clip_norm`.

    Each becomes ``t * clip_norm / max(norm, clip_norm)``, as ``tf.clip_by_global_norm`` [1]_ [2]_.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Of arrays (float16, bfloat16, float32, float64, complex64, complex128; any shape and layout),
        :class:`IndexedSlices`, of which the values are clipped, or None, which stays None.
    clip_norm : float
        The bound, 0 or more; infinity clips nothing.
    use_norm : float, optional
        The norm, if it is known already: it is not computed then, and is returned as given. The tensors
        are not looked at for NaN and infinity either: `on_nonfinite` is about `use_norm` alone.
    name : str, optional
        Taken for compatibility; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf``.
    out : container, optional
        Where results go: arrays of the same types and shapes in the structure of `t_list`. ``out=t_list``
        clips in place; nothing is written then if the norm is within the bound.
    on_nonfinite : {"propagate", "raise", "zero"}, optional
        What a NaN or an infinity among the inputs does: turn every element of every output into NaN (as in
        TensorFlow), raise :class:`NonFiniteError`, or turn every element into 0.
    comm : object, optional
        With an ``allreduce`` method that sums an array over processes: the norm is that over the tensors
        of all of them, and every process gets the same bits. Orders from 1/64 to 64.
    norms : ndarray of float64, shape (n,), optional
        Filled with the norm of each tensor that is not None (of this process), in the same pass.

    Returns
    -------
    clipped : list or container
        A list if `t_list` is a list or tuple of tensors, else the structure of `t_list`, in which subclasses
        of list, tuple and dict keep their type and attributes. The arrays are fresh, in the memory order of
        the inputs, or those of `out`.
    norm : np.float32 or np.float64
        The norm before clipping, see :func:`global_norm`; or `use_norm`.

    Raises
    ------
    TypeError
        If `t_list` is no container, is or holds one that cannot be made again with other entries, an entry is
        no array of these types, or `clip_norm`, `use_norm` or `ord` is no number.
    ValueError
        If `clip_norm` is negative or NaN, `use_norm` is negative, `ord` is not above 0, or an
        output does not fit, is read-only, or shares memory with another output or input.
    NonFiniteError
        With ``on_nonfinite="raise"``; it names the entries.

    Notes
    -----
    If the norm is within the bound, the results equal the inputs bit for bit. Else each element is the
    correctly rounded product of the input and the scale; the scale is computed in float64 and rounded once
    to float32 for everything but float64 and complex128. The bits depend neither on the number of threads
    nor on the SIMD level. A call that fails has written nothing; an interrupt that comes during the writing
    pass is raised when everything is written.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/clip_by_global_norm
    .. [2] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
       networks", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> grads = {"w": np.float32([3.0, 4.0]), "b": np.float32([12.0])}
    >>> clipped, norm = fastclip.clip_by_global_norm(grads, 6.5)
    >>> norm, clipped["b"]
    (np.float32(13.0), array([6.], dtype=float32))

    In place, with the norm of each tensor:

    >>> norms = np.empty(2)
    >>> _ = fastclip.clip_by_global_norm(grads, 6.5, out=grads, norms=norms)
    >>> grads["w"], norms
    (array([1.5, 2. ], dtype=float32), array([ 5., 12.]))
    """
    if holds_traced(t_list, clip_norm, use_norm):
        from fastclip._autodiff import rules

        return rules.clip_by_global_norm(t_list, clip_norm, use_norm, ord, out, on_nonfinite, comm, norms)
    return compiled.clip_by_global_norm(t_list, clip_norm, use_norm, ord, out, on_nonfinite, comm, norms)


def clip_by_norm(
    t: Any,
    clip_norm: Any,
    axes: int | Sequence[int] | None = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: Any = None,
) -> Any:
    """Scale a tensor so that its norm, or that of each of its slices, is at most `clip_norm`.

    It becomes ``t * clip_norm / max(norm, clip_norm)``, as ``tf.clip_by_norm`` [1]_.

    Parameters
    ----------
    t : array_like or IndexedSlices
        float16, bfloat16, float32, float64, complex64 or complex128, of any shape and layout.
    clip_norm : float or array_like
        The bound; a negative one counts as 0. An array must broadcast to the shape of `t`.
    axes : int or sequence of int, optional
        The axes that a norm is taken over: one norm for each index of the others. None is all of them.
    name : str, optional
        Taken for compatibility; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf``.
    out : ndarray, optional
        Where the result goes: of the type and shape of `t`, and `t` itself or apart from it.

    Returns
    -------
    ndarray or IndexedSlices
        Of the type and shape of `t`: fresh, in its memory order, or `out`. A slice with a NaN or an infinity
        is all NaN.

    Raises
    ------
    TypeError
        If `t` or `clip_norm` is no array of these types, or number.
    ValueError
        If `clip_norm` is NaN or would enlarge `t`, an axis does not exist or comes twice, or `out` does
        not fit.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/clip_by_norm

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.clip_by_norm(np.array([3.0, 4.0]), 1.0)
    array([0.6, 0.8])
    >>> fastclip.clip_by_norm(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0, axes=[1])
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    if is_traced(t, clip_norm):
        from fastclip._autodiff import rules

        return rules.clip_by_norm(t, clip_norm, axes, ord, out)
    return compiled.clip_by_norm(t, clip_norm, axes, ord, out)


def clip_by_average_norm(t: Any, clip_norm: float, name: str | None = None, *, out: Any = None) -> Any:
    """Scale a tensor so that its norm divided by its number of elements is at most `clip_norm`.

    It becomes ``t * clip_norm / max(norm / t.size, clip_norm)``, as
    ``tf.compat.v1.clip_by_average_norm`` [1]_. That is no root mean square, which
    :func:`clip_by_block_rms` bounds.

    Parameters
    ----------
    t : array_like or IndexedSlices
        As for :func:`clip_by_norm`.
    clip_norm : float
        The bound; a negative one counts as 0.
    name : str, optional
        Taken for compatibility; not used.
    out : ndarray, optional
        As for :func:`clip_by_norm`.

    Returns
    -------
    ndarray or IndexedSlices
        As :func:`clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        As :func:`clip_by_norm`.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/clip_by_average_norm

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.clip_by_average_norm(np.array([6.0, 8.0]), 1.0)
    array([1.2, 1.6])
    """
    if is_traced(t, clip_norm):
        from fastclip._autodiff import rules

        return rules.clip_by_average_norm(t, clip_norm, out)
    return compiled.clip_by_average_norm(t, clip_norm, out)


def clip_by_value(
    t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None, *, out: Any = None
) -> Any:
    """Bring every element between two bounds.

    ``max(min(t, clip_value_max), clip_value_min)``, as ``tf.clip_by_value`` [1]_.

    Parameters
    ----------
    t : array_like or IndexedSlices
        float16, bfloat16, float32, float64 or any integer type, of any shape and layout.
    clip_value_min, clip_value_max : array_like
        The bounds, which must broadcast to the shape of `t`. They are converted to the type of `t`.
    name : str, optional
        Taken for compatibility; not used.
    out : ndarray, optional
        As for :func:`clip_by_norm`.

    Returns
    -------
    ndarray or IndexedSlices
        Of the type and shape of `t`: fresh, in its memory order, or `out`. NaN stays NaN, and a NaN bound
        gives NaN, as by ``np.clip``. Where the lower bound is above the upper, the lower is what comes out.

    Raises
    ------
    TypeError
        If `t` is no array of these types, or it is of integers and a bound is not.
    ValueError
        If a bound would enlarge `t`, or `out` does not fit.
    OverflowError
        If a bound is a whole number outside the range of the integer type of `t`.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/clip_by_value

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.clip_by_value(np.array([-3, 0, 7]), -1, 5)
    array([-1,  0,  5])
    """
    if is_traced(t, clip_value_min, clip_value_max):
        from fastclip._autodiff import rules

        return rules.clip_by_value(t, clip_value_min, clip_value_max, out)
    return compiled.clip_by_value(t, clip_value_min, clip_value_max, out)
