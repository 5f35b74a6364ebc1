"""Clipping by value and by norm, as TensorFlow's clip functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._autodiff.traced import holds_traced, is_tensor_with_grad, is_traced
from fastclip._compiled import clip as compiled
from fastclip._functions.refused import functions_for
from fastclip._norm_accumulator import NormAccumulator

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip._indexed_slices import IndexedSlices
    from fastclip._typing import (
        ArrayLike,
        Axes,
        ContainerT,
        DTypeT,
        Flat,
        FlatArrayLikes,
        GlobalNormOptions,
        JaxArray,
        KeyT,
        LeafT,
        NamedTupleT,
        NormT,
        Number,
        OutT,
        ResultT,
        SameT,
        ShapeT,
        SupportsAllreduce,
        Tensor,
        Tensors,
        TorchTensor,
    )

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]


@overload
def clip_by_global_norm(
    t_list: NamedTupleT,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: None = None,
    **options: Unpack[GlobalNormOptions],
) -> tuple[NamedTupleT, NormT]: ...
@overload
def clip_by_global_norm(  # type: ignore[overload-overlap]
    t_list: Flat[LeafT],
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: None = None,
    **options: Unpack[GlobalNormOptions],
) -> tuple[list[LeafT], NormT]: ...
@overload
def clip_by_global_norm(
    t_list: FlatArrayLikes,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: None = None,
    **options: Unpack[GlobalNormOptions],
) -> tuple[list[npt.NDArray[Any]], NormT]: ...
@overload
def clip_by_global_norm(  # type: ignore[overload-overlap]
    t_list: ContainerT,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: None = None,
    **options: Unpack[GlobalNormOptions],
) -> tuple[ContainerT, NormT]: ...
@overload
def clip_by_global_norm(
    t_list: Mapping[KeyT, ArrayLike],
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: None = None,
    **options: Unpack[GlobalNormOptions],
) -> tuple[Mapping[KeyT, npt.NDArray[Any]], NormT]: ...
@overload
def clip_by_global_norm(
    t_list: Tensors,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: NamedTupleT,
    **options: Unpack[GlobalNormOptions],
) -> tuple[NamedTupleT, NormT]: ...
@overload
def clip_by_global_norm(
    t_list: Tensors,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: Flat[LeafT],
    **options: Unpack[GlobalNormOptions],
) -> tuple[list[LeafT], NormT]: ...
@overload
def clip_by_global_norm(
    t_list: Tensors,
    clip_norm: Number,
    use_norm: NormT | None = None,
    name: str | None = None,
    *,
    out: ContainerT,
    **options: Unpack[GlobalNormOptions],
) -> tuple[ContainerT, NormT]: ...
def clip_by_global_norm(
    t_list: Any,
    clip_norm: Number,
    use_norm: Any = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: Any = None,
    on_nonfinite: Literal["propagate", "raise", "zero"] = "propagate",
    comm: SupportsAllreduce | None = None,
    norms: npt.NDArray[np.float64] | None = None,
) -> tuple[Any, Any]:
    """Scale tensors so that their global norm is at most `clip_norm`.

    Each tensor becomes ``t * clip_norm / max(norm, clip_norm)``, where ``norm`` is the norm of all tensors
    together, as in ``tf.clip_by_global_norm`` [1]_ [2]_.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Tensors of float16, bfloat16, float32, float64, complex64 or complex128, of any shape and layout:
        arrays, tensors of torch, JAX or TensorFlow on the CPU, other objects with ``__dlpack__``, and
        buffers, none of which is copied; :class:`IndexedSlices` and sparse tensors of torch or TensorFlow,
        whose values are clipped; or None, which is returned as None. Views of the values of a dict count as
        a list.
    clip_norm : float
        Largest norm of the results, 0 or more; infinity clips nothing.
    use_norm : float or NormAccumulator, optional
        Global norm of the tensors. If it is passed, the norm is not computed and `use_norm`, or the norm of
        the accumulator, is returned. The tensors are not checked for NaN and infinity either: `on_nonfinite`
        then applies to `use_norm` alone.
    name : str, optional
        Accepted for compatibility with TensorFlow; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf``.
    out : container, optional
        Tensors that the results are written to, with the structure, shapes and data types of `t_list`, and
        of any kind that can be written: arrays of JAX and tensors of TensorFlow are immutable.
        ``out=t_list`` clips in place; then nothing is written if the norm is at most `clip_norm`.
    on_nonfinite : {"propagate", "raise", "zero"}, optional
        Behaviour if an input holds a NaN or an infinity: set every element of every output to NaN, as
        TensorFlow does, raise :class:`NonFiniteError`, or set every element to 0.
    comm : object, optional
        Object with a method ``allreduce(array)`` that sums an array over processes, such as an mpi4py
        communicator. The norm is then that of the tensors of all processes, and has the same bits in each of
        them. Orders from 1/64 to 64 are supported.
    norms : ndarray of float64, shape (n,), optional
        Array that the norm of each tensor of this process that is not None is written to, in the same pass.

    Returns
    -------
    clipped : list or container
        A list if `t_list` is a list or tuple of tensors, else a container with the structure of `t_list`, in
        which subclasses of list, tuple and dict keep their type and attributes. The tensors are those of
        `out`, or new ones in the memory order of the inputs, each of the kind of its input: a tensor of the
        same library, or an ndarray for an array, a number or a buffer.
    norm : np.float32 or np.float64
        The norm before clipping, see :func:`global_norm`; or `use_norm`.

    Raises
    ------
    TypeError
        If `t_list` is not a container or contains one that cannot be rebuilt with other entries, an entry is
        not a tensor of the types above or not on the CPU, an output is immutable, or `clip_norm`, `use_norm`
        or `ord` is not a number.
    ValueError
        If `clip_norm` is negative or NaN, `use_norm` is negative, `ord` is not above 0, or an output has
        another shape or data type, is read-only, or shares memory with another output or input.
    NonFiniteError
        If an input holds a NaN or an infinity and ``on_nonfinite="raise"``. The message names the entries,
        and the attribute `norms` has the norm of each tensor of this process that is not None.

    Notes
    -----
    If the norm is at most `clip_norm`, the results equal the inputs bit for bit. Otherwise each element is
    the correctly rounded product of the input and the factor ``clip_norm / norm``, which is computed in
    float64 and, for all types but float64 and complex128, rounded once to float32. The bits depend neither
    on the number of threads nor on the SIMD level. A call that fails has written nothing; an interrupt that
    arrives while results are written is raised when all of them are written.

    Notes
    -----
    If a tensor of torch requires grad (an entry, `clip_norm` or `use_norm`) and grad mode is on, the clipped
    tensors have a graph, and can be differentiated more than once. Gradients are those of TensorFlow, also
    where a norm equals the bound. The norm is a plain number, entries of NumPy stay arrays, and complex or
    sparse tensors and orders below 1 raise TypeError. With ``out=`` results are written as under
    ``torch.no_grad()``.

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
        from fastclip._autodiff import differentiation_rules as rules

        if isinstance(use_norm, NormAccumulator):
            use_norm = use_norm.norm()
        return rules.clip_by_global_norm(t_list, clip_norm, use_norm, ord, out, on_nonfinite, comm, norms)
    if out is not None or not is_tensor_with_grad(clip_norm, use_norm):
        try:
            return compiled.clip_by_global_norm(
                t_list, clip_norm, use_norm, ord, out, on_nonfinite, comm, norms
            )
        except (_core.Recorded, _core.OnDevice) as error:
            functions = functions_for(error)
    else:
        functions = functions_for(None)
    if isinstance(use_norm, NormAccumulator):
        use_norm = use_norm.norm()
    result: tuple[Any, Any] = functions.clip_by_global_norm(
        t_list, clip_norm, use_norm, ord, out, on_nonfinite, comm, norms
    )
    return result


@overload
def clip_by_norm(
    t: Tensor | ArrayLike | IndexedSlices,
    clip_norm: Tensor | ArrayLike,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: OutT,
) -> OutT: ...
@overload
def clip_by_norm(
    t: np.ndarray[ShapeT, DTypeT],
    clip_norm: Tensor | ArrayLike,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: None = None,
) -> np.ndarray[ShapeT, DTypeT]: ...
@overload
def clip_by_norm(
    t: SameT,
    clip_norm: Tensor | ArrayLike,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: None = None,
) -> SameT: ...
@overload
def clip_by_norm(
    t: TorchTensor[ResultT] | JaxArray[ResultT],
    clip_norm: Tensor | ArrayLike,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: None = None,
) -> ResultT: ...
@overload
def clip_by_norm(
    t: ArrayLike,
    clip_norm: Tensor | ArrayLike,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: None = None,
) -> npt.NDArray[Any]: ...
def clip_by_norm(
    t: Any,
    clip_norm: Any,
    axes: Axes = None,
    name: str | None = None,
    *,
    ord: float = 2,
    out: Any = None,
) -> Any:
    """Scale a tensor so that its norm, or that of each of its slices, is at most `clip_norm`.

    The result is ``t * clip_norm / max(norm, clip_norm)``, as in ``tf.clip_by_norm`` [1]_.

    Parameters
    ----------
    t : array_like, tensor or IndexedSlices
        Tensor of float16, bfloat16, float32, float64, complex64 or complex128, of any shape and layout and
        of any kind that :func:`clip_by_global_norm` takes.
    clip_norm : float or array_like
        Largest norm of the result; negative values count as 0. An array must broadcast to the shape of `t`.
    axes : int or sequence of int, optional
        Axes over which a norm is taken, for each index along the other axes. None takes one norm over all
        axes.
    name : str, optional
        Accepted for compatibility with TensorFlow; not used.
    ord : float, optional
        Order of the norm: any number above 0, or ``np.inf``.
    out : ndarray or tensor, optional
        Array or tensor that the result is written to, with the shape and data type of `t`: `t` itself, or
        one that shares no memory with it.

    Returns
    -------
    ndarray, tensor or IndexedSlices
        Clipped tensor with the shape and data type of `t`: `out`, or a new one of the kind and in the memory
        order of `t`. A slice that holds a NaN or an infinity becomes NaN everywhere.

    Raises
    ------
    TypeError
        If `t` is not a tensor of the types above or not on the CPU, `out` is immutable, or `clip_norm` is not
        a real number or array.
    ValueError
        If `clip_norm` holds NaN or does not broadcast to the shape of `t`, an axis is out of range or
        repeated, or `out` has another shape or data type, is read-only, or overlaps an input.

    Notes
    -----
    If `t` or `clip_norm` is a tensor of torch that requires grad, the result has a graph, as for
    :func:`clip_by_global_norm`.

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
        from fastclip._autodiff import differentiation_rules as rules

        return rules.clip_by_norm(t, clip_norm, axes, ord, out)
    if out is not None or not is_tensor_with_grad(clip_norm):
        try:
            return compiled.clip_by_norm(t, clip_norm, axes, ord, out)
        except (_core.Recorded, _core.OnDevice) as error:
            functions = functions_for(error)
    else:
        functions = functions_for(None)
    return functions.clip_by_norm(t, clip_norm, axes, ord, out)


@overload
def clip_by_average_norm(
    t: Tensor | ArrayLike | IndexedSlices, clip_norm: Number, name: str | None = None, *, out: OutT
) -> OutT: ...
@overload
def clip_by_average_norm(
    t: np.ndarray[ShapeT, DTypeT], clip_norm: Number, name: str | None = None, *, out: None = None
) -> np.ndarray[ShapeT, DTypeT]: ...
@overload
def clip_by_average_norm(
    t: SameT, clip_norm: Number, name: str | None = None, *, out: None = None
) -> SameT: ...
@overload
def clip_by_average_norm(
    t: TorchTensor[ResultT] | JaxArray[ResultT],
    clip_norm: Number,
    name: str | None = None,
    *,
    out: None = None,
) -> ResultT: ...
@overload
def clip_by_average_norm(
    t: ArrayLike, clip_norm: Number, name: str | None = None, *, out: None = None
) -> npt.NDArray[Any]: ...
def clip_by_average_norm(t: Any, clip_norm: Number, name: str | None = None, *, out: Any = None) -> Any:
    """Scale a tensor so that its norm divided by its number of elements is at most `clip_norm`.

    The result is ``t * clip_norm / max(norm / t.size, clip_norm)``, as in
    ``tf.compat.v1.clip_by_average_norm`` [1]_. The average norm is not the root mean square, which
    :func:`clip_by_block_rms` bounds.

    Parameters
    ----------
    t : array_like, tensor or IndexedSlices
        Tensor, as for :func:`clip_by_norm`.
    clip_norm : float
        Largest average norm of the result; a negative value counts as 0.
    name : str, optional
        Accepted for compatibility with TensorFlow; not used.
    out : ndarray or tensor, optional
        Array or tensor that the result is written to, as for :func:`clip_by_norm`.

    Returns
    -------
    ndarray, tensor or IndexedSlices
        Clipped tensor, as for :func:`clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`clip_by_norm`.

    Notes
    -----
    If `t` or `clip_norm` is a tensor of torch that requires grad, the result has a graph, as for
    :func:`clip_by_global_norm`.

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
        from fastclip._autodiff import differentiation_rules as rules

        return rules.clip_by_average_norm(t, clip_norm, out)
    if out is not None or not is_tensor_with_grad(clip_norm):
        try:
            return compiled.clip_by_average_norm(t, clip_norm, out)
        except (_core.Recorded, _core.OnDevice) as error:
            functions = functions_for(error)
    else:
        functions = functions_for(None)
    return functions.clip_by_average_norm(t, clip_norm, out)


@overload
def clip_by_value(
    t: Tensor | ArrayLike | IndexedSlices,
    clip_value_min: Tensor | ArrayLike,
    clip_value_max: Tensor | ArrayLike,
    name: str | None = None,
    *,
    out: OutT,
) -> OutT: ...
@overload
def clip_by_value(
    t: np.ndarray[ShapeT, DTypeT],
    clip_value_min: Tensor | ArrayLike,
    clip_value_max: Tensor | ArrayLike,
    name: str | None = None,
    *,
    out: None = None,
) -> np.ndarray[ShapeT, DTypeT]: ...
@overload
def clip_by_value(
    t: SameT,
    clip_value_min: Tensor | ArrayLike,
    clip_value_max: Tensor | ArrayLike,
    name: str | None = None,
    *,
    out: None = None,
) -> SameT: ...
@overload
def clip_by_value(
    t: TorchTensor[ResultT] | JaxArray[ResultT],
    clip_value_min: Tensor | ArrayLike,
    clip_value_max: Tensor | ArrayLike,
    name: str | None = None,
    *,
    out: None = None,
) -> ResultT: ...
@overload
def clip_by_value(
    t: ArrayLike,
    clip_value_min: Tensor | ArrayLike,
    clip_value_max: Tensor | ArrayLike,
    name: str | None = None,
    *,
    out: None = None,
) -> npt.NDArray[Any]: ...
def clip_by_value(
    t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None, *, out: Any = None
) -> Any:
    """Limit every element to the interval between two bounds.

    The result is ``max(min(t, clip_value_max), clip_value_min)``, as in ``tf.clip_by_value`` [1]_.

    Parameters
    ----------
    t : array_like, tensor or IndexedSlices
        Tensor of float16, bfloat16, float32, float64 or any integer type, of any shape and layout and of any
        kind that :func:`clip_by_global_norm` takes.
    clip_value_min, clip_value_max : array_like
        Bounds, which must broadcast to the shape of `t`. They are converted to its data type.
    name : str, optional
        Accepted for compatibility with TensorFlow; not used.
    out : ndarray or tensor, optional
        Array or tensor that the result is written to, as for :func:`clip_by_norm`.

    Returns
    -------
    ndarray, tensor or IndexedSlices
        Clipped tensor with the shape and data type of `t`: `out`, or a new one of the kind and in the memory
        order of `t`. NaN stays NaN, and a NaN bound gives NaN, as in ``np.clip``. Where the lower bound is
        above the upper, the result is the lower bound.

    Raises
    ------
    TypeError
        If `t` is not a tensor of the types above or not on the CPU, `out` is immutable, or `t` holds integers
        and a bound does not.
    ValueError
        If a bound does not broadcast to the shape of `t`, or `out` has another shape or data type, is
        read-only, or overlaps an input.
    OverflowError
        If a bound is an integer out of the range of the integer type of `t`.

    Notes
    -----
    If `t` or a bound is a tensor of torch that requires grad, the result has a graph, as for
    :func:`clip_by_global_norm`. The gradient goes to `t` where an element is within the bounds or equal to
    one, and otherwise to the bound that replaced it.

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
    if type(t) is np.ndarray and type(clip_value_min) is type(clip_value_max) is float and out is None:
        # No argument has a gradient. Asking for one takes as long as clipping 1000 elements.
        return compiled.clip_by_value(t, clip_value_min, clip_value_max, out)
    if is_traced(t, clip_value_min, clip_value_max):
        from fastclip._autodiff import differentiation_rules as rules

        return rules.clip_by_value(t, clip_value_min, clip_value_max, out)
    if out is not None or not is_tensor_with_grad(clip_value_min, clip_value_max):
        try:
            return compiled.clip_by_value(t, clip_value_min, clip_value_max, out)
        except (_core.Recorded, _core.OnDevice) as error:
            functions = functions_for(error)
    else:
        functions = functions_for(None)
    return functions.clip_by_value(t, clip_value_min, clip_value_max, out)
