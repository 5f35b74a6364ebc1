"""The argument `var_list`: variables in a list, an iterator or a nested container."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MappingView, Set
from typing import Any

from fastclip._arguments.arrays import is_array_like

__all__ = ["is_container", "named_variables"]


def is_container(value: Any) -> bool:
    """Whether an argument contains variables, rather than being one or something else."""
    if not isinstance(value, Iterable) or is_array_like(value):
        return False
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return True
    # A buffer is one variable. (Before Python 3.12, the protocol of buffers has no method to look for.)
    return False


def named_variables(var_list: Any) -> list[tuple[str, Any]]:
    """Return the variables of a container, each with its name in error messages.

    Parameters
    ----------
    var_list : object
        A variable, or a list, dict, iterator, view of a dict or other iterable of variables, also nested. The
        variables of a dict are its values in their order. An iterator is read to its end.

    Raises
    ------
    TypeError
        If a container is a set, whose order is not that in which variables were added.
    ValueError
        If an iterator yields nothing, because it was read before or had no entries; or if the container is
        nested too deeply.
    """
    entries: list[tuple[str, Any]] = []
    try:
        _collect(var_list, "var_list", entries)
    except RecursionError:
        raise ValueError("var_list is nested too deeply, or contains itself") from None
    return entries


# Not a function inside of the other: such a function would keep variables until garbage is collected.
def _collect(value: Any, path: str, entries: list[tuple[str, Any]]) -> None:
    """Append the variables of a container to `entries`, each with its name."""
    if isinstance(value, Mapping):
        for key in value:
            _collect(value[key], f"{path}[{key!r}]", entries)
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            _collect(entry, f"{path}[{i}]", entries)
    elif not is_container(value):
        entries.append((path, value))
    elif isinstance(value, Set) and not isinstance(value, MappingView):
        raise TypeError(f"{path} is a {type(value).__name__}, which has no order; it takes a list")
    else:
        count = 0
        for i, entry in enumerate(value):
            _collect(entry, f"{path}[{i}]", entries)
            count += 1
        if isinstance(value, Iterator) and not count:
            raise ValueError(
                f"{path} is a {type(value).__name__} that is empty or was used up before; it takes variables"
            )
