"""Recognition of arrays on a device."""

from __future__ import annotations

from typing import Any

from fastclip import _core
from fastclip._arguments.arrays import describe

__all__ = ["check_device_variables", "check_one_memory", "is_on_device", "place_of"]

#: The class of arrays on a device. Builds without the feature ``gpu`` have none.
_DeviceArray: Any = getattr(_core, "DeviceArray", None)


def is_on_device(value: Any) -> bool:
    """Return whether a value is an array on a device."""
    return type(value) is _DeviceArray


def place_of(value: Any) -> str:
    """Return where the memory of a tensor is, for messages."""
    return "on a device" if is_on_device(value) else "in host memory"


def check_one_memory(variables: list[Any], name: str) -> None:
    """Raise a TypeError if some variables are in host memory, and others on a device.

    `name` is the name of the list in messages.
    """
    for index, variable in enumerate(variables):
        if is_on_device(variable) is not is_on_device(variables[0]):
            raise TypeError(
                f"{name}[{index}] is {describe(variable)} {place_of(variable)}, where {name}[0] is "
                f"{place_of(variables[0])}"
            )


def check_device_variables(variables: list[Any], name: str) -> None:
    """Check variables that are on a device.

    Parameters
    ----------
    variables : list
        The variables.
    name : str
        The name of the list in messages.

    Raises
    ------
    TypeError
        If one is not float32.
    ValueError
        If an array is given twice.
    """
    places: dict[int, int] = {}
    for index, variable in enumerate(variables):
        if variable.dtype.name != "float32":
            raise TypeError(f"{name}[{index}] is {variable!r}; variables on a device are float32")
        other = places.setdefault(id(variable), index)
        if other != index and variable.size:
            raise ValueError(f"{name}[{index}] is the same array as {name}[{other}]")
