"""The functions of `torch.nn.utils` that clip gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fastclip import _core
from fastclip.torch._binding import BINDING
from fastclip.torch._errors import nonfinite_gradient_error
from fastclip.torch._gradients import (
    Gradients,
    TensorOrTensors,
    check_tensors,
    gradients_of,
    list_of_parameters,
)
from fastclip.torch._measuring import Measured, clip
from fastclip.torch._operators import gradients_in_graph, tensors_in_graph
from fastclip.torch._originals import ORIGINALS
from fastclip.torch._plain import is_plain
from fastclip.torch._sparse import values_of

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]


def _error(
    measured: Measured, gradients: list[torch.Tensor], norm_type: float, names: Iterable[str]
) -> Exception:
    norms = measured.norms
    if norms is None:
        again = clip(gradients, norm_type, None, True)
        norms = again.norms if again is not None else None
    message = (
        f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
        "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
        "`error_if_nonfinite=False`"
    )
    return nonfinite_gradient_error(f"{message}.", norms or [], names)


def _names(gradients: Gradients, names: list[str] | None) -> list[str]:
    positions = range(len(gradients.tensors)) if gradients.positions is None else gradients.positions
    return [f"parameters[{at}]" if names is None else names[at] for at in positions]


def clip_grad_norm_(
    parameters: TensorOrTensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    dtype: torch.dtype | None = None,
    norms: torch.Tensor | np.ndarray[Any, Any] | None = None,
) -> torch.Tensor:
    r"""Clip the gradients of parameters by the norm of all of them together, in place.

    The gradients are multiplied by :math:`\min(1, \text{max\_norm} / (\text{norm} + 10^{-6}))`, the factor of
    `torch.nn.utils.clip_grad_norm_` [1]_.

    Parameters
    ----------
    parameters : Tensor, or iterable of Tensor or of tuple of str and Tensor
        The parameters. With the pairs of ``module.named_parameters()``, errors give their names. A
        parameter that is there several times is counted and scaled once.
    max_norm : float
        The bound of the norm.
    norm_type : float, optional
        The order of the norm, such as 2, 1 or ``"inf"``.
    error_if_nonfinite : bool, optional
        Whether NaN or infinity in a gradient raises. Nothing is written then.
    foreach : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    dtype : torch.dtype, optional
        The type of the result. The default is float64 if a gradient has it, or if the norm is beyond
        float32, and float32 otherwise, also for float16 and bfloat16.
    norms : Tensor or ndarray of float64 of shape (number of parameters,), optional
        Is filled with the norm of the gradient of each parameter; 0 for one that has none.

    Returns
    -------
    Tensor
        The norm before clipping, of shape ().

    Raises
    ------
    NonFiniteGradientError
        With `error_if_nonfinite`, if an element is NaN or infinite. It is a `RuntimeError`.
    TypeError
        If an item of `parameters` is no tensor, or `norms` is not float64.
    ValueError
        If `norms` has another shape, or gradients share memory.

    Notes
    -----
    The norm is computed in float64 and never overflows: gradients that are finite are clipped by a finite
    norm. The norm of a sparse gradient is that of the coalesced one. An infinite element makes finite
    elements 0 and infinite ones NaN, and a NaN makes all elements NaN, as in PyTorch.

    What fastclip does not take is passed to PyTorch's function: tensors on other devices, subclasses of
    `Tensor` except for `Parameter`, and orders that are not positive.

    References
    ----------
    .. [1] PyTorch, `torch.nn.utils.clip_grad_norm_`.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> fastclip.torch.clip_grad_norm_([weight], max_norm=1.0)
    tensor(5.)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    bound, order = float(max_norm), float(norm_type)
    if torch.compiler.is_compiling():
        if norms is not None:
            raise ValueError("norms cannot be filled in a compiled region; call the function outside of it")
        in_graph = gradients_in_graph(parameters)
        if not in_graph:
            return torch.tensor(0.0, dtype=dtype)
        norm = torch.ops.fastclip.clip_grad_norm_(in_graph, bound, order, error_if_nonfinite)
        return norm if dtype is None else norm.to(dtype)
    listed, names = list_of_parameters(parameters, warns=True)
    gradients = gradients_of(listed)
    if dtype is not None:
        _check_dtype(dtype)
    if norms is not None:
        _check_norms(norms, len(listed))
    if bound >= 0.0 and order > 0.0:
        clipping = (bound, bool(error_if_nonfinite))
        measured = clip(gradients.tensors, order, clipping, norms is not None)
        if measured is not None:
            if error_if_nonfinite and measured.is_nonfinite:
                raise _error(measured, gradients.tensors, order, _names(gradients, names))
            if norms is not None:
                _fill_norms(norms, gradients, measured.norms or [])
            return measured.tensor(dtype)
    if norms is not None:
        raise TypeError(_left_to_torch("norms", gradients, names))
    total = ORIGINALS["clip_grad_norm_"](listed, bound, order, error_if_nonfinite, foreach)
    return total if dtype is None else total.to(dtype)


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype!r}; it takes a torch.dtype of floats, or None")


def _check_norms(norms: Any, count: int) -> None:
    is_tensor = isinstance(norms, torch.Tensor)
    if not is_tensor and not isinstance(norms, np.ndarray):
        raise TypeError(f"norms is {type(norms).__name__}; it takes a tensor or an array of float64")
    if norms.dtype != (torch.float64 if is_tensor else np.float64):
        raise TypeError(f"norms has the type {norms.dtype}; it takes float64")
    if tuple(norms.shape) != (count,):
        raise ValueError(
            f"norms has the shape {tuple(norms.shape)}; it takes ({count},), one number for each parameter"
        )
    if is_tensor and norms.device.type != "cpu":
        raise ValueError(f"norms is on {norms.device}; it takes a tensor on the CPU")
    if is_tensor:
        is_writable = norms.layout is torch.strided and not norms.is_inference()
        strides = norms.stride() if norms.layout is torch.strided else (1,)
    else:
        is_writable, strides = norms.flags.writeable, norms.strides
    if not is_tensor and not is_writable:
        raise ValueError("norms is read-only; it takes an array that can be written")
    if not is_writable or (count > 1 and strides[0] == 0):
        raise ValueError("norms cannot be written; it takes memory of its own for each number")


def _fill_norms(norms: Any, gradients: Gradients, values: list[float]) -> None:
    filled = np.zeros(len(norms))
    if gradients.positions is None:
        filled[:] = values
    else:
        for at, gradient in enumerate(gradients.of_parameters):
            if gradient is not None:
                filled[at] = values[gradient]
    if isinstance(norms, torch.Tensor):
        with torch.no_grad():
            norms.copy_(torch.from_numpy(filled))
    else:
        norms[...] = filled


def _left_to_torch(argument: str, gradients: Gradients, names: list[str] | None) -> str:
    for name, gradient in zip(_names(gradients, names), gradients.tensors, strict=True):
        if type(gradient) is not torch.Tensor or gradient.device.type != "cpu":
            return (
                f"{argument} takes gradients on the CPU that fastclip clips; that of {name} is a"
                f" {type(gradient).__name__} on {gradient.device}"
            )
    return f"{argument} takes bounds that are not negative and orders that are positive"


def get_total_norm(
    tensors: torch.Tensor | Iterable[torch.Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute the norm of all tensors together, as `torch.nn.utils.get_total_norm` does.

    Parameters
    ----------
    tensors : Tensor or iterable of Tensor
        The tensors, such as the gradients of parameters. One that is there several times counts once.
    norm_type : float, optional
        The order of the norm, such as 2, 1 or ``"inf"``.
    error_if_nonfinite : bool, optional
        Whether NaN or infinity in a tensor raises.
    foreach : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.
    dtype : torch.dtype, optional
        The type of the result, see `clip_grad_norm_`.

    Returns
    -------
    Tensor
        The norm, of shape ().

    Raises
    ------
    NonFiniteGradientError
        With `error_if_nonfinite`, if an element is NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> fastclip.torch.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    order = float(norm_type)
    if torch.compiler.is_compiling():
        in_graph = tensors_in_graph(tensors)
        if not in_graph:
            return torch.tensor(0.0, dtype=dtype)
        norm = torch.ops.fastclip.get_total_norm(in_graph, order, error_if_nonfinite)
        return norm if dtype is None else norm.to(dtype)
    listed = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    check_tensors(listed, "tensors")
    if dtype is not None:
        _check_dtype(dtype)
    if order > 0.0:
        once = list({id(tensor): tensor for tensor in listed}.values())
        measured = clip(once, order, None, bool(error_if_nonfinite))
        if measured is not None:
            if error_if_nonfinite and measured.is_nonfinite:
                raise _error(measured, once, order, [f"tensors[{at}]" for at in range(len(once))])
            return measured.tensor(dtype)
    total = ORIGINALS["get_total_norm"](listed, order, error_if_nonfinite, foreach)
    return total if dtype is None else total.to(dtype)


def clip_grads_with_norm_(
    parameters: TensorOrTensors,
    max_norm: float,
    total_norm: torch.Tensor | float,
    foreach: bool | None = None,
) -> None:
    r"""Scale the gradients of parameters by a norm that was computed before, in place.

    They are multiplied by :math:`\min(1, \text{max\_norm} / (\text{total\_norm} + 10^{-6}))`, as
    `torch.nn.utils.clip_grads_with_norm_` does.

    Parameters
    ----------
    parameters : Tensor, or iterable of Tensor or of tuple of str and Tensor
        The parameters, not their gradients.
    max_norm : float
        The bound of the norm.
    total_norm : Tensor or float
        The norm of the gradients, such as that of `get_total_norm`.
    foreach : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.

    Raises
    ------
    TypeError
        If the tensors look like gradients: none of them has a gradient, and one requires none. PyTorch scales
        nothing then.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> fastclip.torch.clip_grads_with_norm_([weight], max_norm=1.0, total_norm=5.0)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    bound = float(max_norm)
    if torch.compiler.is_compiling():
        in_graph = gradients_in_graph(parameters)
        if in_graph:
            is_tensor = isinstance(total_norm, torch.Tensor)
            total = total_norm if is_tensor else torch.tensor(total_norm, dtype=torch.float64)
            torch.ops.fastclip.clip_grads_with_norm_(in_graph, bound, total)
        return
    listed, _ = list_of_parameters(parameters, warns=False)
    gradients = gradients_of(listed).tensors
    if not gradients:
        if any(not tensor.requires_grad for tensor in listed):
            raise TypeError(
                "parameters: none of the tensors has a gradient, and one requires none; it takes parameters, "
                "whose gradients are scaled, and not the gradients themselves"
            )
        return
    norm = _norm_number(total_norm)
    if bound >= 0.0 and norm is not None and not norm < 0.0:
        if _core.torch_clip_by_known_norm(BINDING, gradients, norm, bound):
            return
        with torch.no_grad():
            dense = values_of(gradients)
        if dense is not None and _core.torch_clip_by_known_norm(BINDING, dense[1], norm, bound):
            return
    total = total_norm if isinstance(total_norm, torch.Tensor) else torch.tensor(norm, device="cpu")
    ORIGINALS["clip_grads_with_norm_"](listed, bound, total, foreach)


def _norm_number(norm: torch.Tensor | float) -> float | None:
    """Return a norm as a number; None if it is a tensor that PyTorch has to read."""
    if not isinstance(norm, torch.Tensor):
        return float(norm)
    return float(norm.detach()) if is_plain(norm) else None


def clip_grad_value_(parameters: TensorOrTensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp the elements of the gradients of parameters, in place, as `torch.nn.utils.clip_grad_value_` does.

    Parameters
    ----------
    parameters : Tensor, or iterable of Tensor or of tuple of str and Tensor
        The parameters.
    clip_value : float
        The bound: elements are brought to the range from ``-clip_value`` to ``clip_value``.
    foreach : bool, optional
        Taken as in PyTorch, and not used for tensors on the CPU.

    Examples
    --------
    >>> import torch
    >>> import fastclip.torch
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, -0.5])
    >>> fastclip.torch.clip_grad_value_([weight], clip_value=1.0)
    >>> weight.grad
    tensor([ 1.0000, -0.5000])
    """
    bound = float(clip_value)
    if torch.compiler.is_compiling():
        in_graph = gradients_in_graph(parameters)
        if in_graph:
            torch.ops.fastclip.clip_grad_value_(in_graph, bound)
        return
    listed, _ = list_of_parameters(parameters, warns=False)
    gradients = gradients_of(listed).tensors
    if bound >= 0.0 and _core.torch_clip_by_value(BINDING, gradients, -bound, bound):
        return
    ORIGINALS["clip_grad_value_"](listed, bound, foreach)
