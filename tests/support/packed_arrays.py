"""Nested values with arrays of many dtypes: one flat array per dtype, and JSON that points into them.

The recorders of clipping and training results write and read such files. Nothing is pickled, and equal values
are encoded to equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Slices(NamedTuple):
    """Values, indices and shape of an ``IndexedSlices``, independent of any framework."""

    values: NDArray[Any]
    indices: NDArray[Any]
    dense_shape: NDArray[Any] | None = None


def dtype_of(name: str) -> np.dtype[Any]:
    """Returns the NumPy dtype of a name, which may be ``bfloat16``."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


class Pack:
    """One growing flat array per dtype; `encode` converts a value to JSON that points into them.

    Parameters
    ----------
    share : bool
        Store arrays of equal dtype, shape and bytes once.
    """

    def __init__(self, *, share: bool = False) -> None:
        self.flat: dict[str, list[NDArray[Any]]] = {}
        self.length: dict[str, int] = {}
        self.stored: dict[tuple[str, tuple[int, ...], bytes], dict[str, Any]] | None = {} if share else None

    def array(self, value: NDArray[Any]) -> dict[str, Any]:
        if self.stored is None:
            return self._append(value)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self.stored:
            self.stored[key] = self._append(value)
        return self.stored[key]

    def _append(self, value: NDArray[Any]) -> dict[str, Any]:
        # Of a long array whose elements are all equal, one element is stored.
        constant = value.size > 256 and bool((value == value.flat[0]).all())
        stored = value.reshape(-1)[:1] if constant else value.reshape(-1)
        name = value.dtype.name
        start = self.length.get(name, 0)
        self.flat.setdefault(name, []).append(stored)
        self.length[name] = start + stored.size
        return {"array": [name, start, list(value.shape)], **({"constant": 1} if constant else {})}

    def encode(self, value: Any) -> Any:
        if isinstance(value, Slices):
            return {"slices": [self.encode(part) for part in value]}
        if isinstance(value, np.generic):
            return {"scalar": self.array(np.asarray(value))}
        if isinstance(value, np.ndarray):
            return self.array(value)
        if isinstance(value, float):
            return {"float": value.hex()}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(entry) for entry in value]}
        if isinstance(value, list):
            return [self.encode(entry) for entry in value]
        if value is None or isinstance(value, int | str):
            return value
        raise TypeError(f"cannot store a {type(value).__name__}")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the flat arrays by dtype name, bfloat16 as its bits in uint16."""
        joined = {name: np.concatenate(pieces) for name, pieces in sorted(self.flat.items())}
        if "bfloat16" in joined:
            joined["bfloat16"] = joined["bfloat16"].view(np.uint16)
        return joined


def decode(value: Any, flat: Mapping[str, NDArray[Any]]) -> Any:
    """Returns the value that `Pack.encode` converted to this JSON."""
    if isinstance(value, list):
        return [decode(entry, flat) for entry in value]
    if not isinstance(value, dict):
        return value
    if "slices" in value:
        return Slices(*(decode(part, flat) for part in value["slices"]))
    if "scalar" in value:
        return decode(value["scalar"], flat)[()]
    if "float" in value:
        return float.fromhex(value["float"])
    if "tuple" in value:
        return tuple(decode(entry, flat) for entry in value["tuple"])
    name, start, shape = value["array"]
    if value.get("constant"):
        return np.full(shape, flat[name][start], dtype_of(name))
    length = int(np.prod(shape, dtype=np.int64))
    return flat[name][start : start + length].reshape(shape).copy()
