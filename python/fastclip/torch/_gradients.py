"""The gradients of the parameters that a clip function is passed."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

__all__ = ["Gradients", "TensorOrTensors", "gradients_of", "list_of_parameters"]

#: What the clip functions take: a tensor, tensors, or the pairs of ``module.named_parameters()``.
TensorOrTensors = torch.Tensor | Iterable[torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


class Gradients(NamedTuple):
    """Gradients, each once, with the positions of their parameters."""

    tensors: list[torch.Tensor]
    #: The position of the parameter of each gradient; None if every parameter has a gradient of its own.
    positions: list[int] | None


def list_of_parameters(
    parameters: TensorOrTensors, *, warns: bool
) -> tuple[list[torch.Tensor], list[str] | None]:
    """Return the list of the parameters, and their names if they are passed as pairs with names.

    Parameters
    ----------
    parameters : Tensor, or iterable of Tensor or of tuple of str and Tensor
    warns : bool
        Whether a generator without items is warned of, as in PyTorch's ``clip_grad_norm_``.

    Raises
    ------
    TypeError
        If an item is neither a tensor nor a pair of a name and a tensor.
    """
    if isinstance(parameters, torch.Tensor):
        return [parameters], None
    items: list[Any] = list(parameters)
    if not items:
        if warns and isinstance(parameters, types.GeneratorType):
            warnings.warn(
                "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3
            )
        return items, None
    if isinstance(items[0], tuple):
        if all(_is_named(item) for item in items):
            return [tensor for _, tensor in items], [name for name, _ in items]
        raise TypeError(_wrong_item(items, "a tuple of a name and a tensor", _is_named))
    return items, None


def _is_tensor(item: Any) -> bool:
    return isinstance(item, torch.Tensor)


def _is_named(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], torch.Tensor)
    )


def _wrong_item(items: list[Any], taken: str, is_right: Any) -> str:
    index, item = next((index, item) for index, item in enumerate(items) if not is_right(item))
    return f"parameters[{index}] is {type(item).__name__}; it takes {taken}"


def gradients_of(parameters: list[torch.Tensor]) -> Gradients:
    """Return the gradients of parameters. A gradient that several parameters share is there once.

    Raises
    ------
    TypeError
        If a parameter is no tensor.
    """
    try:
        tensors = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    except AttributeError:
        if all(map(_is_tensor, parameters)):
            raise
        raise TypeError(_wrong_item(parameters, "a tensor", _is_tensor)) from None
    if len(tensors) == len(parameters) and len(set(map(id, tensors))) == len(tensors):
        return Gradients(tensors, None)
    return _with_positions(parameters)


def _with_positions(parameters: list[torch.Tensor]) -> Gradients:
    tensors, positions, seen = [], [], set()
    for position, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is not None and id(gradient) not in seen:
            seen.add(id(gradient))
            tensors.append(gradient)
            positions.append(position)
    return Gradients(tensors, positions)
