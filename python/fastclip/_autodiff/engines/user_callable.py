"""Differentiation by a user-defined function."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip._arguments.arrays import as_array, describe
from fastclip._autodiff.problem import Problem, check_real, independent_gradients, is_float, output_gradient
from fastclip._indexed_slices import IndexedSlices

__all__ = ["gradients"]


def gradients(problem: Problem, backend: Any) -> list[Any]:
    """Returns the gradient of each variable, from ``(value, grads) = backend(loss, values)``."""
    arrays = problem.arrays()
    values = [other if i is None else arrays[i] for i, other in problem.arguments]
    result = backend(problem.loss, values)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(f"backend returned {describe(result)}; it has to return (value, grads)")
    value, grads = result
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"backend returned {describe(grads)} as grads; it has to return a list of gradients")
    if len(grads) != len(values):
        raise ValueError(
            f"backend returned {len(grads)} gradients for {len(values)} variables; it has to return one for "
            "each, or None"
        )
    # A variable may be several arguments of the loss, for each of which the backend returns a gradient.
    by_variable: list[Any] = [None] * len(arrays)
    for position, ((i, _), gradient) in enumerate(zip(problem.arguments, grads, strict=True)):
        if i is not None and by_variable[i] is None:
            by_variable[i] = _checked(gradient, position, problem.paths[i], arrays[i].shape)
    if problem.grad_loss is not None:
        factor = _factor(problem.grad_loss, value)
        by_variable = [None if g is None else _scaled(g, factor) for g in by_variable]
    return independent_gradients(by_variable, problem)


def _checked(gradient: Any, position: int, path: str, shape: tuple[int, ...]) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, IndexedSlices):
        if gradient.shape is not None and gradient.shape != shape:
            raise ValueError(
                f"backend returned a gradient of shape {gradient.shape} for {path}, which has shape {shape}"
            )
        return gradient
    array = as_array(gradient, f"grads[{position}] of backend")
    if not is_float(array.dtype):
        raise TypeError(
            f"backend returned {describe(array)} as grads[{position}]; it has to return real floating-point "
            "numbers"
        )
    if array.shape != shape:
        raise ValueError(
            f"backend returned a gradient of shape {array.shape} for {path}, which has shape {shape}"
        )
    return array


def _factor(grad_loss: Any, value: Any) -> float:
    """Returns `grad_loss` of a scalar loss as the factor that the gradients are multiplied by."""
    shape = check_real(value).shape
    if shape != ():
        raise ValueError(
            f"grad_loss goes with a scalar loss where backend is a callable; the loss has shape {shape}"
        )
    return float(output_gradient(grad_loss, shape, np.float64))


def _scaled(gradient: Any, factor: float) -> Any:
    if isinstance(gradient, IndexedSlices):
        return gradient._with_values(gradient.values * factor)
    return gradient * factor
