"""The gradients of the parameters that a clip function is passed."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import torch

__all__ = ["Gradients", "TensorOrTensors", "check_tensors", "gradients_of", "list_of_parameters"]

#: What the clip functions take: a tensor, tensors, or the pairs of ``module.named_parameters()``.
TensorOrTensors: TypeAlias = torch.Tensor | Iterable[torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


class Gradients(NamedTuple):
    """Gradients, each once."""

    tensors: list[torch.Tensor]
    #: The position of the first parameter of each gradient; None if every parameter has a gradient of its
    #: own.
    positions: list[int] | None
    #: The gradient of each parameter, as its index among the gradients; None for a parameter that has none.
    #: Empty if every parameter has a gradient of its own.
    of_parameters: list[int | None]


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


def check_tensors(items: list[Any], argument: str) -> None:
    """Raise a `TypeError` for the first item that is no tensor."""
    for index, item in enumerate(items):
        if not _is_tensor(item):
            raise TypeError(f"{argument}[{index}] is {type(item).__name__}; it takes a tensor")


def gradients_of(parameters: list[torch.Tensor]) -> Gradients:
    """Return the gradients of parameters. A gradient that several parameters share is there once.

    Raises
    ------
    TypeError
        If a parameter is no tensor.
    """
    if not all(issubclass(kind, torch.Tensor) for kind in set(map(type, parameters))):
        check_tensors(parameters, "parameters")
    tensors = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    if len(tensors) == len(parameters) and len(set(map(id, tensors))) == len(tensors):
        return Gradients(tensors, None, [])
    return _with_positions(parameters)


def _with_positions(parameters: list[torch.Tensor]) -> Gradients:
    tensors: list[torch.Tensor] = []
    positions: list[int] = []
    of_parameters: list[int | None] = []
    seen: dict[int, int] = {}
    for position, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            of_parameters.append(None)
            continue
        index = seen.setdefault(id(gradient), len(tensors))
        if index == len(tensors):
            tensors.append(gradient)
            positions.append(position)
        of_parameters.append(index)
    return Gradients(tensors, positions, of_parameters)
