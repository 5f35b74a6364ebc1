"""Gradients and variables as flat lists of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arrays import describe
from fastclip.clip import clip_by_value
from fastclip.indexed_slices import IndexedSlices
from fastclip.train.arrays import as_gradient, as_rows, as_variable
from fastclip.variable import Variable

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
    is_sliced : list of bool
        Which gradients came in as rows.
    """

    indices: list[_Array | None]
    given: list[_Array | None]
    is_sliced: list[bool]


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
        return None if sliced is None else (sliced.indices, sliced.given, sliced.is_sliced)

    @classmethod
    def of(cls, pairs: list[Any], bound: float) -> Pairs:
        """Make flat lists of pairs.

        Parameters
        ----------
        pairs : list
            Of a gradient, IndexedSlices or None, and a variable each.
        bound : float
            What the elements of rows are clamped to, before repeated rows are summed.

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
        indices = None
        if slices is None:
            applied = given = None if gradient is None else as_gradient(gradient, f"{name}[0]")
        else:
            if constraint is not None:
                raise RuntimeError("Cannot use a constraint function on a sparse variable.")
            given = _checked_values(slices, array, name)
            applied, indices = _summed_rows(np.asarray(slices.indices), _clamped(given, bound), array)
            if self.sliced is None:
                # Until here they were as they came in.
                count = len(self.gradients)
                self.sliced = Sliced([None] * count, self.gradients.copy(), [False] * count)
        self.gradients.append(applied)
        if self.sliced is not None:
            self.sliced.indices.append(indices)
            self.sliced.given.append(given)
            self.sliced.is_sliced.append(slices is not None)
        if constraint is not None and given is not None:
            self.constrained.append(variable)


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


def _clamped(values: _Array, bound: float) -> _Array:
    if bound == math.inf or values.dtype.kind not in "fV":
        return values
    # In 16 bits the bound would be rounded.
    wide = values.astype(np.float32) if values.dtype.itemsize == 2 else values
    clamped: _Array = clip_by_value(wide, -bound, bound)
    return clamped


def _summed_rows(indices: _Array, values: _Array, array: _Array) -> tuple[_Array, _Array]:
    """Each row once, in ascending order, and which rows they are."""
    indices = indices.astype(np.int64, copy=False)
    if (indices[1:] <= indices[:-1]).any():
        # The sums of a narrower type are the variable's: they would be rounded to it.
        wide = values.astype(array.dtype) if values.dtype.itemsize < array.dtype.itemsize else values
        summed = IndexedSlices(wide, indices).coalesce()
        values, indices = summed.values, summed.indices
    return np.require(values, requirements=["C", "A"]), np.require(indices, np.int64, ["C", "A"])
