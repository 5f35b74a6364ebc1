"""Clipping of each tensor, or of each unit of a tensor, by its own norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from fastclip import _core
from fastclip._autodiff.traced import holds_traced, is_tensor_with_grad
from fastclip._compiled import unitwise as compiled

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastclip._typing import (
        ArrayLike,
        Axes,
        ContainerT,
        Flat,
        FlatArrayLikes,
        KeyT,
        LeafT,
        NamedTupleT,
        Number,
        Tensors,
    )

__all__ = ["adaptive_clip", "clip_by_block_rms"]


@overload
def clip_by_block_rms(t_list: NamedTupleT, threshold: Number, *, out: None = None) -> NamedTupleT: ...
@overload
def clip_by_block_rms(t_list: Flat[LeafT], threshold: Number, *, out: None = None) -> list[LeafT]: ...  # type: ignore[overload-overlap]
@overload
def clip_by_block_rms(
    t_list: FlatArrayLikes, threshold: Number, *, out: None = None
) -> list[npt.NDArray[Any]]: ...
@overload
def clip_by_block_rms(t_list: ContainerT, threshold: Number, *, out: None = None) -> ContainerT: ...  # type: ignore[overload-overlap]
@overload
def clip_by_block_rms(
    t_list: Mapping[KeyT, ArrayLike], threshold: Number, *, out: None = None
) -> Mapping[KeyT, npt.NDArray[Any]]: ...
@overload
def clip_by_block_rms(t_list: Tensors, threshold: Number, *, out: NamedTupleT) -> NamedTupleT: ...
@overload
def clip_by_block_rms(t_list: Tensors, threshold: Number, *, out: Flat[LeafT]) -> list[LeafT]: ...
@overload
def clip_by_block_rms(t_list: Tensors, threshold: Number, *, out: ContainerT) -> ContainerT: ...
def clip_by_block_rms(t_list: Any, threshold: Number, *, out: Any = None) -> Any:
    """Scale each tensor so that its root mean square is at most `threshold`.

    Each tensor becomes ``t / max(1, rms / threshold)`` with ``rms = sqrt(mean(abs(t)**2))``, as in
    ``optax.clip_by_block_rms`` [1]_.

    Parameters
    ----------
    t_list : list, tuple, dict or nested container
        Tensors, as for :func:`clip_by_global_norm`.
    threshold : float
        Largest root mean square of each result, 0 or more.
    out : container, optional
        Tensors that the results are written to, as for :func:`clip_by_global_norm`.

    Returns
    -------
    list or container
        Clipped tensors, as the first result of :func:`clip_by_global_norm`. A tensor that holds a NaN or an
        infinity becomes NaN everywhere.

    Raises
    ------
    TypeError, ValueError
        As for :func:`clip_by_global_norm`.

    Notes
    -----
    If an entry or `threshold` is a tensor of torch that requires grad, the results have a graph, as for
    :func:`clip_by_global_norm`.

    References
    ----------
    .. [1] https://optax.readthedocs.io/en/latest/api/transformations.html#optax.clip_by_block_rms

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> fastclip.clip_by_block_rms([np.array([3.0, 3.0]), np.array([0.5])], 1.0)
    [array([1., 1.]), array([0.5])]
    """
    if holds_traced(t_list, threshold):
        from fastclip._autodiff import differentiation_rules as rules

        return rules.clip_by_block_rms(t_list, threshold, out)
    if out is not None or not is_tensor_with_grad(threshold):
        try:
            return compiled.clip_by_block_rms(t_list, threshold, out)
        except _core.Recorded:
            pass
    from fastclip._autodiff import torch_rules

    return torch_rules.clip_by_block_rms(t_list, threshold, out)


@overload
def adaptive_clip(
    params: Tensors,
    grads: NamedTupleT,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: None = None,
) -> NamedTupleT: ...
@overload
def adaptive_clip(  # type: ignore[overload-overlap]
    params: Tensors,
    grads: Flat[LeafT],
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: None = None,
) -> list[LeafT]: ...
@overload
def adaptive_clip(
    params: Tensors,
    grads: FlatArrayLikes,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: None = None,
) -> list[npt.NDArray[Any]]: ...
@overload
def adaptive_clip(  # type: ignore[overload-overlap]
    params: Tensors,
    grads: ContainerT,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: None = None,
) -> ContainerT: ...
@overload
def adaptive_clip(
    params: Tensors,
    grads: Mapping[KeyT, ArrayLike],
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: None = None,
) -> Mapping[KeyT, npt.NDArray[Any]]: ...
@overload
def adaptive_clip(
    params: Tensors,
    grads: Tensors,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: NamedTupleT,
) -> NamedTupleT: ...
@overload
def adaptive_clip(
    params: Tensors,
    grads: Tensors,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: Flat[LeafT],
) -> list[LeafT]: ...
@overload
def adaptive_clip(
    params: Tensors,
    grads: Tensors,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: ContainerT,
) -> ContainerT: ...
def adaptive_clip(
    params: Any,
    grads: Any,
    clipping: Number = 0.01,
    eps: Number = 1e-3,
    *,
    axes: Axes = None,
    out: Any = None,
) -> Any:
    """Scale gradients so that the norm of each unit is at most a fraction of the norm of its parameters.

    This is adaptive gradient clipping [1]_ with the units of ``optax.adaptive_grad_clip`` [2]_: the gradient
    of a unit is scaled so that its norm is at most ``clipping * max(norm of its parameters, eps)``.

    Parameters
    ----------
    params : list, tuple, dict or nested container
        Parameters: tensors, as for :func:`clip_by_global_norm`.
    grads : container
        Gradients with the structure of `params`, each of the shape of its parameter; None for a parameter
        without a gradient.
    clipping : float, optional
        Largest ratio of the norm of a gradient to that of its parameters.
    eps : float, optional
        Smallest norm of parameters that is used, so that parameters that are 0 can grow.
    axes : int or sequence of int, optional
        Axes that a unit spans, for every tensor. None selects those of optax: all axes of a scalar or vector,
        axis 0 of a tensor of two or three dimensions (weights of shape (input, output)), and all axes but
        the last of a tensor of four or five (kernels of shape (height, width, input, output)).
    out : container, optional
        Tensors that the results are written to, as for :func:`clip_by_global_norm`; ``out=grads`` clips in
        place.

    Returns
    -------
    list or container
        Clipped gradients, as the first result of :func:`clip_by_global_norm`. A unit with a NaN or an
        infinity in its gradient, or a NaN in its parameters, becomes NaN everywhere.

    Raises
    ------
    TypeError
        If an entry is not an array, or a gradient is an :class:`IndexedSlices`.
    ValueError
        If structures or shapes differ, a tensor has more than five dimensions and `axes` is None, or
        `clipping` or `eps` is negative.

    Notes
    -----
    If a gradient, a parameter, `clipping` or `eps` is a tensor of torch that requires grad, the results have
    a graph, as for :func:`clip_by_global_norm`; call the function under ``torch.no_grad()`` to have none.

    References
    ----------
    .. [1] A. Brock, S. De, S. L. Smith, K. Simonyan, "High-performance large-scale image recognition
       without normalization", 2021.
    .. [2] https://optax.readthedocs.io/en/latest/api/transformations.html#optax.adaptive_grad_clip

    Examples
    --------
    >>> import numpy as np
    >>> import fastclip
    >>> w = np.array([[3.0, 0.0], [4.0, 0.0]])
    >>> g = np.array([[0.3, 0.3], [0.4, 0.4]])
    >>> fastclip.adaptive_clip([w], [g], clipping=0.01)
    [array([[3.e-02, 6.e-06],
           [4.e-02, 8.e-06]])]
    """
    if holds_traced(grads, clipping, eps) or holds_traced(params):
        from fastclip._autodiff import differentiation_rules as rules

        return rules.adaptive_clip(params, grads, clipping, eps, axes, out)
    if out is not None or not is_tensor_with_grad(clipping, eps):
        try:
            return compiled.adaptive_clip(params, grads, clipping, eps, axes, out)
        except _core.Recorded:
            pass
    from fastclip._autodiff import torch_rules

    return torch_rules.adaptive_clip(params, grads, clipping, eps, axes, out)
