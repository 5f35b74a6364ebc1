"""Operators for regions that `torch.compile` compiles: it calls them without tracing what is inside.

The type of a norm is known before an operator runs: it is float32 also where the norm is beyond float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastclip import _core
from fastclip.torch._binding import BINDING
from fastclip.torch._errors import nonfinite_gradient_error
from fastclip.torch._measuring import clip
from fastclip.torch._originals import ORIGINALS
from fastclip.torch._plain import is_plain

__all__ = ["gradients_in_graph", "tensors_in_graph"]


def tensors_in_graph(tensors: torch.Tensor | Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors, or those of pairs of a name and a tensor, by code that is traced."""
    if isinstance(tensors, torch.Tensor):
        return [tensors]
    return [item[1] if isinstance(item, tuple) else item for item in tensors]


def gradients_in_graph(parameters: torch.Tensor | Iterable[Any]) -> list[torch.Tensor]:
    """Return the gradients of parameters, by code that is traced."""
    listed = tensors_in_graph(parameters)
    return [parameter.grad for parameter in listed if parameter.grad is not None]


def _norm_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    wide = (torch.float64, torch.complex128)
    return torch.float64 if any(tensor.dtype in wide for tensor in tensors) else torch.float32


def _empty_norm(tensors: list[torch.Tensor], *_: Any) -> torch.Tensor:
    return torch.empty((), dtype=_norm_dtype(tensors), device=tensors[0].device)


def _scale(gradients: list[torch.Tensor], max_norm: float, total_norm: torch.Tensor) -> None:
    """Scale gradients by operations on tensors."""
    factor = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))


@torch.library.custom_op("fastclip::get_total_norm", mutates_args=())
def _get_total_norm(tensors: list[torch.Tensor], norm_type: float, error_if_nonfinite: bool) -> torch.Tensor:
    measured = clip(tensors, norm_type, None, error_if_nonfinite) if norm_type > 0.0 else None
    if measured is None:
        norm = ORIGINALS["get_total_norm"](tensors, norm_type, error_if_nonfinite)
        return norm.to(_norm_dtype(tensors), copy=True)
    if error_if_nonfinite and measured.is_nonfinite:
        raise _error(norm_type, measured.norms)
    return measured.tensor(_norm_dtype(tensors))


@torch.library.custom_op("fastclip::clip_grad_norm_", mutates_args=("gradients",))
def _clip_grad_norm_(
    gradients: list[torch.Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> torch.Tensor:
    measured = None
    if max_norm >= 0.0 and norm_type > 0.0:
        measured = clip(gradients, norm_type, (max_norm, error_if_nonfinite), error_if_nonfinite)
    if measured is None:
        norm = ORIGINALS["get_total_norm"](gradients, norm_type, error_if_nonfinite)
        _scale(gradients, max_norm, norm)
        return norm.to(_norm_dtype(gradients), copy=True)
    if error_if_nonfinite and measured.is_nonfinite:
        raise _error(norm_type, measured.norms)
    return measured.tensor(_norm_dtype(gradients))


@torch.library.custom_op("fastclip::clip_grads_with_norm_", mutates_args=("gradients",))
def _clip_grads_with_norm_(gradients: list[torch.Tensor], max_norm: float, total_norm: torch.Tensor) -> None:
    norm = float(total_norm) if is_plain(total_norm) else -1.0
    is_taken = max_norm >= 0.0 and not norm < 0.0
    if is_taken and _core.torch_clip_by_known_norm(BINDING, gradients, norm, max_norm):
        return
    _scale(gradients, max_norm, total_norm)


@torch.library.custom_op("fastclip::clip_grad_value_", mutates_args=("gradients",))
def _clip_grad_value_(gradients: list[torch.Tensor], clip_value: float) -> None:
    if clip_value >= 0.0 and _core.torch_clip_by_value(BINDING, gradients, -clip_value, clip_value):
        return
    for gradient in gradients:
        gradient.clamp_(-clip_value, clip_value)


_get_total_norm.register_fake(_empty_norm)
_clip_grad_norm_.register_fake(_empty_norm)
_clip_grads_with_norm_.register_fake(lambda *_: None)
_clip_grad_value_.register_fake(lambda *_: None)


def _error(norm_type: float, norms: list[float] | None) -> Exception:
    message = (
        f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
        "clipped."
    )
    names = [f"gradients[{at}]" for at in range(len(norms or []))]
    return nonfinite_gradient_error(message, norms or [], names)
