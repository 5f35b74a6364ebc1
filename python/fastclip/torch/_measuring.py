"""Measuring and clipping lists of gradients."""

from __future__ import annotations

import numpy as np
import torch

from fastclip import _core
from fastclip.torch._binding import BINDING
from fastclip.torch._sparse import values_of

__all__ = ["Measured", "clip"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Measured:
    """The norm of gradients, as the extension module returns it."""

    __slots__ = ("has_float64", "is_nonfinite", "norm", "norms")

    def __init__(self, norm: float, is_nonfinite: bool, has_float64: bool, norms: list[float] | None) -> None:
        self.norm, self.is_nonfinite = norm, is_nonfinite
        self.has_float64, self.norms = has_float64, norms

    def tensor(self, dtype: torch.dtype | None) -> torch.Tensor:
        if dtype is None:
            # An infinite norm of finite gradients can only be beyond float64.
            is_beyond = not self.is_nonfinite and self.norm > _FLOAT32_MAX
            dtype = torch.float64 if self.has_float64 or is_beyond else torch.float32
        return torch.tensor(self.norm, dtype=dtype, device="cpu")


def clip(
    gradients: list[torch.Tensor],
    norm_type: float,
    clipping: tuple[float, bool] | None,
    lists_norms: bool,
) -> Measured | None:
    """Measure gradients and clip them. Returns None if they are left to PyTorch."""
    answer = _core.torch_clip_by_global_norm(BINDING, gradients, None, norm_type, clipping, lists_norms)
    if answer is None:
        with torch.no_grad():
            dense = values_of(gradients)
        if dense is None:
            return None
        measured, scaled = dense
        answer = _core.torch_clip_by_global_norm(BINDING, scaled, measured, norm_type, clipping, lists_norms)
        if answer is None:
            return None
    return Measured(*answer)
