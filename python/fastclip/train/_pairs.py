"""Gradients and variables as flat lists of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import describe
from fastclip._functions.clip import clip_by_value
from fastclip._indexed_slices import IndexedSlices
from fastclip._numpy_memory import raises_memory_error
from fastclip._variables.variable import Variable
from fastclip.train._arrays import as_gradient, as_rows, as_variable

__all__ = ["Pairs"]

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class Sliced:
    """The gradients of rows among those of a step, one entry for each pair.

    Attributes
    ----------
    indices : list of ndarray or None
        The rows, ascending; None where the gradient is as large as its variable.
    given : list of ndarray or None
        The gradients as they came in, repeated rows and all.
    clamped : list of bool
        Which gradients have been clamped already, because their repeated rows were summed.
    """

    indices: list[_Array | None]
    given: list[_Array | None]
    clamped: list[bool]


@dataclass(slots=True)
class Pairs:
    """The pairs of a step.

    Attributes
    ----------
    gradients : list of ndarray or None
        Of the shape of their variables, or some rows of it; or, if `arrays` is None, the pairs as they came.
    arrays : list of ndarray or None
        The memory of the variables; None if the pairs are arrays already.
    sliced : Sliced or None
        None if there are no gradients of rows.
    constrained : list of Variable
        Those that a constraint is put on after the step.
    """

    gradients: list[Any]
    arrays: list[_Array] | None
    sliced: Sliced | None = None
    constrained: list[Variable] = field(default_factory=list)

    def rows(self) -> tuple[list[_Array | None], list[_Array | None], list[bool]] | None:
        """What the compiled part is told of gradients of rows."""
        sliced = self.sliced
        return None if sliced is None else (sliced.indices, sliced.given, sliced.clamped)

    @classmethod
    def of(cls, pairs: list[Any], bound: float) -> Pairs:
        """Make flat lists of pairs.

        Parameters
        ----------
        pairs : list
            Of a gradient, IndexedSlices or None, and a variable each.
        bound : float
            What the elements of repeated rows are clamped to, before they are summed.

        Raises
        ------
        TypeError
            If an entry is no such pair.
        ValueError
            If rows do not fit their variable.
        IndexError
            If a row is outside it.
        RuntimeError
            If a variable with a gradient of rows has a constraint.
        """
        if _core.are_plain_pairs(pairs):
            return cls(pairs, None)
        arrays: list[_Array] = []
        found = cls([], arrays)
        for position, pair in enumerate(pairs):
            name = f"grads_and_vars[{position}]"
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"{name} is {describe(pair)}; it takes a (gradient, variable) pair")
            array = as_variable(pair[1], f"{name}[1]")
            found._add(pair[0], pair[1], array, name, bound)
            arrays.append(array)
        return found

    def _add(self, gradient: Any, variable: Any, array: _Array, name: str, bound: float) -> None:
        constraint = variable.constraint if isinstance(variable, Variable) else None
        slices = as_rows(gradient, f"{name}[0]")
        indices, clamped = None, False
        if slices is None:
            applied = given = None if gradient is None else as_gradient(gradient, f"{name}[0]")
        else:
            if constraint is not None:
                raise RuntimeError("Cannot use a constraint function on a sparse variable.")
            given = _checked_values(slices, array, name)
            applied, indices, clamped = _rows_once(np.asarray(slices.indices), given, array, bound)
            if self.sliced is None:
                # Until here they were as they came in.
                count = len(self.gradients)
                self.sliced = Sliced([None] * count, self.gradients.copy(), [False] * count)
        self.gradients.append(applied)
        if self.sliced is not None:
            self.sliced.indices.append(indices)
            self.sliced.given.append(given)
            self.sliced.clamped.append(clamped)
        if constraint is not None and given is not None:
            self.constrained.append(variable)


@raises_memory_error
def _checked_values(slices: IndexedSlices, array: _Array, name: str) -> _Array:
    """The values of rows that fit their variable."""
    values = as_gradient(slices.values, f"{name}[0].values")
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
def _rows_once(indices: _Array, values: _Array, array: _Array, bound: float) -> tuple[_Array, _Array, bool]:
    """Each row once, in ascending order, which rows they are, and whether they have been clamped.

    Rows that are not repeated are left to the step, which clamps them as it does a dense gradient.
    """
    indices = indices.astype(np.int64, copy=False)
    clamped = False
    if (indices[1:] <= indices[:-1]).any():
        order = np.argsort(indices, kind="stable")
        in_order = indices[order]
        if (in_order[1:] != in_order[:-1]).all():
            values, indices = values[order], in_order
        else:
            if values.dtype.itemsize < array.dtype.itemsize:
                # In a narrower type the bound would be rounded to it, and so would the sums.
                values = values.astype(array.dtype)
            if bound < math.inf and values.dtype.kind == "f":
                values, clamped = clip_by_value(values, -bound, bound), True
            summed = IndexedSlices(values, indices).coalesce()
            values, indices = summed.values, summed.indices
    return (
        np.require(values, requirements=["C", "A"]),
        np.require(indices, np.int64, ["C", "A"]),
        clamped,
    )
