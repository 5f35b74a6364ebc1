"""Axes that a norm is taken over, as a flag for each axis of a tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["reduced_axes", "unit_axes"]


def reduced_axes(axes: int | Sequence[int] | None, ndim: int) -> list[bool] | None:
    """Returns whether each axis is reduced; None if `axes` is None, which reduces all axes.

    Raises
    ------
    TypeError
        If an axis is not an integer.
    ValueError
        If an axis is out of range or listed twice.
    """
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


def unit_axes(shape: tuple[int, ...], axes: Sequence[int] | int | None, name: str) -> list[bool]:
    """Returns whether a unit of adaptive gradient clipping spans each axis of a tensor.

    Parameters
    ----------
    shape : tuple of int
        Shape of the tensor.
    axes : int, sequence of int or None
        Axes that a unit spans; None selects those of ``optax.adaptive_grad_clip``, see
        :func:`fastclip.adaptive_clip`.
    name : str
        Name of the tensor in error messages.

    Raises
    ------
    ValueError
        If `axes` is None and the tensor has more than five dimensions, or as :func:`reduced_axes`.
    """
    ndim = len(shape)
    if axes is not None:
        return reduced_axes(axes, ndim) or [False] * ndim
    if sum(n != 1 for n in shape) <= 1:
        return [True] * ndim
    if ndim in (2, 3):
        return [True] + [False] * (ndim - 1)
    if ndim in (4, 5):
        return [True] * (ndim - 1) + [False]
    raise ValueError(f"{name} has {ndim} dimensions; with more than 5, axes= must say what a unit is")
