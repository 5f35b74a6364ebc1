"""Gradients and variables as flat lists of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arrays import describe
from fastclip.indexed_slices import IndexedSlices
from fastclip.train.arrays import as_gradient, as_rows, as_variable
from fastclip.variable import Variable

__all__ = ["Pairs"]

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class Pairs:
    """The pairs of a step.

    Attributes
    ----------
    gradients : list of ndarray or None
        Of the shape of their variables, or some rows of it.
    arrays : list of ndarray
        The memory of the variables.
    indices : list of ndarray or None, optional
        The rows of the gradients that are rows, ascending; None if there are no such gradients.
    measured : list of ndarray or None, optional
        The gradients as they came in, repeated rows and all; None if these are `gradients`.
    constrained : list of Variable
        Those that a constraint is put on after the step.
    """

    gradients: list[_Array | None]
    arrays: list[_Array]
    indices: list[_Array | None] | None = None
    measured: list[_Array | None] | None = None
    constrained: list[Variable] = field(default_factory=list)

    @classmethod
    def of(cls, pairs: list[Any], whole: bool) -> Pairs:
        """Make flat lists of pairs.

        Parameters
        ----------
        pairs : list
            Of a gradient, IndexedSlices or None, and a variable each.
        whole : bool
            Whether a gradient of some rows changes all of its variable.

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
        plain = _core.split_pairs(pairs)
        if plain is not None:
            return cls(*plain)
        found = cls([], [])
        for position, pair in enumerate(pairs):
            name = f"grads_and_vars[{position}]"
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"{name} is {describe(pair)}; it takes a (gradient, variable) pair")
            found._add(pair[0], pair[1], name, whole)
        return found

    def _add(self, gradient: Any, variable: Any, name: str, whole: bool) -> None:
        array = as_variable(variable, f"{name}[1]")
        constraint = variable.constraint if isinstance(variable, Variable) else None
        slices = as_rows(gradient, f"{name}[0]")
        rows = indices = None
        if slices is None:
            values = None if gradient is None else as_gradient(gradient, f"{name}[0]")
        else:
            if constraint is not None:
                raise RuntimeError("Cannot use a constraint function on a sparse variable.")
            values = _checked_values(slices, array, name)
            rows, indices = _summed_rows(slices, values, array, name, whole)
        if rows is not None and self.measured is None:
            self.measured = list(self.gradients)
            self.indices = [None] * len(self.gradients)
        self.gradients.append(values if rows is None else rows)
        self.arrays.append(array)
        if self.measured is not None and self.indices is not None:
            self.measured.append(values)
            self.indices.append(indices)
        if constraint is not None and values is not None:
            self.constrained.append(variable)


def _checked_values(slices: IndexedSlices, array: _Array, name: str) -> _Array:
    """The values of rows that fit their variable."""
    values = as_gradient(slices.values, f"{name}[0].values")
    indices = slices.indices
    if array.ndim == 0 or values.ndim != array.ndim or values.shape[1:] != array.shape[1:]:
        raise ValueError(
            f"{name}[0].values is {describe(values)} where {name}[1] is {describe(array)}: "
            "rows must have the shape of the variable's"
        )
    if slices.shape is not None and slices.shape != array.shape:
        raise ValueError(
            f"{name}[0].dense_shape is {slices.shape} where {name}[1] has the shape {array.shape}"
        )
    if indices.ndim != 1 or indices.shape[0] != values.shape[0] or indices.dtype.kind not in "iu":
        raise ValueError(
            f"{name}[0].indices is {describe(indices)}; it takes one whole number for each of "
            f"{values.shape[0]} rows"
        )
    outside = (indices < 0) | (indices >= array.shape[0])
    if outside.any():
        at = int(np.argmax(outside))
        raise IndexError(f"{name}[0].indices[{at}] is {indices[at]}; {name}[1] has {array.shape[0]} rows")
    return values


def _summed_rows(
    slices: IndexedSlices, values: _Array, array: _Array, name: str, whole: bool
) -> tuple[_Array, _Array | None]:
    """Each row once, in ascending order, and which rows they are; or all rows, and None."""
    indices = slices.indices.astype(np.int64, copy=False)
    if (indices[1:] <= indices[:-1]).any():
        summed = IndexedSlices(values, indices).coalesce()
        values, indices = summed.values, summed.indices
    if whole and not (array.flags.c_contiguous and array.flags.aligned):
        dense = np.zeros(array.shape, values.dtype)
        dense[indices] = values
        return dense, None
    values = np.require(values, requirements=["C", "A"])
    return values, np.require(indices, np.int64, ["C", "A"])
