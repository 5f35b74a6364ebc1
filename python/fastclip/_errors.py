"""Exceptions of fastclip."""

from __future__ import annotations

from fastclip._core import NonFiniteError

__all__ = ["NonFiniteError"]
