"""Names of arguments and of the tensors in them, for the error messages of the compiled part."""

from __future__ import annotations

__all__ = ["ArgumentNames", "single_tensor_names"]

#: The name of the tensors' argument and the names of its leaves, then the same two for the outputs. Without
#: names of leaves (None) they are ``argument[0]``, ``argument[1]``, ….
ArgumentNames = tuple[str, list[str] | None, str, list[str] | None]


def single_tensor_names(argument: str) -> ArgumentNames:
    """Returns the names for a call with one tensor, whose output is ``out``."""
    return (argument, [argument], "out", ["out"])
