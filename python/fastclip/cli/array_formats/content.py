"""What an npz or safetensors file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Progress = Callable[[int], None]  # called with the number of bytes read or written since the last call


@dataclass
class ArrayFile:
    """Content of an npz or safetensors file.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Arrays by name, in the order of the file.
    metadata : dict of str to str, or None
        Metadata of a safetensors file; None if it has none, and for npz files.
    compressed : bool
        Whether any entry of the npz file was compressed.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    compressed: bool = False


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype; for a structured one, which has no name of its own, "structured"."""
    return "structured" if dtype.names is not None else dtype.name
