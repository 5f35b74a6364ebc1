"""The exception that is fastclip's own."""

from __future__ import annotations

from fastclip._core import NonFiniteError

__all__ = ["NonFiniteError"]
