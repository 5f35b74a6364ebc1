"""TensorFlow's clip functions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_array, as_bound, as_number, as_output, describe
from fastclip._arguments.order import parse_order
from fastclip._arguments.tree import Names, flatten, flatten_like
from fastclip._autodiff.traced import holds_traced, is_traced
from fastclip._compiled.reduction import KnownNorm, reduced_norm
from fastclip._indexed_slices import IndexedSlices
from fastclip._numpy_memory import raises_memory_error

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]

_ONE: Names = ("t", ["t"], "out", ["out"])


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
    bound = clip_norm if type(clip_norm) is float else as_bound(clip_norm, "clip_norm")
    if not bound >= 0.0:
        raise ValueError(f"clip_norm is {bound}; it takes a number, 0 or more")
    order = parse_order(ord)
    tree = flatten(t_list, "t_list")
    # In place on a flat list, which is most calls, the outputs need no look of their own.
    in_place = out is t_list and tree.labels is None
    target = None if out is None else tree if in_place else flatten_like(out, tree)
    names = tree.names(target)
    given: KnownNorm | None = None
    if use_norm is not None:
        if comm is not None:
            raise ValueError("use_norm= is the norm that comm= would sum; pass one of them")
        if norms is not None:
            raise ValueError(
                "norms= needs the pass over the tensors that use_norm= does without; pass one of them"
            )
        given = (_known_norm(use_norm), 0, True, None, [])
    elif comm is not None:
        given, _ = reduced_norm(comm, tree.leaves, order, names)
    outputs = None if target is None else target.leaves
    norms_before = norms.copy() if tree.labels is not None and isinstance(norms, np.ndarray) else None
    results, norm = _core.clip_by_global_norm(
        tree.leaves, bound, given, order, outputs, on_nonfinite, norms, names
    )
    if target is None and tree.labels is None:
        clipped: Any = results
    else:
        try:
            clipped = tree.finished(results, target)
        except BaseException:
            # A container's own code failed, which it had not when it was tried.
            if norms is not None and norms_before is not None:
                norms[...] = norms_before
            raise
    return clipped, (norm if use_norm is None else use_norm)


def _known_norm(use_norm: Any) -> float:
    norm = as_number(use_norm, "use_norm")
    if norm < 0:
        raise ValueError(f"use_norm is {norm}; a norm is 0 or more")
    return norm


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
    array, target = _values(t), _target(out)
    order = parse_order(ord)
    reduced = _reduced_axes(axes, array.ndim)
    whole = reduced is None or all(reduced)
    if whole and type(clip_norm) is float:
        # Most calls: nothing to broadcast.
        limit = max(as_bound(clip_norm, "clip_norm"), 0.0)
        results = _core.clip_tensors([array], [limit], "one", order, target, _ONE)
        return _finished(t, results[0], out)
    bound = _bounds(clip_norm, array.shape)
    if target is not None and (isinstance(clip_norm, np.ndarray) or not _is_one_number(clip_norm)):
        _check_no_overlap(target[0], as_array(clip_norm, "clip_norm"), "clip_norm")
    if whole and bound.size == 1:
        results = _core.clip_tensors([array], [float(bound.reshape(()))], "one", order, target, _ONE)
    else:
        reduced = reduced or [True] * array.ndim
        lengths: tuple[int, ...] = (1,) * (array.ndim - bound.ndim) + bound.shape
        bound = bound.reshape(lengths)
        if any(n != 1 and is_reduced for n, is_reduced in zip(lengths, reduced, strict=True)):
            results = _core.clip_elements([array], [reduced], [bound], order, target, _ONE)
        else:
            shape = [1 if is_reduced else n for n, is_reduced in zip(array.shape, reduced, strict=True)]
            bounds = [np.broadcast_to(bound, shape)]
            results = _core.clip_slices([array], [reduced], bounds, order, target, _ONE)
    return _finished(t, results[0], out)


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
    array, target = _values(t), _target(out)
    bound = max(as_bound(clip_norm, "clip_norm"), 0.0)
    results = _core.clip_tensors([array], [bound], "count", 2.0, target, _ONE)
    return _finished(t, results[0], out)


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
    array = _values(t)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        # No bound has a meaning: the compiled part says what is wrong with `t`.
        _core.clip_by_value(array, array, array, None)
    lower = _value_bound(clip_value_min, array, "clip_value_min")
    upper = _value_bound(clip_value_max, array, "clip_value_max")
    output = None
    if out is not None:
        output = as_output(out.values if isinstance(out, IndexedSlices) else out, "out")
        if not isinstance(clip_value_min, (int, float)):
            _check_no_overlap(output, lower, "clip_value_min")
        if not isinstance(clip_value_max, (int, float)):
            _check_no_overlap(output, upper, "clip_value_max")
    return _finished(t, _core.clip_by_value(array, lower, upper, output), out)


def _check_no_overlap(output: npt.NDArray[Any], bound: npt.NDArray[Any], name: str) -> None:
    if np.may_share_memory(output, bound):
        _core.check_no_overlap([bound], [output], (name, [name], "out", ["out"]))


def _values(t: Any) -> npt.NDArray[Any]:
    if type(t) is np.ndarray and t.dtype.isnative:
        return t
    if isinstance(t, IndexedSlices):
        return as_array(t.values, "t.values")
    if t is None or isinstance(t, dict):
        raise TypeError(f"t is {describe(t)}; it takes an array")
    return as_array(t, "t")


def _target(out: Any) -> list[npt.NDArray[Any]] | None:
    if out is None:
        return None
    return [as_output(out.values if isinstance(out, IndexedSlices) else out, "out")]


def _finished(t: Any, result: npt.NDArray[Any], out: Any) -> Any:
    if out is not None:
        return out
    return t._with_values(result) if isinstance(t, IndexedSlices) else result


def _reduced_axes(axes: int | Sequence[int] | None, ndim: int) -> list[bool] | None:
    """Whether each axis is reduced; None if all are because `axes` is."""
    if axes is None:
        return None
    listed: Any = [axes] if isinstance(axes, (int, np.integer)) else axes
    reduced = [False] * ndim
    try:
        numbers = [operator.index(axis) for axis in listed]
    except TypeError:
        raise TypeError(f"axes is {axes!r}; it takes whole numbers") from None
    for axis in numbers:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"axes is {axes!r}; t has {ndim} dimensions, so an axis lies in [{-ndim}, {ndim})"
            )
        if reduced[axis]:
            raise ValueError(f"axes is {axes!r}; axis {axis} is in it twice")
        reduced[axis] = True
    return reduced


def _is_one_number(value: Any) -> bool:
    """Whether something is, or says of itself that it is, a number rather than an array of them."""
    kind = type(value)
    says_so = hasattr(kind, "__float__") or hasattr(kind, "__index__")
    return says_so and not len(getattr(value, "shape", None) or ())


@raises_memory_error
def _bounds(clip_norm: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The bounds of :func:`clip_by_norm` as float64, none below 0."""
    if _is_one_number(clip_norm):
        return np.asarray(max(as_bound(clip_norm, "clip_norm"), 0.0))
    clip_norm = as_array(clip_norm, "clip_norm")
    if clip_norm.dtype.kind not in "fiu" and clip_norm.dtype.name != "bfloat16":
        raise TypeError(f"clip_norm is {describe(clip_norm)}; it takes real numbers")
    clip_norm = clip_norm.astype(np.float64)
    bounds: npt.NDArray[np.float64] = np.maximum(np.asarray(clip_norm), 0.0)
    if np.isnan(bounds).any():
        raise ValueError("clip_norm is or holds NaN; it takes numbers")
    _check_broadcast(bounds, shape, "clip_norm")
    return bounds


def _check_broadcast(bound: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if bound.ndim == 0:
        return
    aligned = shape[len(shape) - bound.ndim :] if bound.ndim <= len(shape) else None
    if aligned is None or any(n not in (1, of) for n, of in zip(bound.shape, aligned, strict=True)):
        raise ValueError(
            f"{name} has shape {bound.shape}, which does not broadcast to the shape of t, {shape}"
        )


def _rounded(bound: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if type(bound) is float and (dtype.itemsize == 8 or -6e4 < bound < 6e4):
        return np.array(bound, dtype)
    # A bound beyond the range of a narrow type is infinite in it, and bounds nothing: no reason to warn.
    with np.errstate(over="ignore"):
        return np.asarray(bound, np.float64 if type(bound) is float else None).astype(dtype, copy=False)


@raises_memory_error
def _check_range(bound: npt.NDArray[Any], value: Any, t: npt.NDArray[Any], name: str) -> None:
    """Refuse whole numbers that the integer type of `t` does not hold."""
    info = np.iinfo(t.dtype)
    if bound.size and not (info.min <= int(bound.min()) and int(bound.max()) <= info.max):
        raise OverflowError(
            f"{name} is {value!r}, out of the range of t's dtype {t.dtype}: {info.min} to {info.max}"
        )


def _value_bound(value: Any, t: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """A bound of :func:`clip_by_value` in the type of `t`: of one element, or of its shape."""
    if t.dtype.kind in "iu":
        bound = np.array(value, object) if type(value) is int else as_array(value, name)
        if bound.dtype.kind not in "iu" and type(value) is not int:
            raise TypeError(f"{name} is {value!r} where t has dtype {t.dtype}; it takes whole numbers")
        _check_range(bound, value, t, name)
        bound = bound.astype(t.dtype, copy=False)
    elif isinstance(value, (float, int)) and not isinstance(value, bool):
        try:
            bound = _rounded(float(value), t.dtype)
        except OverflowError:
            raise OverflowError(
                f"{name} is a whole number beyond float64, and t has dtype {t.dtype}"
            ) from None
    else:
        bound = as_array(value, name)
        if bound.dtype.kind not in "fiu" and bound.dtype.name != "bfloat16":
            raise TypeError(f"{name} is {describe(bound)}; it takes real numbers")
        bound = _rounded(bound, t.dtype)
    _check_broadcast(bound, t.shape, name)
    return bound if bound.size == 1 else np.broadcast_to(bound, t.shape)
