"""Containers of tensors: nested lists, tuples, named tuples and dicts made a flat list, and back.

A plain list of arrays, which is what most calls bring, is found to be flat by the compiled part and goes
through as it is. Other registered containers go through optree, if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arrays import as_array, as_output, describe, is_array_like
from fastclip.indexed_slices import IndexedSlices

__all__ = ["Names", "Tree", "check_same_structure", "flatten", "flatten_like"]

Names = tuple[str, list[str] | None, str, list[str] | None]

_Leaf = Callable[[Any, str], npt.NDArray[Any]]
_Rebuild = Callable[[list[Any]], Any]


@dataclass(slots=True)
class Tree:
    """A container as a flat list.

    Attributes
    ----------
    leaves : list or tuple
        An array, or None, for each entry.
    labels : list of str or None
        What each entry is called in messages; None for ``argument[0]``, ``argument[1]``, ….
    argument : str
        The name of the argument.
    rebuild : callable
        Makes the container of as many new leaves.
    entries : list
        The entries that the leaves were made of: what was passed in for them.
    container : object
        The container itself.
    flat : bool
        Whether it is a list or tuple of tensors, which gives a list.
    """

    leaves: Sequence[npt.NDArray[Any] | None]
    labels: list[str] | None
    argument: str
    rebuild: _Rebuild
    entries: Sequence[Any]
    container: Any
    flat: bool

    def finished(self, results: list[Any], out: Tree | None) -> Any:
        """The container of results: of fresh arrays, or the very one that was passed for outputs."""
        if out is None:
            return self.rebuild(results)
        # Everything is written: what is returned must not be able to fail.
        return list(out.container) if out.flat else out.container

    def names(self, out: Tree | None = None) -> Names:
        """What entries are called, for the compiled part."""
        if out is None or out is self:
            return (self.argument, self.labels, "out", self.labels)
        return (self.argument, self.labels, out.argument, out.labels)


def _same(leaves: list[Any]) -> list[Any]:
    return leaves


def flatten(container: Any, argument: str, leaf: _Leaf = as_array) -> Tree:
    """Make a container of tensors a flat list.

    Parameters
    ----------
    container : list, tuple, dict or registered pytree
        Of arrays, IndexedSlices, None, or more containers.
    argument : str
        The name of the argument, for messages.
    leaf : callable, optional
        Makes an array of an entry.

    Raises
    ------
    TypeError
        If it is an array, a scalar, a string or a generator, or holds what is no array.
    """
    leaves = _core.plain_list(container)
    if leaves is not None:
        # The caller's list is read once, here: what is looked at is what is written and returned.
        return Tree(leaves, None, argument, _same, leaves, container, True)
    if container is None or isinstance(container, IndexedSlices) or is_array_like(container):
        raise TypeError(f"{argument} is {describe(container)}; it takes a list (or dict, or tuple) of arrays")
    walk = _Walk(leaf)
    try:
        rebuild = walk.node(container, argument, top=True)
    except RecursionError:
        raise ValueError(f"{argument} is nested too deeply, or contains itself") from None
    if rebuild is None:
        what = (
            "generator, which can be read only once"
            if hasattr(container, "send")
            else type(container).__name__
        )
        raise TypeError(f"{argument} is a {what}; it takes a list (or dict, or tuple) of arrays")
    make = walk.make(rebuild)
    try:
        make(list(walk.entries))
    except Exception as error:
        # Now, and not when the results are there.
        kind = type(container).__name__
        raise TypeError(
            f"{argument} is or holds a container that cannot be made again ({kind}): {error}"
        ) from error
    return Tree(walk.leaves, walk.labels, argument, make, walk.entries, container, walk.is_flat(container))


def flatten_like(out: Any, tree: Tree, argument: str = "out") -> Tree:
    """Make a container of outputs a flat list, with the structure of another.

    Raises
    ------
    TypeError
        If an entry is no memory to write to.
    ValueError
        If the structures differ.
    """
    found = flatten(out, argument, as_output)
    check_same_structure(found, tree)
    return found


def check_same_structure(tree: Tree, model: Tree) -> None:
    """Raise ValueError if two containers differ in their keys, fields or lengths."""

    def paths(tree: Tree) -> list[str]:
        if tree.labels is None:
            return [f"[{i}]" for i in range(len(tree.leaves))]
        return [label.removeprefix(tree.argument) for label in tree.labels]

    if tree.labels is None and model.labels is None and len(tree.leaves) == len(model.leaves):
        return
    mine, theirs = paths(tree), paths(model)
    if mine != theirs:
        odd = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
        detail = (
            f"{tree.argument}{odd[0]} stands where {model.argument}{odd[1]} does"
            if odd
            else f"it has {len(mine)} entries, {model.argument} has {len(theirs)}"
        )
        raise ValueError(f"{tree.argument} must have the structure of {model.argument}: {detail}")


def _is_numbers(value: Any) -> bool:
    """Whether nested lists hold nothing but Python's and NumPy's numbers: an array written out."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_numbers(entry) for entry in value)
    return isinstance(value, (int, float, complex, np.generic))


class _Walk:
    """One walk over a container, collecting what it holds."""

    def __init__(self, leaf: _Leaf) -> None:
        self.leaf = leaf
        self.leaves: list[npt.NDArray[Any] | None] = []
        self.labels: list[str] = []
        self.entries: list[Any] = []

    def make(self, rebuild: Callable[[Any], Any]) -> _Rebuild:
        return lambda leaves: rebuild(iter(leaves))

    def node(self, value: Any, path: str, top: bool = False) -> Callable[[Any], Any] | None:
        """Collect a container's leaves. Returns what rebuilds it from an iterator, None if it is none."""
        if isinstance(value, Mapping):
            keys = list(value)
            parts = [self.child(value[key], f"{path}[{key!r}]") for key in keys]
            kind = type(value)

            def rebuild_mapping(leaves: Any) -> Any:
                pairs = [(key, part(leaves)) for key, part in zip(keys, parts, strict=True)]
                if kind is dict:
                    return dict(pairs)
                if isinstance(value, dict):
                    # Keeps what a subclass holds besides, as defaultdict its factory.
                    copied = value.copy()
                    copied.update(pairs)
                    return copied
                return kind(pairs)  # type: ignore[call-arg]

            return rebuild_mapping
        fields = getattr(type(value), "_fields", None)
        if isinstance(value, tuple) and fields is not None:
            parts = [self.child(v, f"{path}.{name}") for name, v in zip(fields, value, strict=True)]
            return lambda leaves: type(value)(*[part(leaves) for part in parts])
        if isinstance(value, (list, tuple)):
            if not top and _is_numbers(value):
                return None
            nested = any(self.is_container(entry) for entry in value)
            parts = [self.child(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
            # A flat list or tuple gives a list, as in TensorFlow; a structure gives the same structure.
            kind_of: Any = type(value) if nested or not top else list
            return lambda leaves: kind_of(part(leaves) for part in parts)
        return self.registered(value, path)

    def is_flat(self, value: Any) -> bool:
        """Whether a list or tuple, not a named one, holds tensors alone."""
        plain = isinstance(value, (list, tuple)) and not hasattr(type(value), "_fields")
        return plain and not any(self.is_container(entry) for entry in value)

    def is_container(self, value: Any) -> bool:
        return isinstance(value, (list, tuple, Mapping)) and not _is_numbers(value)

    def child(self, value: Any, path: str) -> Callable[[Any], Any]:
        """Collect an entry, which may be a container itself."""
        if value is None or isinstance(value, IndexedSlices) or is_array_like(value):
            return self.tensor(value, path)
        rebuild = self.node(value, path)
        return self.tensor(value, path) if rebuild is None else rebuild

    def tensor(self, value: Any, path: str) -> Callable[[Any], Any]:
        self.labels.append(path)
        self.entries.append(value)
        if value is None:
            self.leaves.append(None)
            return _next_none
        if isinstance(value, IndexedSlices):
            self.leaves.append(self.leaf(value.values, f"{path}.values"))
            return lambda leaves: _with_values(value, next(leaves))
        self.leaves.append(self.leaf(value, path))
        return _next

    def registered(self, value: Any, path: str) -> Callable[[Any], Any] | None:
        """Collect a container that optree knows, if it is installed."""
        if find_spec("optree") is None:
            return None
        import optree

        children, treespec = optree.tree_flatten(
            value,
            is_leaf=lambda node: node is not value and not isinstance(node, type(value)),
            none_is_leaf=True,
        )
        if optree.treespec_is_leaf(treespec):
            return None
        parts = [self.child(child, f"{path}<{i}>") for i, child in enumerate(children)]
        return lambda leaves: optree.tree_unflatten(treespec, [part(leaves) for part in parts])


def _with_values(slices: IndexedSlices, leaf: Any) -> IndexedSlices:
    # An output that was passed in comes back itself.
    return leaf if isinstance(leaf, IndexedSlices) else slices._with_values(leaf)


def _next(leaves: Any) -> Any:
    return next(leaves)


def _next_none(leaves: Any) -> None:
    next(leaves)
