"""Derivatives of norms, of scaling and of clamping, in the operations of any library that differentiates.

The rules for autograd and those for torch share these formulas, and pass the operations of their library.
Gradients are those that TensorFlow registers for the operations that its clip functions consist of [1]_, also
where an element or a norm equals its bound:

- clipping by value passes the gradient to the tensor where the element is within the bounds or equal to one,
  and otherwise to the bound that replaced the element;
- ``y = x * c / max(n, c)`` has ``dy/dx = c/n (I - u d^T)`` where ``n >= c``, with ``u = x / n`` and ``d`` the
  gradient of the norm, which equals ``u`` for order 2; and ``dy/dx = I`` elsewhere.

A tensor of zeros is not clipped: its gradient is the identity, and the gradient of its norm is defined as 0.
(TensorFlow does the same for ``clip_by_norm``, and returns NaN for the global norm and the average norm.)

References
----------
.. [1] https://github.com/tensorflow/tensorflow/blob/master/tensorflow/python/ops/clip_ops.py
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from fastclip._arguments.order import parse_order

__all__ = ["NormDerivative", "Operations", "ScalingDerivative", "clamp_sources", "differentiable_order"]


class Operations(Protocol):
    """Operations of a library on its arrays, through which it differentiates."""

    def where(self, condition: Any, x: Any, y: Any, /) -> Any: ...
    def abs(self, x: Any, /) -> Any: ...
    def sign(self, x: Any, /) -> Any: ...
    def minimum(self, x: Any, y: Any, /) -> Any: ...
    def isfinite(self, x: Any, /) -> Any: ...

    def constant(self, x: Any, /) -> Any:
        """Returns the value of an array, through which nothing is differentiated."""

    def as_float64(self, x: Any, /) -> Any:
        """Returns a number or an array as float64, in which gradients of narrower types are computed too."""


def differentiable_order(ord: float) -> float:
    """Returns the order of a norm as a float.

    Raises
    ------
    TypeError
        If it is not a number, or below 1.
    ValueError
        If it is not above 0.
    """
    order = parse_order(ord)
    if order < 1:
        raise TypeError(f"ord is {ord!r}; norms of orders below 1 are not differentiated")
    return order


class NormDerivative:
    """Derivative of a norm.

    Parameters
    ----------
    operations : Operations
        The library that differentiates.
    order : float
        Order of the norm, 1 or more.
    norm : array
        The norm: one number, or one for each slice of a tensor, of the tensor's number of dimensions.
    """

    def __init__(self, operations: Operations, order: float, norm: Any) -> None:
        self._operations = operations
        self._order = order
        self._value = operations.as_float64(operations.constant(norm))
        self._positive = self._value != 0
        self._norm = operations.where(self._positive, operations.as_float64(norm), 1.0)

    def is_largest(self, x: Any) -> Any:
        """Returns where the absolute value of an element equals the norm of infinite order, and is not 0."""
        return (self._operations.abs(self._operations.constant(x)) == self._value) & self._positive

    def gradient(self, x: Any, count: Any) -> Any:
        """Returns the gradient of the norm with respect to one tensor.

        Parameters
        ----------
        x : array
            The tensor.
        count : int or array
            Number of largest elements (at least 1) in all tensors of the norm, or in each slice. They share
            the gradient of the infinite order equally, as in JAX and torch. Other orders do not use it.
        """
        if self._order == 2:
            return x / self._norm
        sign = self._operations.sign(x)
        if self._order == math.inf:
            return sign * (self._operations.as_float64(self.is_largest(x)) / count)
        if self._order == 1:
            return sign
        return sign * (self._operations.abs(x) / self._norm) ** (self._order - 1)

    def product(self, g: Any, x: Any, count: Any) -> Any:
        """Returns the gradient of the norm multiplied by `g`, the gradient with respect to the norm.

        Where `g` is 0, so is the product, even if the tensor holds NaN or infinity.
        """
        is_zero = self._operations.constant(g) == 0
        return self._operations.where(is_zero, 0.0, g * self.gradient(x, count))


class ScalingDerivative:
    """Derivative of ``x * bound / max(norm, bound)``.

    Parameters
    ----------
    operations : Operations
        The library that differentiates.
    norm, bound : array
        They broadcast to the shape of the tensor.
    nonfinite_factor : float
        Number that elements are multiplied by where the norm is not finite.

    Attributes
    ----------
    factor : array
        ``bound / norm`` where the tensor is clipped, `nonfinite_factor` where the norm is not finite, else 1.
    clips : array of bool
        Where the tensor is clipped.
    is_finite : array of bool
        Where the norm is finite.
    """

    def __init__(self, operations: Operations, norm: Any, bound: Any, nonfinite_factor: float) -> None:
        value = operations.as_float64(operations.constant(norm))
        limit = operations.as_float64(operations.constant(bound))
        self._operations = operations
        self.is_finite = operations.isfinite(value)
        self.clips = self.is_finite & (value > 0) & (value >= limit)
        # Negative bounds count as 0, and their gradient is 0.
        self._bounded = limit >= 0
        # The norm is 1 where the tensor is not clipped, so that no derivative of the quotient is NaN.
        self._norm = operations.where(self.clips, operations.as_float64(norm), 1.0)
        scaled = operations.where(self.clips, operations.where(self._bounded, bound, 0.0), 1.0)
        self.factor = operations.where(self.is_finite, scaled / self._norm, nonfinite_factor)

    def tensor_product(self, g: Any) -> Any:
        """Returns the gradient with respect to the tensor, the norm being held fixed.

        `g` is the gradient with respect to the scaled tensor, here and below.
        """
        return g * self.factor

    def norm_product(self, g: Any, x: Any) -> Any:
        """Returns the gradient with respect to the norm, to be summed over the elements that share a norm."""
        return self._operations.where(self.clips, -self.factor * g * (x / self._norm), 0.0)

    def bound_product(self, g: Any, x: Any) -> Any:
        """Returns the gradient with respect to the bound, to be summed over those that share a bound."""
        return self._operations.where(self.clips & self._bounded, g * (x / self._norm), 0.0)


def clamp_sources(operations: Operations, x: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Returns where ``max(min(x, high), low)`` is `low`, and where it is `high`.

    It is `x` elsewhere, also where arguments are equal.
    """
    is_low = ~(operations.minimum(x, high) >= low)
    return is_low, ~is_low & ~(x <= high)
