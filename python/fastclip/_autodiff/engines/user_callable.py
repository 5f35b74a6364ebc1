"""Differentiation by a function of the user's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastclip._arguments.arrays import as_array, describe
from fastclip._autodiff.problem import Problem, check_real, finished, incoming_gradient, is_float
from fastclip._indexed_slices import IndexedSlices

__all__ = ["gradients"]


def gradients(problem: Problem, backend: Any) -> list[Any]:
    """Return the gradients that ``backend(loss, values)`` gives beside the value."""
    arrays = problem.arrays()
    values = [other if i is None else arrays[i] for i, other in problem.arguments]
    answer = backend(problem.loss, values)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise TypeError(f"backend returned {describe(answer)}; it has to return (value, grads)")
    value, found = answer
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"backend returned {describe(found)} as grads; it has to return a list of gradients")
    if len(found) != len(values):
        raise ValueError(
            f"backend returned {len(found)} gradients for {len(values)} variables; it has to return one for "
            "each, or None"
        )
    # The same variable may stand at several places: the backend gave a gradient for each.
    by_variable: list[Any] = [None] * len(arrays)
    for position, ((i, _), gradient) in enumerate(zip(problem.arguments, found, strict=True)):
        if i is not None and by_variable[i] is None:
            by_variable[i] = _checked(gradient, position, problem.labels[i], arrays[i].shape)
    if problem.grad_loss is not None:
        factor = _factor(problem.grad_loss, value)
        by_variable = [None if g is None else _scaled(g, factor) for g in by_variable]
    return finished(by_variable, problem)


def _checked(gradient: Any, position: int, label: str, shape: tuple[int, ...]) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, IndexedSlices):
        if gradient.shape is not None and gradient.shape != shape:
            raise ValueError(
                f"backend returned a gradient of shape {gradient.shape} for {label}, which has shape {shape}"
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
            f"backend returned a gradient of shape {array.shape} for {label}, which has shape {shape}"
        )
    return array


def _factor(grad_loss: Any, value: Any) -> float:
    """The incoming gradient of a scalar loss, which the gradients are to be multiplied by."""
    shape = check_real(value).shape
    if shape != ():
        raise ValueError(
            f"grad_loss goes with a scalar loss where backend is a callable; the loss has shape {shape}"
        )
    return float(incoming_gradient(grad_loss, shape, np.float64))


def _scaled(gradient: Any, factor: float) -> Any:
    if isinstance(gradient, IndexedSlices):
        return gradient._with_values(gradient.values * factor)
    return gradient * factor
