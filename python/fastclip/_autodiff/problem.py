"""What every engine is given, and what it hands back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, describe
from fastclip._autodiff.tracing import tracing
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = ["Problem", "check_real", "finished", "import_engine", "incoming_gradient", "is_float"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A loss, and what it is to be differentiated by.

    Attributes
    ----------
    loss : callable
        The user's.
    takes_values : bool
        Whether it has parameters for the values.
    variables : sequence of Variable, ndarray or torch.Tensor
        What the loss is differentiated by, each once.
    arguments : sequence of (int or None, object)
        The arguments of a loss with parameters: the position among `variables`, or None and a constant.
    labels : sequence of str
        What each of `variables` is called in messages.
    grad_loss : object
        The gradient that comes into the loss, or None.
    """

    loss: Callable[..., Any]
    takes_values: bool
    variables: Sequence[Any]
    arguments: Sequence[tuple[int | None, Any]]
    labels: Sequence[str]
    grad_loss: Any

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The memory of the variables."""
        return [v._data if isinstance(v, Variable) else v for v in self.variables]

    def evaluate(
        self,
        engine: str,
        values: Sequence[Any],
        constant: Callable[[npt.NDArray[Any]], Any] | None = None,
    ) -> Any:
        """Call the loss with traced values in the place of the variables."""
        traced: Mapping[object, Any] = {
            variable: value
            for variable, value in zip(self.variables, values, strict=True)
            if isinstance(variable, Variable)
        }
        make = constant or (lambda array: array)
        with tracing(engine, traced, make):
            if self.takes_values:
                output = self.loss(*[make(other) if i is None else values[i] for i, other in self.arguments])
            else:
                output = self.loss()
            return output.value if isinstance(output, Variable) else output


def import_engine(module: str, extra: str) -> Any:
    """Import a library that differentiates.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"backend={extra!r} needs {error.name}, which is not installed: pip install 'fastclip[{extra}]'",
            name=error.name,
        ) from error


def is_float(dtype: Any) -> bool:
    """Whether a loss can have a gradient by, or be, an array of this type."""
    known: np.dtype[Any] = np.dtype(dtype)
    return known.kind == "f" or known.name == "bfloat16"


def check_real(output: Any) -> npt.NDArray[Any]:
    """Return what a loss returned as an array, if that is of real floating-point numbers.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if isinstance(output, (float, np.ndarray, np.generic)) and is_float(np.asarray(output).dtype):
        return np.asarray(output)
    hint = ""
    if isinstance(output, np.ndarray) and output.dtype.kind == "O":
        hint = " (NumPy's own functions make such arrays of autograd's values: use autograd.numpy)"
    raise TypeError(
        f"loss returned {'None' if output is None else describe(output)}; it has to return a number or an "
        f"array of real floating-point numbers{hint}"
    )


def incoming_gradient(grad_loss: Any, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """The gradient that comes into the loss, of the loss's shape and type; ones if none is given.

    Raises
    ------
    TypeError
        If it is no array of real numbers.
    ValueError
        If it has another shape than the loss.
    """
    if grad_loss is None:
        return np.ones(shape, dtype)
    array = as_array(grad_loss, "grad_loss")
    if array.dtype.kind not in "iu" and not is_float(array.dtype):
        raise TypeError(f"grad_loss is {describe(array)}; it takes real numbers")
    check_incoming_shape(array.shape, shape)
    return array.astype(dtype)


def check_incoming_shape(given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError if the gradient that comes in has another shape than the loss."""
    if given != shape:
        raise ValueError(f"grad_loss has shape {given}, the loss {shape}; they must be the same")


def _owner(array: npt.NDArray[Any]) -> int:
    """The identity of what an array's memory belongs to."""
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return id(base)


def finished(gradients: Sequence[Any], problem: Problem) -> list[Any]:
    """Make gradients what the caller is to get.

    They are arrays of the types of the variables, which can be written to and share no memory with each
    other, with a variable or with the gradient that came in, so that they can be clipped in place.
    """
    arrays = problem.arrays()
    taken = {_owner(array) for array in arrays}
    if isinstance(problem.grad_loss, np.ndarray):
        taken.add(_owner(problem.grad_loss))
    results: list[Any] = []
    for gradient, array, label in zip(gradients, arrays, problem.labels, strict=True):
        if gradient is None or isinstance(gradient, IndexedSlices):
            results.append(gradient)
            continue
        result = np.asarray(gradient)
        if result.shape != array.shape:
            raise ValueError(
                f"the gradient of {label} has shape {result.shape}, the variable has {array.shape}"
            )
        result = result.astype(array.dtype, copy=False)
        if not result.flags.writeable or _owner(result) in taken or 0 in result.strides:
            result = result.copy()
        taken.add(_owner(result))
        results.append(result)
    return results
