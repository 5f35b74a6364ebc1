"""Input and output of the engines: the loss with its variables, and their gradients."""

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

__all__ = ["Problem", "check_real", "import_engine", "independent_gradients", "is_float", "output_gradient"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A loss, and the variables with respect to which it is differentiated.

    Attributes
    ----------
    loss : callable
        The user's function.
    has_parameters : bool
        Whether the loss has parameters, which the values are passed to.
    variables : sequence of Variable, ndarray or torch.Tensor
        The variables, without repetitions.
    arguments : sequence of (int or None, object)
        Arguments of a loss with parameters: a position among `variables`, or None and a constant.
    paths : sequence of str
        Name of each variable in error messages, such as ``var_list['w'][0]``.
    grad_loss : object
        Gradient with respect to the output of the loss; None for ones.
    """

    loss: Callable[..., Any]
    has_parameters: bool
    variables: Sequence[Any]
    arguments: Sequence[tuple[int | None, Any]]
    paths: Sequence[str]
    grad_loss: Any

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Returns the arrays of the variables, without copies."""
        return [v._data if isinstance(v, Variable) else v for v in self.variables]

    def evaluate(
        self,
        engine: str,
        values: Sequence[Any],
        constant: Callable[[npt.NDArray[Any]], Any] | None = None,
    ) -> Any:
        """Returns the output of the loss for traced values of the variables."""
        traced: Mapping[object, Any] = {
            variable: value
            for variable, value in zip(self.variables, values, strict=True)
            if isinstance(variable, Variable)
        }
        as_constant = constant or (lambda array: array)
        with tracing(engine, traced, as_constant):
            if self.has_parameters:
                arguments = [as_constant(other) if i is None else values[i] for i, other in self.arguments]
                output = self.loss(*arguments)
            else:
                output = self.loss()
            return output.value if isinstance(output, Variable) else output


def import_engine(module: str, extra: str) -> Any:
    """Imports a module of a library that differentiates.

    Raises
    ------
    ImportError
        If the library is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"backend={extra!r} needs {error.name}, which is not installed: "
            f"pip install 'fastclip-grad[{extra}]'",
            name=error.name,
        ) from error


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a real floating-point type, which variables and the output of a loss need."""
    numpy_dtype: np.dtype[Any] = np.dtype(dtype)
    return numpy_dtype.kind == "f" or numpy_dtype.name == "bfloat16"


def check_real(output: Any) -> npt.NDArray[Any]:
    """Returns the output of a loss as an array.

    Raises
    ------
    TypeError
        If it is not a real floating-point number or an array of such numbers.
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


def output_gradient(grad_loss: Any, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Returns the gradient with respect to the output of a loss, in the shape and dtype of the output.

    Raises
    ------
    TypeError
        If `grad_loss` is not an array of real numbers.
    ValueError
        If it has another shape than the output.
    """
    if grad_loss is None:
        return np.ones(shape, dtype)
    array = as_array(grad_loss, "grad_loss")
    if array.dtype.kind not in "iu" and not is_float(array.dtype):
        raise TypeError(f"grad_loss is {describe(array)}; it takes real numbers")
    check_output_gradient_shape(array.shape, shape)
    return array.astype(dtype)


def check_output_gradient_shape(grad_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raises ValueError if the gradient of the output of a loss has another shape than the output."""
    if grad_shape != shape:
        raise ValueError(f"grad_loss has shape {grad_shape}, the loss {shape}; they must be the same")


def _owner_id(array: npt.NDArray[Any]) -> int:
    """Returns the id of the object that owns the memory of an array."""
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return id(base)


def independent_gradients(gradients: Sequence[Any], problem: Problem) -> list[Any]:
    """Returns gradients as arrays that can be clipped in place, copied where that is necessary.

    The arrays have the dtypes of the variables, are writeable, and share no memory with each other, with a
    variable or with `grad_loss`.
    """
    arrays = problem.arrays()
    owners = {_owner_id(array) for array in arrays}
    if isinstance(problem.grad_loss, np.ndarray):
        owners.add(_owner_id(problem.grad_loss))
    results: list[Any] = []
    for gradient, array, path in zip(gradients, arrays, problem.paths, strict=True):
        if gradient is None or isinstance(gradient, IndexedSlices):
            results.append(gradient)
            continue
        result = np.asarray(gradient)
        if result.shape != array.shape:
            raise ValueError(
                f"the gradient of {path} has shape {result.shape}, the variable has {array.shape}"
            )
        result = result.astype(array.dtype, copy=False)
        if not result.flags.writeable or _owner_id(result) in owners or 0 in result.strides:
            result = result.copy()
        owners.add(_owner_id(result))
        results.append(result)
    return results
