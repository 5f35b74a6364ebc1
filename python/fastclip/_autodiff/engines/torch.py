"""Differentiation by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import as_array, describe
from fastclip._autodiff.problem import (
    Problem,
    check_output_gradient_shape,
    check_real,
    import_engine,
    independent_gradients,
)
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = ["gradients"]


def gradients(problem: Problem) -> list[Any]:
    """Returns the gradient of each variable; None for one that the loss does not depend on."""
    torch = import_engine("torch", "torch")

    def constant(array: npt.NDArray[Any]) -> Any:
        return _tensor(torch, array)

    leaves = [_leaf(torch, variable) for variable in problem.variables]
    with torch.inference_mode(False), torch.enable_grad():
        output = problem.evaluate("torch", leaves, constant)
        if not isinstance(output, torch.Tensor):
            output = torch.from_numpy(np.array(check_real(output)))
        if not output.is_floating_point():
            raise TypeError(
                f"loss returned a tensor of dtype {output.dtype}; it has to return a number or a tensor of "
                "real floating-point numbers"
            )
        gradient = _output_gradient(torch, problem.grad_loss, output)
        if not output.requires_grad:
            return [None] * len(leaves)
        torch_gradients = torch.autograd.grad(output, leaves, gradient, allow_unused=True)
    return _results(torch, torch_gradients, problem)


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    """Returns a tensor that shares the memory of an array, or of a copy if torch does not support it."""
    if array.dtype.name == "bfloat16":
        return _tensor(torch, array.view(np.int16)).view(torch.bfloat16)
    supported = (
        array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    )
    if supported and all(stride % array.itemsize == 0 for stride in array.strides):
        return torch.from_numpy(array)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def _leaf(torch: Any, variable: Any) -> Any:
    if isinstance(variable, torch.Tensor):
        # A tensor that requires a gradient is used itself, because the loss may refer to it directly.
        return variable if variable.requires_grad else variable.detach().requires_grad_()
    return _tensor(torch, variable._data if isinstance(variable, Variable) else variable).requires_grad_()


def _output_gradient(torch: Any, grad_loss: Any, output: Any) -> Any:
    if grad_loss is None:
        return torch.ones_like(output)
    if not isinstance(grad_loss, torch.Tensor):
        array = as_array(grad_loss, "grad_loss")
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise TypeError(f"grad_loss is {describe(array)}; it takes real numbers")
        grad_loss = _tensor(torch, array)
    check_output_gradient_shape(tuple(grad_loss.shape), tuple(output.shape))
    # Copied, because torch may return it as a gradient.
    return grad_loss.detach().to(output.device, output.dtype, copy=True)


def _results(torch: Any, torch_gradients: Any, problem: Problem) -> list[Any]:
    """Returns tensors for tensors and arrays for other variables, which share no memory with each other."""
    storages: set[int] = set()
    results: list[Any] = []
    for gradient, variable in zip(torch_gradients, problem.variables, strict=True):
        if gradient is None:
            results.append(None)
            continue
        if gradient.layout is torch.sparse_coo:
            results.append(_sparse_gradient(gradient))
            continue
        gradient = gradient.detach()
        if not gradient.is_contiguous() or gradient.untyped_storage().data_ptr() in storages:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        storages.add(gradient.untyped_storage().data_ptr())
        if isinstance(variable, torch.Tensor):
            results.append(gradient)
        elif gradient.dtype == torch.bfloat16:
            dtype = variable.dtype
            results.append(gradient.cpu().view(torch.int16).numpy().view(dtype))
        else:
            results.append(gradient.cpu().numpy())
    if any(isinstance(variable, torch.Tensor) for variable in problem.variables):
        return results
    return independent_gradients(results, problem)


def _sparse_gradient(gradient: Any) -> Any:
    """Returns a sparse gradient as IndexedSlices, or as a dense array if it has several sparse dimensions."""
    if gradient.sparse_dim() != 1:
        return gradient.to_dense().numpy()
    # Not coalesced: repeated rows stand for their sum in torch and in IndexedSlices alike.
    return IndexedSlices(
        gradient._values().detach().numpy(), gradient._indices()[0].numpy(), tuple(gradient.shape)
    )
