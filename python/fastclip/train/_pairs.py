"""Conversion of a step's pairs of gradients and variables to arrays, and of its sparse gradients to rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_array, describe
from fastclip._arguments.devices import is_on_device, place_of
from fastclip._compiled.clip import clip_by_value
from fastclip._indexed_slices import IndexedSlices
from fastclip._numpy_memory import raises_memory_error
from fastclip._variables.variable import Variable
from fastclip.train._arrays import as_gradient, as_slices, as_variable, view_of_variable

__all__ = ["Pairs", "as_pairs"]

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class Pairs:
    """The pairs of a step, as arrays.

    Attributes
    ----------
    arrays : list of (ndarray or RowGradient or None, ndarray)
        Each gradient, and an array that shares the memory of its variable.
    constrained : list of Variable
        The variables whose constraints are called after the step.
    """

    arrays: list[tuple[_Array | _core.RowGradient | None, _Array]]
    constrained: list[Variable] = field(default_factory=list)


def as_pairs(pairs: list[Any], row_bound: float) -> Pairs:
    """Convert gradients and variables to arrays.

    Parameters
    ----------
    pairs : list of (gradient or None, variable)
        The pairs that were passed to an optimizer.
    row_bound : float
        The bound on the absolute value of elements of repeated rows, which are clamped before they are
        summed.

    Raises
    ------
    TypeError
        If an entry is not a pair, or is a pair (variable, gradient); or a gradient or variable has a type
        that is not accepted.
    ValueError
        If the rows of a sparse gradient do not have the shape of the variable's rows.
    IndexError
        If a sparse gradient has the index of a row that its variable lacks.
    RuntimeError
        If a variable with a constraint has a sparse gradient.
    """
    if _core.are_plain_pairs(pairs):
        return Pairs(pairs)
    result = Pairs([])
    for position, pair in enumerate(pairs):
        name = f"grads_and_vars[{position}]"
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name} is {describe(pair)}; it takes a (gradient, variable) pair")
        gradient, variable = pair
        if isinstance(gradient, Variable) and not isinstance(variable, Variable):
            second = "None" if variable is None else describe(variable)
            raise TypeError(
                f"{name} has a Variable first and {second} second; the order is (gradient, variable)"
            )
        array = as_variable(variable, f"{name}[1]")
        if result.arrays and is_on_device(array) is not is_on_device(result.arrays[0][1]):
            raise TypeError(
                f"{name}[1] is {describe(variable)} {place_of(array)}, where the variables before it are "
                f"{place_of(result.arrays[0][1])}"
            )
        if gradient is not None and is_on_device(gradient) is not is_on_device(array):
            raise TypeError(
                f"{name}[0] is {describe(gradient)} {place_of(gradient)}, where its variable is "
                f"{place_of(array)}; fastclip.gpu.asarray and .numpy() copy arrays"
            )
        constraint = variable.constraint if isinstance(variable, Variable) else None
        slices = as_slices(gradient, f"{name}[0]")
        if slices is not None:
            if constraint is not None:
                raise RuntimeError("Cannot use a constraint function on a sparse variable.")
            gradient = _row_gradient(slices, array, name, row_bound)
        elif gradient is not None:
            gradient = as_gradient(gradient, f"{name}[0]")
        result.arrays.append((gradient, array))
        if constraint is not None and gradient is not None:
            result.constrained.append(variable)
    return result


def _row_gradient(slices: IndexedSlices, array: _Array, name: str, bound: float) -> _core.RowGradient:
    """Return a sparse gradient with its rows in ascending order, and repeated rows summed."""
    array = view_of_variable(array)
    original = _checked_values(slices, array, name)
    values, indices, is_clamped = _unique_rows(np.asarray(slices.indices), original, array, bound)
    return _core.RowGradient(values, indices, original, is_clamped)


@raises_memory_error
def _checked_values(slices: IndexedSlices, array: _Array, name: str) -> _Array:
    """Return the rows of a sparse gradient, after checking that they fit the variable."""
    values = as_array(slices.values, f"{name}[0].values")
    indices = np.asarray(slices.indices)
    if array.ndim == 0 or values.ndim != array.ndim or values.shape[1:] != array.shape[1:]:
        raise ValueError(
            f"{name}[0].values is {describe(values)} where {name}[1] is {describe(array)}: "
            "rows must have the shape of the variable's"
        )
    if slices.shape is not None and slices.shape != array.shape:
        raise ValueError(
            f"{name}[0].dense_shape is {slices.shape} where {name}[1] has the shape {array.shape}"
        )
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{name}[0].indices is {describe(indices)}; it takes whole numbers")
    if indices.shape != values.shape[:1]:
        count = values.shape[0]
        raise ValueError(f"{name}[0].indices is {describe(indices)}; it takes one for each of {count} rows")
    outside = (indices < 0) | (indices >= array.shape[0])
    if outside.any():
        at = int(np.argmax(outside))
        raise IndexError(f"{name}[0].indices[{at}] is {indices[at]}; {name}[1] has {array.shape[0]} rows")
    return values


@raises_memory_error
def _unique_rows(indices: _Array, values: _Array, array: _Array, bound: float) -> tuple[_Array, _Array, bool]:
    """Return unique rows in ascending order of their indices, the indices, and whether rows were clamped.

    Rows are clamped to `bound` only if some are repeated. Otherwise the step clamps them, like the elements
    of a dense gradient.
    """
    indices = np.require(indices, np.int64, ["C", "A"])
    values = np.require(values, requirements=["C", "A"])
    is_clamped = False
    if (indices[1:] <= indices[:-1]).any():
        order = _core.RowOrder(indices)
        if order.count < indices.size:
            if values.dtype.itemsize < array.dtype.itemsize:
                # In the narrower type, the bound and the sums would be rounded to that type.
                values = values.astype(array.dtype)
            if bound < math.inf and values.dtype.kind == "f":
                values, is_clamped = clip_by_value(values, -bound, bound, None), True
        values, indices = order.sum(values), order.indices()
    return values, indices, is_clamped
