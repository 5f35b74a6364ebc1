"""Containers of tensors whose leaves Python code converts, as the rules of differentiation do.

Most calls pass their containers to the compiled part, which walks and rebuilds them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastclip import _core
from fastclip._arguments.arrays import as_array
from fastclip._indexed_slices import IndexedSlices

__all__ = ["Tree", "check_same_structure", "flatten"]


@dataclass(slots=True)
class Tree:
    """A flattened container.

    Attributes
    ----------
    leaves : list
        A converted tensor, or None, for each entry.
    names : list of str
        The name of each leaf in error messages.
    entries : list
        The objects that the leaves were converted from, as they were when the container was read.
    structure : fastclip._core.Tree
        The container's structure.
    """

    leaves: list[Any]
    names: list[str]
    entries: list[Any]
    structure: _core.Tree

    def unflatten(self, leaves: list[Any]) -> Any:
        """Builds the container from as many new leaves, which take the place of the values of slices."""
        pairs = zip(leaves, self.entries, strict=True)
        return self.structure.unflatten(
            [entry._with_values(leaf) if isinstance(entry, IndexedSlices) else leaf for leaf, entry in pairs]
        )


def flatten(container: Any, argument: str, to_array: Callable[[Any, str], Any] = as_array) -> Tree:
    """Flattens a container of tensors.

    Parameters
    ----------
    container : list, tuple, dict or registered pytree
        Tensors, IndexedSlices, None, or containers of these.
    argument : str
        Name of the argument in error messages.
    to_array : callable, optional
        Converts an entry, given its name.

    Raises
    ------
    TypeError
        If the argument is an array, a scalar, a string or a generator, an entry is not an array, or a
        container cannot be rebuilt with other entries.
    ValueError
        If it is nested too deeply, or contains itself.
    """
    structure = _core.walk(container, argument)
    entries, names = structure.entries, structure.names()
    leaves = []
    for entry, name in zip(entries, names, strict=True):
        tensor = entry.values if isinstance(entry, IndexedSlices) else entry
        leaves.append(None if tensor is None else to_array(tensor, name))
    return Tree(leaves, names, entries, structure)


def check_same_structure(tree: Tree, model: Tree) -> None:
    """Raises ValueError if two containers differ in their keys, fields or lengths."""
    tree.structure.check_same_structure(model.structure)
