"""Checks whether an argument of a clip function is differentiated by autograd or by torch.

If so, the functions use the rules in `_autodiff/differentiation_rules.py` or `_autodiff/torch_rules.py`.
Neither library is imported here: unless the caller has imported it, nothing can be differentiated by it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastclip import _core
from fastclip._arguments.foreign import find_tangent
from fastclip._arguments.rebuilding import stored_entries
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = ["holds_traced", "is_tensor_with_grad", "is_traced"]


def is_traced(*values: Any) -> bool:
    """Whether autograd traces one of several arguments."""
    tracer = sys.modules.get("autograd.tracer")
    return tracer is not None and _has_box(values, tracer)


def holds_traced(container: Any, *values: Any) -> bool:
    """Whether autograd traces an entry of a container, or one of several other arguments."""
    tracer = sys.modules.get("autograd.tracer")
    if tracer is None:
        return False
    if _has_box(values, tracer):
        return True
    try:
        return not _core.is_plain(container) and _holds_box(container, tracer)
    except RecursionError:
        # The container contains itself; `flatten` raises the error.
        return False


def _has_box(values: tuple[Any, ...], tracer: Any) -> bool:
    for value in values:
        kind = type(value)
        # The usual types are excluded first, because looking up autograd's types is slower.
        if kind is not np.ndarray and kind is not float and value is not None and _is_box(value, tracer):
            return True
    return False


def _is_box(value: Any, tracer: Any) -> bool:
    kind = type(value)
    return kind in tracer.Box.types and (kind is not Variable or value._box() is not None)


def _holds_box(value: Any, tracer: Any) -> bool:
    if _is_box(value, tracer):
        return True
    kind = type(value)
    # Reads what the base class stores; `flatten` checks what a subclass does with it.
    if issubclass(kind, (list, tuple)):
        return any(_holds_box(entry, tracer) for entry in stored_entries(value))
    return issubclass(kind, dict) and any(_holds_box(entry, tracer) for entry in list(dict.values(value)))


def is_tensor_with_grad(*values: Any) -> bool:
    """Whether one of several arguments is a tensor of torch that requires grad, and grad mode is on.

    For tensors that are clipped, the compiled functions find out: they raise ``_core.Recorded``.
    """
    torch = _recording_torch()
    if torch is None:
        return False
    tensors = [value for value in values if issubclass(type(value), torch.Tensor)]
    if tensors and find_tangent(tensors) is not None:
        raise TypeError(
            "a bound is a torch tensor with a tangent of forward-mode differentiation; it takes one without"
        )
    return _has_tensor_with_grad(values, torch)


def _recording_torch() -> Any:
    """Returns torch if it is imported and records graphs, else None."""
    torch = sys.modules.get("torch")
    # While torch is being imported, it has no such function yet.
    is_grad_enabled = getattr(torch, "is_grad_enabled", None)
    return torch if is_grad_enabled is not None and is_grad_enabled() else None


def _has_tensor_with_grad(values: Iterable[Any], torch: Any) -> bool:
    for value in values:
        kind = type(value)
        if kind is np.ndarray or kind is float or value is None:
            continue
        if kind is Variable:
            value = value.value
        elif kind is IndexedSlices:
            value = value.values
        if issubclass(type(value), torch.Tensor) and value.requires_grad:
            return True
    return False
