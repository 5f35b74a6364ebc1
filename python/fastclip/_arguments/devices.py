"""Recognition of arrays on a device."""

from __future__ import annotations

from typing import Any

from fastclip import _core

__all__ = ["is_on_device"]

#: The class of arrays on a device. Builds without the feature ``gpu`` have none.
_DeviceArray: Any = getattr(_core, "DeviceArray", None)


def is_on_device(value: Any) -> bool:
    """Return whether a value is an array on a device."""
    return type(value) is _DeviceArray
