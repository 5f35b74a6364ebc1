"""Norms of gradients that are measured in the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from fastclip import _core
from fastclip.torch._binding import BINDING

__all__ = ["BackwardNorms", "BackwardNormsHandle"]

#: Classes of modules whose gradients are reduced after the hooks have run.
_REDUCING = ("DistributedDataParallel", "FullyShardedDataParallel")


class BackwardNorms:
    """The magnitudes of gradients as they were after the backward pass."""

    __slots__ = ("_measured",)

    def __init__(self) -> None:
        #: For the identity of each parameter: the gradient, its version, address and magnitude.
        self._measured: dict[int, tuple[weakref.ref[torch.Tensor], int, int, tuple[float, int]]] = {}

    def measure(self, parameter: torch.Tensor) -> None:
        """Measure the gradient of a parameter, which is in the cache now."""
        gradient = parameter.grad
        if gradient is None:
            return
        magnitude = _core.torch_magnitude(BINDING, gradient)
        if magnitude is not None:
            entry = (weakref.ref(gradient), gradient._version, gradient.data_ptr(), magnitude)
            self._measured[id(parameter)] = entry

    def known(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[tuple[float, int] | None]:
        """Return the magnitude of each gradient that has not changed since, and None for the others."""
        return [
            self._known(parameter, gradient)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]

    def _known(self, parameter: torch.Tensor, gradient: torch.Tensor) -> tuple[float, int] | None:
        entry = self._measured.get(id(parameter))
        if entry is None:
            return None
        measured, version, address, magnitude = entry
        is_same = measured() is gradient
        is_kept = gradient._version == version and gradient.data_ptr() == address
        return magnitude if is_same and is_kept else None


class BackwardNormsHandle:
    """The hooks of `measure_in_backward`, to be removed."""

    def __init__(
        self,
        norms: BackwardNorms,
        source: torch.nn.Module | Iterable[torch.Tensor],
        param_groups: list[dict[str, Any]],
    ) -> None:
        if isinstance(source, torch.nn.Module):
            if type(source).__name__ in _REDUCING:
                raise ValueError(
                    f"model is a {type(source).__name__}, which reduces gradients after they were measured;"
                    " it takes a module whose gradients the backward pass leaves as they are"
                )
            parameters = list(source.parameters())
        else:
            parameters = list(source)
        own = {id(parameter) for group in param_groups for parameter in group["params"]}
        self._handles: list[Any] = [
            parameter.register_post_accumulate_grad_hook(norms.measure)
            for parameter in parameters
            if id(parameter) in own and parameter.requires_grad
        ]

    def remove(self) -> None:
        """Remove the hooks. The optimizer then measures gradients in its steps."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
