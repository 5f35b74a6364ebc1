"""How the clip functions are differentiated under autograd.

Values are those of the compiled functions. Gradients are those that TensorFlow has registered for the
operations that its clip functions are made of [1]_, and at a bound too they go TensorFlow's way:

- clipping by value passes the gradient where the element is within the bounds, the bounds included, and
  else gives it to the bound that took the element's place;
- ``y = x * c / max(n, c)`` has ``dy/dx = c/n (I - u d^T)`` where ``n >= c``, with ``u = x / n`` and ``d`` the
  gradient of the norm, which is ``u`` too for order 2; and ``dy/dx = I`` elsewhere.

A tensor of zeros is not clipped, so that the gradient there is the identity; that of the norm is taken
for 0. (TensorFlow has the same for ``clip_by_norm``, and NaN for the global norm and the average norm.)

Formulas are written with autograd's functions and differentiate again. This module imports autograd, and
is imported only where a traced value has come.

References
----------
.. [1] https://github.com/tensorflow/tensorflow/blob/master/tensorflow/python/ops/clip_ops.py
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
from fastclip._arguments.order import parse_order
from fastclip._arguments.tree import Tree, check_same_structure, flatten
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
getval: Callable[[Any], Any] = _tracer.getval


# The functions ---------------------------------------------------------------------------------


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_value`, differentiably."""
    _refuse(out=out)
    x, lower, upper = _tensor(t, "t"), _read(clip_value_min), _read(clip_value_max)
    raw, low, high = getval(x), getval(lower), getval(upper)
    exact = clip.clip_by_value(raw, low, high, None)
    array = as_array(raw, "t")
    low = value_bound(low, array, "clip_value_min")
    high = value_bound(high, array, "clip_value_max")
    # As max(min(t, high), low) decides where its arguments are equal.
    with np.errstate(invalid="ignore"):
        to_low = ~(np.minimum(array, high) >= low)
        to_high = ~to_low & ~(array <= high)
    return _chosen(exact, ~(to_low | to_high), to_low, to_high, x, lower, upper)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any, ord: float, out: Any) -> Any:
    """:func:`fastclip.clip_by_norm`, differentiably."""
    _refuse(out=out)
    x, bound = _tensor(t, "t"), _read(clip_norm)
    exact = clip.clip_by_norm(getval(x), getval(bound), axes, ord, None)
    reduced = reduced_axes(axes, exact.ndim)
    norm = _norm(_Measure(_order(ord), tuple(reduced or [True] * exact.ndim)), x)
    return _scaled(exact, math.nan, x, norm, bound)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_average_norm`, differentiably."""
    _refuse(out=out)
    x, bound = _tensor(t, "t"), _read(clip_norm)
    exact = clip.clip_by_average_norm(getval(x), getval(bound), None)
    norm = _norm(_Measure(2.0, (True,) * exact.ndim), x)
    return _scaled(exact, math.nan, x, norm, bound * float(exact.size))


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
    """:func:`fastclip.clip_by_global_norm`, differentiably."""
    _refuse(out=out, comm=comm, norms=norms_out)
    tree = _flatten(t_list, "t_list")
    bound, known = _read(clip_norm), _read(use_norm)
    raw = [getval(leaf) for leaf in tree.leaves]
    exact, _ = clip.clip_by_global_norm(
        raw, getval(bound), getval(known), ord, None, on_nonfinite, None, None
    )
    norm = known
    if known is None:
        norm = _norm(_Measure(_order(ord), None), *[leaf for leaf in tree.leaves if leaf is not None])
    broken = 0.0 if on_nonfinite == "zero" else math.nan
    results = [
        None if leaf is None else _scaled(value, broken, leaf, norm, bound)
        for value, leaf in zip(exact, tree.leaves, strict=True)
    ]
    return tree.unflatten(results), (norm if use_norm is None else use_norm)


def global_norm(t_list: Any, ord: float, comm: Any) -> Any:
    """:func:`fastclip.global_norm`, differentiably."""
    _refuse(comm=comm)
    tree = _flatten(t_list, "t_list")
    return _norm(_Measure(_order(ord), None), *[leaf for leaf in tree.leaves if leaf is not None])


def tensor_norms(t_list: Any, ord: float) -> Any:
    """:func:`fastclip.tensor_norms`, differentiably."""
    tree = _flatten(t_list, "t_list")
    leaves = [leaf for leaf in tree.leaves if leaf is not None]
    exact = norms.tensor_norms([getval(leaf) for leaf in leaves], ord)
    each = [_norm(_Measure(_order(ord), None), leaf) for leaf in leaves]
    return _cast(anp.array(each), exact.dtype)


def clip_by_block_rms(t_list: Any, threshold: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_block_rms`, differentiably."""
    _refuse(out=out)
    tree, bound = _flatten(t_list, "t_list"), _read(threshold)
    exact = unitwise.clip_by_block_rms([getval(leaf) for leaf in tree.leaves], getval(bound), None)
    results = [
        None
        if leaf is None
        else _scaled(
            value,
            math.nan,
            leaf,
            _norm(_Measure(2.0, (True,) * value.ndim), leaf),
            bound * math.sqrt(value.size),
        )
        for value, leaf in zip(exact, tree.leaves, strict=True)
    ]
    return tree.unflatten(results)


def adaptive_clip(params: Any, grads: Any, clipping: Any, eps: Any, axes: Any, out: Any) -> Any:
    """:func:`fastclip.adaptive_clip`, differentiably."""
    _refuse(out=out)
    tree, weights = _flatten(grads, "grads"), _flatten(params, "params")
    check_same_structure(weights, tree)
    ratio, least = _read(clipping), _read(eps)
    exact = unitwise.adaptive_clip(
        [getval(leaf) for leaf in weights.leaves],
        [getval(leaf) for leaf in tree.leaves],
        getval(ratio),
        getval(least),
        axes,
        None,
    )
    results: list[Any] = []
    for value, weight, leaf in zip(exact, weights.leaves, tree.leaves, strict=True):
        if leaf is None:
            results.append(None)
            continue
        unit = _Measure(2.0, tuple(unit_axes(value.shape, axes, "grads")))
        bound = anp.maximum(_norm(unit, weight), least) * ratio
        results.append(_scaled(value, math.nan, leaf, _norm(unit, leaf), bound))
    return tree.unflatten(results)


# Arguments -------------------------------------------------------------------------------------


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(f"{name}= takes no part in a differentiation; leave it out where autograd traces")


def _read(value: Any) -> Any:
    """A bound as it is computed with: the traced value of a variable, arrays of anything else."""
    if isinstance(value, Variable):
        return value.value
    return value if value is None or _tracer.isbox(value) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (int, float, str)):
        return value
    return as_array(value, "a bound") if is_array_like(value) else as_number(value, "a bound")


def _tensor(value: Any, name: str) -> Any:
    """A tensor as it is differentiated by."""
    if isinstance(value, Variable):
        value = value.value
    if not _tracer.isbox(value):
        return as_array(value, name)
    raw = getval(value)
    if np.asarray(raw).dtype.kind == "c":
        raise TypeError(f"{name} is {describe(raw)}; complex tensors are not differentiated")
    return value


def _flatten(container: Any, argument: str) -> Tree:
    if _tracer.isbox(container) and not isinstance(container, Variable):
        raw = getval(container)
        # What autograd makes of a list that is differentiated by.
        if isinstance(raw, (list, tuple)):
            container = [container[i] for i in range(len(raw))]
        elif isinstance(raw, dict):
            container = {key: container[key] for key in raw}
        else:
            raise TypeError(f"{argument} is {describe(raw)}; it takes a list (or dict, or tuple) of arrays")
    return flatten(container, argument, _tensor)


def _order(ord: float) -> float:
    order = parse_order(ord)
    if order < 1:
        raise TypeError(f"ord is {ord!r}; norms of orders below 1 are not differentiated")
    return order


# Norms -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measure:
    """Which norm is taken.

    Attributes
    ----------
    order : float
        Of the norm.
    reduced : tuple of bool or None
        Whether each axis of the one tensor is reduced, to an axis of length 1; or None, and the norm is one
        number over all tensors.
    """

    order: float
    reduced: tuple[bool, ...] | None

    def __call__(self, tensors: Sequence[Any]) -> Any:
        if self.reduced is None:
            return norms.global_norm(list(tensors), self.order, None)
        array = as_array(tensors[0], "t")
        return norms.slice_norms(array, list(self.reduced), self.order)

    def directions(self, tensors: Sequence[Any], norm: Any, which: Sequence[int]) -> list[Any]:
        """The gradient of the norm by some of the tensors."""
        raw_norm = np.asarray(getval(norm), np.float64)
        positive = raw_norm != 0
        norm = anp.where(positive, _wide(norm), 1.0)
        if self.order == 2:
            return [tensors[i] / norm for i in which]
        if self.order == math.inf:
            # Elements that are equally large have equal parts, as in JAX and torch.
            largest = [(np.abs(getval(x)) == raw_norm) & positive for x in tensors]
            if self.reduced is None:
                number: Any = max(sum(int(mask.sum()) for mask in largest), 1)
            else:
                axes = tuple(i for i, reduced in enumerate(self.reduced) if reduced)
                number = np.maximum(largest[0].sum(axis=axes, keepdims=True), 1)
            return [anp.sign(tensors[i]) * (largest[i] / number) for i in which]
        signs = [anp.sign(tensors[i]) for i in which]
        if self.order == 1:
            return signs
        powers = [(anp.abs(tensors[i]) / norm) ** (self.order - 1) for i in which]
        return [sign * power for sign, power in zip(signs, powers, strict=True)]


@_extend.primitive  # type: ignore[untyped-decorator]
def _norm(measure: _Measure, *tensors: Any) -> Any:
    return measure(tensors)


def _norm_vjp(argnums: Sequence[int], norm: Any, args: tuple[Any, ...], _: Any) -> Callable[[Any], list[Any]]:
    measure, *tensors = args
    which = [argnum - 1 for argnum in argnums]

    def vjp(g: Any) -> list[Any]:
        # Where nothing comes in nothing goes out, whatever the tensors hold.
        absent = np.asarray(getval(g)) == 0
        with np.errstate(invalid="ignore"):
            found = [g * direction for direction in measure.directions(tensors, norm, which)]
        return [
            _cast(anp.where(absent, 0.0, gradient), _dtype(tensors[i]))
            for i, gradient in zip(which, found, strict=True)
        ]

    return vjp


_extend.defvjp_argnums(_norm, _norm_vjp)


# Scaling ---------------------------------------------------------------------------------------


@_extend.primitive  # type: ignore[untyped-decorator]
def _scaled(exact: Any, broken: float, x: Any, norm: Any, bound: Any) -> Any:
    """``x * bound / max(norm, bound)``, of which the compiled function has given the value already."""
    return exact


class _Scale:
    """The factor of :func:`_scaled`, and where it clips."""

    def __init__(self, norm: Any, bound: Any, broken: float) -> None:
        raw_norm, raw_bound = np.asarray(getval(norm), np.float64), np.asarray(getval(bound), np.float64)
        finite = np.isfinite(raw_norm)
        self.bounded = raw_bound >= 0
        self.clips = finite & (raw_norm > 0) & (raw_norm >= raw_bound)
        # Where nothing is clipped the quotient is 1 / 1, so that no derivative of it is NaN.
        self.norm = anp.where(self.clips, _wide(norm), 1.0)
        limit = anp.where(self.clips, anp.where(self.bounded, bound, 0.0), 1.0)
        self.factor = anp.where(finite, limit / self.norm, broken)


def _scaled_by_x(_: Any, exact: Any, broken: float, x: Any, norm: Any, bound: Any) -> Callable[[Any], Any]:
    return lambda g: _cast(g * _Scale(norm, bound, broken).factor, exact.dtype)


def _scaled_by_norm(_: Any, exact: Any, broken: float, x: Any, norm: Any, bound: Any) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        scale = _Scale(norm, bound, broken)
        slope = anp.where(scale.clips, -scale.factor * g * (x / scale.norm), 0.0)
        return _summed_to(slope, norm)

    return vjp


def _scaled_by_bound(
    _: Any, exact: Any, broken: float, x: Any, norm: Any, bound: Any
) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        scale = _Scale(norm, bound, broken)
        slope = anp.where(scale.clips & scale.bounded, g * (x / scale.norm), 0.0)
        return _summed_to(slope, bound)

    return vjp


_extend.defvjp(_scaled, _scaled_by_x, _scaled_by_norm, _scaled_by_bound, argnums=(2, 3, 4))


# Choosing --------------------------------------------------------------------------------------


@_extend.primitive  # type: ignore[untyped-decorator]
def _chosen(exact: Any, to_x: Any, to_low: Any, to_high: Any, x: Any, low: Any, high: Any) -> Any:
    """``max(min(x, high), low)``, of which the compiled function has given the value already."""
    return exact


def _chosen_from(mask: int, source: int) -> Callable[..., Callable[[Any], Any]]:
    def maker(_: Any, *args: Any) -> Callable[[Any], Any]:
        return lambda g: _summed_to(anp.where(args[mask], g, 0.0), args[source])

    return maker


_extend.defvjp(_chosen, _chosen_from(1, 4), _chosen_from(2, 5), _chosen_from(3, 6), argnums=(4, 5, 6))


# Types and shapes ------------------------------------------------------------------------------


def _dtype(value: Any) -> np.dtype[Any]:
    return np.asarray(getval(value)).dtype


def _cast(value: Any, dtype: npt.DTypeLike) -> Any:
    return value if _dtype(value) == dtype else value.astype(dtype)


def _wide(value: Any) -> Any:
    """A number or an array as float64, in which gradients of narrower types are computed too."""
    return _cast(value if _tracer.isbox(value) else np.asarray(value), np.float64)


def _summed_to(value: Any, like: Any) -> Any:
    """Undo the broadcast of an argument, by summing over the axes that it was repeated along."""
    shape = np.shape(getval(like))
    extra = anp.ndim(value) - len(shape)
    if extra > 0:
        value = anp.sum(value, axis=tuple(range(extra)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and anp.shape(value)[i] != 1)
    if repeated:
        value = anp.sum(value, axis=repeated, keepdims=True)
    return _cast(value, _dtype(like)) if _dtype(like).kind == "f" else value
