"""Differentiation rules of the clip functions for autograd.

Values are those of the compiled functions, and gradients those of `_autodiff/derivatives.py`, whose formulas
are computed with autograd's functions here, so that gradients can be differentiated again. This module
imports autograd, and is imported only when a traced value is passed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, as_number, describe, is_array_like
from fastclip._arguments.axes import reduced_axes, unit_axes
from fastclip._arguments.bounds import value_bound
from fastclip._arguments.tree import Tree, check_same_structure, flatten
from fastclip._autodiff.derivatives import (
    NormDerivative,
    ScalingDerivative,
    clamp_sources,
    differentiable_order,
)
from fastclip._autodiff.traced import is_tensor_with_grad
from fastclip._compiled import clip, norms, unitwise
from fastclip._variables.variable import Variable

__all__ = [
    "adaptive_clip",
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
    "tensor_norms",
]

anp: Any = importlib.import_module("autograd.numpy")
_extend: Any = importlib.import_module("autograd.extend")
_tracer: Any = importlib.import_module("autograd.tracer")
#: Returns the array or number inside a box of autograd.
getval: Callable[[Any], Any] = _tracer.getval


# Functions -------------------------------------------------------------------------------------


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_value` for traced arguments."""
    _check_absent(out=out)
    x, lower, upper = _tensor(t, "t"), _bound(clip_value_min), _bound(clip_value_max)
    raw, low, high = getval(x), getval(lower), getval(upper)
    clipped = clip.clip_by_value(raw, low, high, None)
    array = as_array(raw, "t")
    low = value_bound(low, array.dtype.name, array.shape, "clip_value_min")
    high = value_bound(high, array.dtype.name, array.shape, "clip_value_max")
    with np.errstate(invalid="ignore"):
        is_low, is_high = clamp_sources(_OPERATIONS, array, low, high)
    return _clamp(clipped, ~(is_low | is_high), is_low, is_high, x, lower, upper)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any, ord: float, out: Any) -> Any:
    """:func:`fastclip.clip_by_norm` for traced arguments."""
    _check_absent(out=out)
    x, bound = _tensor(t, "t"), _bound(clip_norm)
    clipped = clip.clip_by_norm(getval(x), getval(bound), axes, ord, None)
    reduced = reduced_axes(axes, clipped.ndim)
    norm = _norm(_NormKind(differentiable_order(ord), tuple(reduced or [True] * clipped.ndim)), x)
    return _scale(clipped, math.nan, x, norm, bound)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_average_norm` for traced arguments."""
    _check_absent(out=out)
    x, bound = _tensor(t, "t"), _bound(clip_norm)
    clipped = clip.clip_by_average_norm(getval(x), getval(bound), None)
    norm = _norm(_NormKind(2.0, (True,) * clipped.ndim), x)
    return _scale(clipped, math.nan, x, norm, bound * float(clipped.size))


def clip_by_global_norm(
    t_list: Any,
    clip_norm: Any,
    use_norm: Any,
    ord: float,
    out: Any,
    on_nonfinite: Any,
    comm: Any,
    norms_out: Any,
) -> tuple[Any, Any]:
    """:func:`fastclip.clip_by_global_norm` for traced arguments."""
    _check_absent(out=out, comm=comm, norms=norms_out)
    tree = _flatten(t_list, "t_list")
    bound, norm = _bound(clip_norm), _bound(use_norm)
    raw = [getval(leaf) for leaf in tree.leaves]
    clipped, _ = clip.clip_by_global_norm(
        raw, getval(bound), getval(norm), ord, None, on_nonfinite, None, None
    )
    if norm is None:
        norm = _norm(
            _NormKind(differentiable_order(ord), None), *[leaf for leaf in tree.leaves if leaf is not None]
        )
    nonfinite_factor = 0.0 if on_nonfinite == "zero" else math.nan
    results = [
        None if leaf is None else _scale(value, nonfinite_factor, leaf, norm, bound)
        for value, leaf in zip(clipped, tree.leaves, strict=True)
    ]
    return tree.unflatten(results), (norm if use_norm is None else use_norm)


def global_norm(t_list: Any, ord: float, comm: Any) -> Any:
    """:func:`fastclip.global_norm` for traced arguments."""
    _check_absent(comm=comm)
    tree = _flatten(t_list, "t_list")
    return _norm(
        _NormKind(differentiable_order(ord), None), *[leaf for leaf in tree.leaves if leaf is not None]
    )


def tensor_norms(t_list: Any, ord: float) -> Any:
    """:func:`fastclip.tensor_norms` for traced arguments."""
    tree = _flatten(t_list, "t_list")
    leaves = [leaf for leaf in tree.leaves if leaf is not None]
    dtype = norms.tensor_norms([getval(leaf) for leaf in leaves], ord).dtype
    traced = [_norm(_NormKind(differentiable_order(ord), None), leaf) for leaf in leaves]
    return _cast(anp.array(traced), dtype)


def clip_by_block_rms(t_list: Any, threshold: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_block_rms` for traced arguments."""
    _check_absent(out=out)
    tree, bound = _flatten(t_list, "t_list"), _bound(threshold)
    clipped = unitwise.clip_by_block_rms([getval(leaf) for leaf in tree.leaves], getval(bound), None)
    results: list[Any] = []
    for value, leaf in zip(clipped, tree.leaves, strict=True):
        if leaf is None:
            results.append(None)
            continue
        norm = _norm(_NormKind(2.0, (True,) * value.ndim), leaf)
        results.append(_scale(value, math.nan, leaf, norm, bound * math.sqrt(value.size)))
    return tree.unflatten(results)


def adaptive_clip(params: Any, grads: Any, clipping: Any, eps: Any, axes: Any, out: Any) -> Any:
    """:func:`fastclip.adaptive_clip` for traced arguments."""
    _check_absent(out=out)
    tree, weights = _flatten(grads, "grads"), _flatten(params, "params")
    check_same_structure(weights, tree)
    ratio, smallest_norm = _bound(clipping), _bound(eps)
    clipped = unitwise.adaptive_clip(
        [getval(leaf) for leaf in weights.leaves],
        [getval(leaf) for leaf in tree.leaves],
        getval(ratio),
        getval(smallest_norm),
        axes,
        None,
    )
    results: list[Any] = []
    for value, weight, leaf in zip(clipped, weights.leaves, tree.leaves, strict=True):
        if leaf is None:
            results.append(None)
            continue
        kind = _NormKind(2.0, tuple(unit_axes(value.shape, axes, "grads")))
        bound = anp.maximum(_norm(kind, weight), smallest_norm) * ratio
        results.append(_scale(value, math.nan, leaf, _norm(kind, leaf), bound))
    return tree.unflatten(results)


# Arguments -------------------------------------------------------------------------------------


def _check_absent(**arguments: Any) -> None:
    """Raises TypeError if an argument that has no derivative is passed."""
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(f"{name}= takes no part in a differentiation; leave it out where autograd traces")


def _bound(value: Any) -> Any:
    """Returns a bound for computation: the traced value of a variable, a box, a number or an array."""
    if isinstance(value, Variable):
        return value.value
    if value is None or _tracer.isbox(value) or isinstance(value, (int, float, str)):
        return value
    return as_array(value, "a bound") if is_array_like(value) else as_number(value, "a bound")


def _tensor(value: Any, name: str) -> Any:
    """Returns a tensor for computation: the traced value of a variable, a box or an array."""
    if isinstance(value, Variable):
        value = value.value
    if is_tensor_with_grad(value):
        raise TypeError(
            f"{name} is a torch tensor that requires grad, where autograd traces another argument"
        )
    if not _tracer.isbox(value):
        return as_array(value, name)
    raw = getval(value)
    if np.asarray(raw).dtype.kind == "c":
        raise TypeError(f"{name} is {describe(raw)}; complex tensors are not differentiated")
    return value


def _flatten(container: Any, argument: str) -> Tree:
    if _tracer.isbox(container) and not isinstance(container, Variable):
        raw = getval(container)
        # autograd boxes a list or dict with respect to which it differentiates as one argument.
        if isinstance(raw, (list, tuple)):
            container = [container[i] for i in range(len(raw))]
        elif isinstance(raw, dict):
            container = {key: container[key] for key in raw}
        else:
            raise TypeError(f"{argument} is {describe(raw)}; it takes a list (or dict, or tuple) of arrays")
    return flatten(container, argument, _tensor)


# Norms -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NormKind:
    """Order and axes of a norm.

    Attributes
    ----------
    order : float
        Order of the norm.
    reduced : tuple of bool or None
        Whether each axis of the only tensor is reduced, to an axis of length 1; None for one number over all
        tensors.
    """

    order: float
    reduced: tuple[bool, ...] | None

    def value(self, tensors: Sequence[Any]) -> Any:
        """Returns the norm of arrays."""
        if self.reduced is None:
            return norms.global_norm(list(tensors), self.order, None)
        return norms.slice_norms(as_array(tensors[0], "t"), list(self.reduced), self.order)

    def largest_count(self, derivative: NormDerivative, tensors: Sequence[Any]) -> Any:
        """Returns the number of largest elements, which share the gradient of the infinite order."""
        if self.order != math.inf:
            return 1
        is_largest = [derivative.is_largest(x) for x in tensors]
        if self.reduced is None:
            return max(sum(int(mask.sum()) for mask in is_largest), 1)
        axes = tuple(i for i, reduced in enumerate(self.reduced) if reduced)
        return np.maximum(is_largest[0].sum(axis=axes, keepdims=True), 1)


@_extend.primitive  # type: ignore[untyped-decorator]
def _norm(kind: _NormKind, *tensors: Any) -> Any:
    """Returns a norm, by the compiled functions."""
    return kind.value(tensors)


def _norm_vjp(argnums: Sequence[int], norm: Any, args: tuple[Any, ...], _: Any) -> Callable[[Any], list[Any]]:
    kind, *tensors = args
    positions = [argnum - 1 for argnum in argnums]

    def vjp(g: Any) -> list[Any]:
        derivative = NormDerivative(_OPERATIONS, kind.order, norm)
        count = kind.largest_count(derivative, tensors)
        with np.errstate(invalid="ignore"):
            products = [derivative.product(g, tensors[i], count) for i in positions]
        return [_cast(product, _dtype(tensors[i])) for i, product in zip(positions, products, strict=True)]

    return vjp


_extend.defvjp_argnums(_norm, _norm_vjp)


# Scaling ---------------------------------------------------------------------------------------


@_extend.primitive  # type: ignore[untyped-decorator]
def _scale(clipped: Any, nonfinite_factor: float, x: Any, norm: Any, bound: Any) -> Any:
    """``x * bound / max(norm, bound)``, whose value the compiled function has computed as `clipped`."""
    return clipped


def _scale_vjp_x(
    _: Any, clipped: Any, nonfinite_factor: float, x: Any, norm: Any, bound: Any
) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        scaling = ScalingDerivative(_OPERATIONS, norm, bound, nonfinite_factor)
        return _cast(scaling.tensor_product(g), clipped.dtype)

    return vjp


def _scale_vjp_norm(
    _: Any, clipped: Any, nonfinite_factor: float, x: Any, norm: Any, bound: Any
) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        scaling = ScalingDerivative(_OPERATIONS, norm, bound, nonfinite_factor)
        return _unbroadcast(scaling.norm_product(g, x), norm)

    return vjp


def _scale_vjp_bound(
    _: Any, clipped: Any, nonfinite_factor: float, x: Any, norm: Any, bound: Any
) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        scaling = ScalingDerivative(_OPERATIONS, norm, bound, nonfinite_factor)
        return _unbroadcast(scaling.bound_product(g, x), bound)

    return vjp


_extend.defvjp(_scale, _scale_vjp_x, _scale_vjp_norm, _scale_vjp_bound, argnums=(2, 3, 4))


# Clamping --------------------------------------------------------------------------------------


@_extend.primitive  # type: ignore[untyped-decorator]
def _clamp(clipped: Any, is_x: Any, is_low: Any, is_high: Any, x: Any, low: Any, high: Any) -> Any:
    """``max(min(x, high), low)``, whose value the compiled function has computed as `clipped`.

    The masks tell which of `x`, `low` and `high` each element comes from.
    """
    return clipped


def _clamp_vjp(mask: int, source: int) -> Callable[..., Callable[[Any], Any]]:
    """Returns the rule for an argument of :func:`_clamp`, by the positions of its mask and of itself."""

    def make_vjp(_: Any, *args: Any) -> Callable[[Any], Any]:
        return lambda g: _unbroadcast(anp.where(args[mask], g, 0.0), args[source])

    return make_vjp


_extend.defvjp(_clamp, _clamp_vjp(1, 4), _clamp_vjp(2, 5), _clamp_vjp(3, 6), argnums=(4, 5, 6))


# Operations ------------------------------------------------------------------------------------


class _AutogradOperations:
    """The operations of autograd, as :class:`fastclip._autodiff.derivatives.Operations`."""

    where = staticmethod(anp.where)
    abs = staticmethod(anp.abs)
    sign = staticmethod(anp.sign)
    minimum = staticmethod(anp.minimum)
    isfinite = staticmethod(anp.isfinite)
    constant = staticmethod(getval)

    @staticmethod
    def as_float64(x: Any) -> Any:
        return _cast(x if _tracer.isbox(x) else np.asarray(x), np.float64)


_OPERATIONS = _AutogradOperations()


# Types and shapes ------------------------------------------------------------------------------


def _dtype(value: Any) -> np.dtype[Any]:
    return np.asarray(getval(value)).dtype


def _cast(value: Any, dtype: npt.DTypeLike) -> Any:
    return value if _dtype(value) == dtype else value.astype(dtype)


def _unbroadcast(gradient: Any, argument: Any) -> Any:
    """Returns the gradient of a broadcast argument: the sum over the axes along which it was repeated."""
    shape = np.shape(getval(argument))
    extra = anp.ndim(gradient) - len(shape)
    if extra > 0:
        gradient = anp.sum(gradient, axis=tuple(range(extra)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and anp.shape(gradient)[i] != 1)
    if repeated:
        gradient = anp.sum(gradient, axis=repeated, keepdims=True)
    return _cast(gradient, _dtype(argument)) if _dtype(argument).kind == "f" else gradient
