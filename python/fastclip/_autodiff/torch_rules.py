"""Differentiation rules of the clip functions for torch.

Values are those of the compiled functions, and gradients those of `_autodiff/derivatives.py`, whose formulas
are computed with torch's functions here, so that gradients can be differentiated again. Each rule is a
``torch.autograd.Function``. Gradients are computed in float64, and rounded once to the dtype of the argument.

A function keeps for its backward pass what the gradients need, and no more: where nothing was clipped the
gradient is the identity, and no tensor is kept.

This module imports torch, and is imported only when a tensor is passed that requires grad.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, as_number, describe
from fastclip._arguments.axes import reduced_axes, unit_axes
from fastclip._arguments.bounds import is_one_number
from fastclip._arguments.tree import Tree, check_same_structure, flatten
from fastclip._autodiff.derivatives import (
    NormDerivative,
    ScalingDerivative,
    clamp_sources,
    differentiable_order,
)
from fastclip._autodiff.problem import import_engine
from fastclip._compiled import clip, norms, unitwise
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = [
    "adaptive_clip",
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
]

torch: Any = import_engine("torch", "torch")


# Functions -------------------------------------------------------------------------------------


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_value` for tensors that require grad."""
    _check_absent(out=out)
    x = _single(t)
    low, high = _bounds(clip_value_min, "clip_value_min"), _bounds(clip_value_max, "clip_value_max")
    operands = _operand(low), _operand(high)
    result = clip.clip_by_value(_in_place_of(t, _operand(x)), *operands, None)
    value = _values(result)
    _check_carries_graph(x)
    clamping = _Clamping(value, _rounded(low, x.dtype), _rounded(high, x.dtype))
    differentiated = [bound if _requires_grad(bound) else None for bound in (low, high)]
    return _in_place_of(t, _ClampFunction.apply(clamping, x, *differentiated))


def clip_by_norm(t: Any, clip_norm: Any, axes: Any, ord: float, out: Any) -> Any:
    """:func:`fastclip.clip_by_norm` for tensors that require grad."""
    _check_absent(out=out)
    order, axes = differentiable_order(ord), _read_axes(axes)
    x = _single(t)
    limit: Any
    if is_one_number(clip_norm):
        limit, bound = _number(clip_norm, "clip_norm")
    else:
        bound = _bounds(clip_norm, "clip_norm")
        limit = _operand(bound)
    result = clip.clip_by_norm(_in_place_of(t, _operand(x)), limit, axes, order, None)
    _check_carries_graph(x)
    if not _is_tensor(bound):
        bound = torch.from_numpy(bound.astype(np.float64))
    norm = _slice_norms(x, reduced_axes(axes, x.ndim), order)
    [clipped] = _scaled([x], [_values(result)], norm, bound)
    return _in_place_of(t, clipped)


def clip_by_average_norm(t: Any, clip_norm: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_average_norm` for tensors that require grad."""
    _check_absent(out=out)
    x = _single(t)
    limit, bound = _number(clip_norm, "clip_norm")
    result = clip.clip_by_average_norm(_in_place_of(t, _operand(x)), limit, None)
    _check_carries_graph(x)
    norm = _slice_norms(x, None, 2.0)
    [clipped] = _scaled([x], [_values(result)], norm, bound * x.numel())
    return _in_place_of(t, clipped)


def clip_by_global_norm(
    t_list: Any,
    clip_norm: Any,
    use_norm: Any,
    ord: float,
    out: Any,
    on_nonfinite: Any,
    comm: Any,
    norms: npt.NDArray[np.float64] | None,
) -> tuple[Any, Any]:
    """:func:`fastclip.clip_by_global_norm` for tensors that require grad."""
    _check_absent(out=out, comm=comm)
    order = differentiable_order(ord) if use_norm is None else ord
    leaves = _Leaves(t_list, "t_list")
    limit, bound = _number(clip_norm, "clip_norm")
    known, given = (None, None) if use_norm is None else _number(use_norm, "use_norm")
    returned, norm = clip.clip_by_global_norm(
        leaves.operands(), limit, known, order, None, on_nonfinite, None, norms
    )
    clipped = leaves.results(returned)
    nonfinite_factor = 0.0 if on_nonfinite == "zero" else math.nan
    if given is None:
        value = torch.tensor(float(norm), dtype=torch.float64)
        group_norm = _Norm(order, value, _largest_count(leaves.values, value, order))
        # Each result depends on every tensor, through the norm.
        cause = next((x for x in (*leaves.values, bound) if _requires_grad(x)), None)
        positions = [i for i in range(len(clipped)) if leaves.depends_on(i, cause)]
        tensors, values = [leaves.values[i] for i in positions], [clipped[i] for i in positions]
        results = _scaled(tensors, values, group_norm, bound, nonfinite_factor)
        for i, result in zip(positions, results, strict=True):
            clipped[i] = result
    else:
        given_norm = _Norm(None, given.detach())
        for i, x in enumerate(leaves.values):
            if leaves.depends_on(i, bound, given):
                [clipped[i]] = _scaled([x], [clipped[i]], given_norm, bound, nonfinite_factor, given)
    return leaves.container(clipped), (norm if use_norm is None else use_norm)


def clip_by_block_rms(t_list: Any, threshold: Any, out: Any) -> Any:
    """:func:`fastclip.clip_by_block_rms` for tensors that require grad."""
    _check_absent(out=out)
    leaves = _Leaves(t_list, "t_list")
    limit, bound = _number(threshold, "threshold")
    clipped = leaves.results(unitwise.clip_by_block_rms(leaves.operands(), limit, None))
    for i, x in enumerate(leaves.values):
        if leaves.depends_on(i, bound):
            norm = _slice_norms(x, None, 2.0)
            [clipped[i]] = _scaled([x], [clipped[i]], norm, bound * math.sqrt(x.numel()))
    return leaves.container(clipped)


def adaptive_clip(params: Any, grads: Any, clipping: Any, eps: Any, axes: Any, out: Any) -> Any:
    """:func:`fastclip.adaptive_clip` for tensors that require grad."""
    _check_absent(out=out)
    axes = _read_axes(axes)
    leaves, weights = _Leaves(grads, "grads"), _Leaves(params, "params")
    check_same_structure(weights.tree, leaves.tree)
    ratio_number, ratio = _number(clipping, "clipping")
    smallest_number, smallest = _number(eps, "eps")
    result = unitwise.adaptive_clip(
        weights.operands(), leaves.operands(), ratio_number, smallest_number, axes, None
    )
    clipped = leaves.results(result)
    for i, (x, weight) in enumerate(zip(leaves.values, weights.values, strict=True)):
        if leaves.depends_on(i, weight, ratio, smallest):
            unit = unit_axes(tuple(x.shape), axes, leaves.name(i))
            weight_norm = _slice_norms(weight, unit, 2.0)
            norm_value = weight_norm.value
            if _requires_grad(weight):
                norm_value = _NormFunction.apply(weight_norm, weight)
            bound = torch.maximum(norm_value, smallest)
            # An infinite ratio clips nothing; the product with it would make gradients of 0 NaN.
            bound = bound * 0.0 + ratio if ratio_number == math.inf else bound * ratio
            [clipped[i]] = _scaled([x], [clipped[i]], _slice_norms(x, unit, 2.0), bound)
    return leaves.container(clipped)


# Arguments -------------------------------------------------------------------------------------


def _check_absent(**arguments: Any) -> None:
    """Raises TypeError if an argument that has no derivative is passed."""
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(
                f"{name}= takes no part in a differentiation; leave it out where tensors require grad, or "
                "call the function under torch.no_grad()"
            )


def _is_tensor(value: Any) -> bool:
    return issubclass(type(value), torch.Tensor)


def _requires_grad(*values: Any) -> bool:
    return any(issubclass(type(value), torch.Tensor) and value.requires_grad for value in values)


def _resolved(value: Any) -> Any:
    """Returns the tensor that a Variable reads as while torch differentiates a loss; other values as given.

    A tensor of a subclass that overrides torch's functions becomes one of the base class, so that no function
    of the subclass is called; the graph leads to the original.
    """
    if isinstance(value, Variable):
        traced = value.value
        return traced if _is_tensor(traced) else value
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter or not _is_tensor(value):
        return value
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.as_subclass(value, torch.Tensor)


def _check_differentiable(x: Any, name: str) -> None:
    """Raises TypeError for tensors whose results would have no graph."""
    if x.layout is not torch.strided:
        raise TypeError(
            f"{name} is a tensor of layout {x.layout}; only strided tensors are differentiated: pass "
            ".to_dense() of it, or call the function under torch.no_grad()"
        )
    if x.is_complex():
        raise TypeError(
            f"{name} is a tensor of dtype {x.dtype} and shape {tuple(x.shape)}; complex tensors are not "
            "differentiated: call the function under torch.no_grad()"
        )


def _error_without_graph(names: str) -> TypeError:
    return TypeError(
        f"{names} would give a result without a graph, although an argument that it depends on requires "
        "grad: pass it as a torch tensor, or call the function under torch.no_grad()"
    )


def _single(t: Any) -> Any:
    """Returns the tensor of a function that clips one, or the values of IndexedSlices."""
    x = _resolved(_values(t))
    if _is_tensor(x):
        _check_differentiable(x, "t.values" if isinstance(t, IndexedSlices) else "t")
    return x


def _check_carries_graph(x: Any) -> None:
    if not _is_tensor(x):
        raise _error_without_graph(f"t, which is {describe(x)},")


def _values(value: Any) -> Any:
    return value.values if isinstance(value, IndexedSlices) else value


def _in_place_of(t: Any, value: Any) -> Any:
    """Returns a value as IndexedSlices if `t` is one, else as it is."""
    return t._with_values(value) if isinstance(t, IndexedSlices) else value


def _number(value: Any, name: str) -> tuple[float, Any]:
    """Returns an argument that is one number, and a tensor of it in float64, with its graph if it has one.

    As the functions of several tensors share the tensor, gradients are added up before they are rounded.
    """
    value = _resolved(value)
    if not _requires_grad(value):
        number = as_number(value, name)
        return number, torch.tensor(number, dtype=torch.float64)
    return as_number(value.detach(), name), _as_float64(value)


def _bounds(value: Any, name: str) -> Any:
    """Returns a number or a tensor as it is, and anything else as an array of its own memory."""
    value = _resolved(value)
    if _is_tensor(value) or isinstance(value, (int, float)):
        return value
    return np.array(as_array(value, name))


def _read_axes(axes: Any) -> Any:
    """Returns axes such that they can be read more than once."""
    return tuple(axes) if isinstance(axes, Iterable) else axes


class _Leaves:
    """Entries of a container.

    Parameters
    ----------
    container : container
        Tensors of torch, and other arrays, for which arrays without a graph are returned.
    argument : str
        Name of the argument in error messages.

    Attributes
    ----------
    tree : Tree
        The flattened container.
    values : list
        A tensor of torch, another array, or None for each entry; the values of IndexedSlices.
    """

    def __init__(self, container: Any, argument: str) -> None:
        self.tree: Tree = flatten(container, argument, _as_given)
        self.values = [_resolved(leaf) for leaf in self.tree.leaves]
        self._without_graph: list[str] = []
        for i, x in enumerate(self.values):
            if _requires_grad(x):
                _check_differentiable(x, self.name(i))

    def name(self, i: int) -> str:
        """Returns the name of an entry in error messages."""
        return self.tree.names[i]

    def operands(self) -> Any:
        """Returns a container of the same structure for the compiled functions, without graphs."""
        return self.tree.unflatten([_operand(x) for x in self.values])

    def results(self, container: Any) -> list[Any]:
        """Returns the entries of a container that a compiled function returned for the operands."""
        return flatten(container, "results", _as_given).leaves

    def depends_on(self, i: int, *others: Any) -> bool:
        """Whether the result for an entry gets a graph, as the entry or another value requires grad."""
        x = self.values[i]
        if x is None or not _requires_grad(x, *others):
            return False
        if not _is_tensor(x):
            self._without_graph.append(self.name(i))
            return False
        _check_differentiable(x, self.name(i))
        return True

    def container(self, results: list[Any]) -> Any:
        """Returns a container of the results.

        Raises
        ------
        TypeError
            If no result has a graph, because those that should have one are not tensors of torch.
        """
        if self._without_graph and not _requires_grad(*results):
            raise _error_without_graph(self._without_graph[0])
        return self.tree.unflatten(results)


def _as_given(value: Any, _: str) -> Any:
    return value


# Compiled functions ----------------------------------------------------------------------------


def _operand(x: Any) -> Any:
    """Returns an argument for the compiled functions, without a graph."""
    return x.detach() if _is_tensor(x) else x


def _rounded(bound: Any, dtype: Any) -> Any:
    """Returns a bound of :func:`fastclip.clip_by_value`, as it is rounded to the dtype of the tensor."""
    limit = _operand(bound)
    zeros = torch.zeros(np.shape(limit), dtype=dtype)
    return clip.clip_by_value(zeros, limit, limit, None)


def _slice_norms(x: Any, reduced: list[bool] | None, order: float) -> _Norm:
    """Returns the norm of each slice of a tensor; of all axes, if `reduced` is None."""
    reduced = [True] * x.ndim if reduced is None else reduced
    value = torch.from_numpy(norms.slice_norms(_operand(x), reduced, order))
    return _Norm(order, value, _largest_count([x], value, order))


# Norms -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm that the compiled functions have computed.

    Attributes
    ----------
    order : float or None
        Order of the norm; None if the caller passed the norm, so that it does not depend on the tensors.
    value : Tensor of float64
        The norm, or the norm of each slice, without a graph.
    count : int or Tensor
        For the infinite order, the number of largest elements, see :class:`NormDerivative`.
    """

    order: float | None
    value: Any
    count: Any = 1


def _largest_count(leaves: Sequence[Any], norm: Any, order: float) -> Any:
    """Returns the number of elements whose absolute value is the norm, at least 1; 1 for finite orders."""
    if order != math.inf:
        return 1
    derivative = NormDerivative(_OPERATIONS, order, norm)
    count = torch.zeros(norm.shape, dtype=torch.int64)
    for x in leaves:
        if _is_tensor(x):
            count += derivative.is_largest(_as_float64(x.detach())).to(torch.int64).sum_to_size(norm.shape)
        elif x is not None:
            count += int(np.count_nonzero(np.abs(np.asarray(x)).astype(np.float64) == float(norm)))
    return count.clamp(min=1)


class _NormFunction(torch.autograd.Function):  # type: ignore[misc]
    """The norm of all tensors together, or of each slice of one tensor."""

    @staticmethod
    def forward(ctx: Any, norm: _Norm, *tensors: Any) -> Any:
        value = norm.value.clone()
        ctx.order, ctx.count = norm.order, norm.count
        ctx.save_for_backward(value, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        value, *tensors = ctx.saved_tensors
        derivative = NormDerivative(_OPERATIONS, ctx.order, value)
        gradients = [
            derivative.product(g, _as_float64(x), ctx.count).to(x.dtype) if needed else None
            for x, needed in zip(tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        return (None, *gradients)


# Scaling ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Tensors that were scaled by the compiled functions.

    Attributes
    ----------
    values : list of Tensor
        The scaled tensors.
    norm : _Norm
        Their norm before.
    nonfinite_factor : float
        Number that they were multiplied by where the norm is not finite.
    """

    values: list[Any]
    norm: _Norm
    nonfinite_factor: float


def _scaled(
    tensors: list[Any],
    values: list[Any],
    norm: _Norm,
    bound: Any,
    nonfinite_factor: float = math.nan,
    given: Any = None,
) -> list[Any]:
    """Returns ``x * bound / max(norm, bound)`` for each tensor, with a graph.

    Parameters
    ----------
    tensors, values : list of Tensor
        The tensors, and the results, which the compiled functions have computed.
    norm : _Norm
        Norm of the tensors.
    bound : Tensor
        Bound of the norm, which broadcasts to the shape of the tensors.
    nonfinite_factor : float, optional
        Number that the tensors were multiplied by where the norm is not finite.
    given : Tensor, optional
        The norm as the caller passed it.
    """
    if not _requires_grad(bound, given, *tensors):
        return values
    return list(_ScaleFunction.apply(_Scaling(values, norm, nonfinite_factor), bound, given, *tensors))


class _ScaleFunction(torch.autograd.Function):  # type: ignore[misc]
    """``x * bound / max(norm, bound)`` for each of several tensors.

    The norm is computed from the tensors or given. The gradient with respect to a tensor has one part through
    the product and one through the norm; they are added before they are rounded to the tensor's dtype.
    """

    @staticmethod
    def forward(ctx: Any, scaling: _Scaling, bound: Any, given: Any, *tensors: Any) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        norm, nonfinite_factor = scaling.norm, scaling.nonfinite_factor
        derivative = ScalingDerivative(_OPERATIONS, norm.value, _as_float64(bound), nonfinite_factor)
        _, for_bound, for_given, *for_tensors = ctx.needs_input_grad
        factor_varies = for_bound or for_given or (norm.order is not None and any(for_tensors))
        ctx.is_clipped = factor_varies and bool(derivative.clips.any())
        ctx.order, ctx.count, ctx.nonfinite_factor = norm.order, norm.count, nonfinite_factor
        ctx.zeros = [
            (x.shape, x.dtype) if needed else None for x, needed in ((bound, for_bound), (given, for_given))
        ]
        if ctx.is_clipped:
            ctx.save_for_backward(bound, norm.value if given is None else given, *tensors)
        elif not bool((derivative.factor == 1).all()):
            ctx.save_for_backward(derivative.factor)
        return tuple(scaling.values)

    @staticmethod
    def backward(ctx: Any, *gs: Any) -> tuple[Any, ...]:
        for_tensors = ctx.needs_input_grad[3:]
        if ctx.is_clipped:
            return (None, *_clipped_gradients(ctx, gs))
        zeros = [None if like is None else torch.zeros(like[0], dtype=like[1]) for like in ctx.zeros]
        gradients = [g if needed else None for g, needed in zip(gs, for_tensors, strict=True)]
        for factor in ctx.saved_tensors:
            gradients = [None if g is None else (_as_float64(g) * factor).to(g.dtype) for g in gradients]
        return (None, *zeros, *gradients)


def _clipped_gradients(ctx: Any, gs: Sequence[Any]) -> list[Any]:
    """Returns the gradients of :class:`_ScaleFunction`: of the bound, of the norm, and of each tensor."""
    bound, norm, *tensors = ctx.saved_tensors
    _, for_bound, for_given, *for_tensors = ctx.needs_input_grad
    dtypes, bound_like, norm_like = [x.dtype for x in tensors], bound, norm
    count = ctx.count
    is_recorded = torch.is_grad_enabled()
    if is_recorded:
        # Converted once, so that second derivatives too are added up before they are rounded.
        tensors = [_as_float64(x) for x in tensors]
        if ctx.order is not None and any(for_tensors):
            norm = _NormFunction.apply(
                _Norm(ctx.order, norm, count),
                *[x for x, needed in zip(tensors, for_tensors, strict=True) if needed],
            )
    in_blocks = not is_recorded and norm.numel() == 1 and bound.numel() == 1
    if in_blocks:
        norm, bound = norm.reshape(()), bound.reshape(())
        count = count.reshape(()) if _is_tensor(count) else count
    scaling = ScalingDerivative(_OPERATIONS, norm, _as_float64(bound), ctx.nonfinite_factor)
    of_norm = torch.zeros(norm.shape, dtype=torch.float64)
    of_bound = torch.zeros(bound.shape, dtype=torch.float64)
    norm_varies = for_given or (ctx.order is not None and any(for_tensors))
    for g, x in zip(gs, tensors, strict=True):
        if g is None:
            continue
        for g_block, x_block in zip(_blocks(g, in_blocks), _blocks(x, in_blocks), strict=True):
            if norm_varies:
                of_norm = of_norm + scaling.norm_product(g_block, x_block).sum_to_size(norm.shape)
            if for_bound:
                of_bound = of_bound + scaling.bound_product(g_block, x_block).sum_to_size(bound.shape)
    gradients = [
        of_bound.reshape(bound_like.shape).to(bound_like.dtype) if for_bound else None,
        of_norm.reshape(norm_like.shape).to(norm_like.dtype) if for_given else None,
    ]
    derivative = None if ctx.order is None else NormDerivative(_OPERATIONS, ctx.order, norm)

    def gradient(g: Any, x: Any) -> Any:
        parts = [] if g is None else [scaling.tensor_product(g)]
        if derivative is not None:
            parts.append(derivative.product(of_norm, x, count))
        return sum(parts[1:], parts[0])

    for g, x, dtype, needed in zip(gs, tensors, dtypes, for_tensors, strict=True):
        if not needed or (g is None and derivative is None):
            gradients.append(None)
        elif in_blocks:
            result = torch.empty(x.shape, dtype=dtype)
            g_blocks = repeat(None) if g is None else _blocks(g, in_blocks)
            x_blocks = _blocks(x, in_blocks)
            for g_block, x_block, result_block in zip(
                g_blocks, x_blocks, result.view(-1).split(_BLOCK_SIZE), strict=False
            ):
                result_block.copy_(gradient(g_block, x_block))
            gradients.append(result)
        else:
            gradients.append(gradient(None if g is None else _as_float64(g), _as_float64(x)).to(dtype))
    return gradients


#: Elements of a block, so few that results fit the second-level cache, and torch uses no threads for them.
_BLOCK_SIZE = 1 << 15


def _blocks(x: Any, in_blocks: bool) -> Iterator[Any]:
    """Yields the elements of a tensor in float64: all at once, or in blocks of one dimension.

    In blocks, no operation needs new memory of the tensor's size, which takes longer than the operation.
    """
    if in_blocks:
        yield from map(_as_float64, x.reshape(-1).split(_BLOCK_SIZE))
    else:
        yield _as_float64(x)


# Clamping --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clamping:
    """A tensor that was clamped by the compiled functions, and the bounds in its dtype."""

    value: Any
    low: Any
    high: Any


class _ClampFunction(torch.autograd.Function):  # type: ignore[misc]
    """``max(min(x, high), low)``. It keeps where an element comes from, but not the elements."""

    @staticmethod
    def forward(ctx: Any, clamping: _Clamping, x: Any, low: Any, high: Any) -> Any:
        ctx.set_materialize_grads(False)
        is_low, is_high = clamp_sources(_OPERATIONS, x, clamping.low, clamping.high)
        is_clamped = is_low | is_high
        for_x, *for_bounds = ctx.needs_input_grad[1:]
        ctx.bounds = [
            (bound.shape, bound.dtype) if needed else None
            for bound, needed in zip((low, high), for_bounds, strict=True)
        ]
        if bool(is_clamped.any()):
            masks = zip((is_low, is_high), for_bounds, strict=True)
            ctx.save_for_backward(
                is_clamped if for_x else None, *[mask if needed else None for mask, needed in masks]
            )
        return clamping.value

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        if g is None:
            return (None, None, None, None)
        masks = ctx.saved_tensors or (None, None, None)
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = g if masks[0] is None else torch.where(masks[0], 0.0, g)
        gradients: list[Any] = []
        for mask, like in zip(masks[1:], ctx.bounds, strict=True):
            if like is None:
                gradients.append(None)
            elif mask is None:
                gradients.append(torch.zeros(like[0], dtype=like[1]))
            else:
                of_bound = torch.where(mask, _as_float64(g), 0.0)
                gradients.append(of_bound.sum_to_size(like[0]).to(like[1]))
        return (None, of_x, *gradients)


# Operations ------------------------------------------------------------------------------------


def _as_float64(x: Any) -> Any:
    return x.to(torch.float64)


class _TorchOperations:
    """The operations of torch, as :class:`fastclip._autodiff.derivatives.Operations`."""

    where = staticmethod(torch.where)
    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)
    minimum = staticmethod(torch.minimum)
    isfinite = staticmethod(torch.isfinite)
    constant = staticmethod(torch.Tensor.detach)
    as_float64 = staticmethod(_as_float64)


_OPERATIONS = _TorchOperations()
