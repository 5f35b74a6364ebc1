"""Containers of tensors: nested lists, tuples, named tuples and dicts made a flat list, and back.

A plain list of arrays, which is what most calls bring, is found to be flat by the compiled part and goes
through as a copy of it. Other registered containers go through optree, if it is installed.

Results are put into containers of the caller's own types by `_rebuilding.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import as_array, as_output, describe, is_array_like
from fastclip._arguments.names import ArgumentNames
from fastclip._arguments.rebuilding import (
    DictMaker,
    KeyedMaker,
    ListMaker,
    Maker,
    MappingMaker,
    RegisteredMaker,
    TupleMaker,
    field_names,
    is_plain_named_tuple,
    stored_entries,
)
from fastclip._indexed_slices import IndexedSlices

__all__ = ["Tree", "check_same_structure", "flatten", "flatten_like"]

_Leaf = Callable[[Any, str], npt.NDArray[Any]]
_Rebuild = Callable[[list[Any]], Any]
#: Takes from an iterator over new leaves what belongs to one entry of a container.
_Part = Callable[[Iterator[Any]], Any]


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
        Makes the container of as many new leaves. It may be called once: subclasses of list and dict are
        made ahead, and filled.
    entries : list or tuple
        The entries that the leaves were made of: what was passed in for them when the container was read.
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
        # Everything is written: what is returned must not be able to fail, nor depend on what has become of
        # the caller's list since it was read. Both lists are our own.
        if out.labels is None:
            return results
        return out.entries if out.flat else out.container

    def names(self, out: Tree | None = None) -> ArgumentNames:
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
        If it is an array, a scalar, a string or a generator, holds what is no array, or is or holds a
        container that cannot be made again with other entries.
    """
    leaves = _core.plain_list(container)
    if leaves is not None:
        # The caller's list is read once, here: what is looked at is what is written and returned.
        return Tree(leaves, None, argument, _same, leaves, container, True)
    if container is None or isinstance(container, IndexedSlices) or is_array_like(container):
        raise TypeError(f"{argument} is {describe(container)}; it takes a list (or dict, or tuple) of arrays")
    walk = _Walk(leaf)
    try:
        part = walk.node(container, argument, top=True)
        if part is None:
            what = (
                "generator, which can be read only once"
                if hasattr(container, "send")
                else type(container).__name__
            )
            raise TypeError(f"{argument} is a {what}; it takes a list (or dict, or tuple) of arrays")
        make = walk.rebuilder(part)
        if walk.makers:
            # Tried now, with the entries themselves, and not when the results are there.
            walk.check_no_overlap()
            make(list(walk.entries))
    except RecursionError:
        raise ValueError(f"{argument} is nested too deeply, or contains itself") from None
    return Tree(walk.leaves, walk.labels, argument, make, walk.entries, container, walk.is_flat)


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
    if issubclass(type(value), (list, tuple)):
        entries = stored_entries(value)
        return bool(entries) and all(_is_numbers(entry) for entry in entries)
    return isinstance(value, (int, float, complex, np.generic))


class _Walk:
    """One walk over a container, collecting what it holds.

    Attributes
    ----------
    makers : list
        What makes those containers again whose types are the caller's own; for lists, tuples, dicts and
        ordinary named tuples there is nothing that could go wrong.
    is_flat : bool
        Whether the container is a list or tuple, not a named one, of tensors alone.
    """

    def __init__(self, leaf: _Leaf) -> None:
        self.leaf = leaf
        self.leaves: list[npt.NDArray[Any] | None] = []
        self.labels: list[str] = []
        self.entries: list[Any] = []
        self.makers: list[Maker] = []
        self.is_flat = False

    def rebuilder(self, part: _Part) -> _Rebuild:
        makers = self.makers
        if not makers:
            return lambda leaves: part(iter(leaves))

        def rebuild(leaves: list[Any]) -> Any:
            made = part(iter(leaves))
            for maker in makers:
                # When all are filled: what two of them share would show now.
                maker.check()
            return made

        return rebuild

    def check_no_overlap(self) -> None:
        """Raise TypeError if a container that was made ahead is there already: results would meet in it."""
        taken = {id(maker.original) for maker in self.makers}
        for maker in self.makers:
            if maker.ahead is not None:
                if id(maker.ahead) in taken:
                    raise maker.refusal("copy.copy() of it is no new container")
                taken.add(id(maker.ahead))

    def node(self, value: Any, path: str, top: bool = False) -> _Part | None:
        """Collect a container's leaves. Returns what takes as many from an iterator, None if it is none."""
        if isinstance(value, (list, tuple)):
            fields = field_names(value)
            return (
                self.sequence(value, path, top) if fields is None else self.named_tuple(value, fields, path)
            )
        return self.mapping(value, path) if isinstance(value, Mapping) else self.registered(value, path)

    def mapping(self, value: Mapping[Any, Any], path: str) -> _Part:
        if type(value) is dict:
            pairs = list(value.items())
            keys = [key for key, _ in pairs]
            parts = [self.child(entry, f"{path}[{key!r}]") for key, entry in pairs]
            return lambda leaves: dict(zip(keys, [part(leaves) for part in parts], strict=True))
        maker: KeyedMaker = DictMaker(value, path) if isinstance(value, dict) else MappingMaker(value, path)
        return self.made_by(maker, [self.child(entry, f"{path}[{key!r}]") for key, entry in maker.labelled()])

    def named_tuple(self, value: Any, fields: Sequence[str], path: str) -> _Part:
        kind = type(value)
        if is_plain_named_tuple(kind):
            parts = [self.child(entry, f"{path}.{name}") for name, entry in zip(fields, value, strict=True)]
            return lambda leaves: tuple.__new__(kind, [part(leaves) for part in parts])
        maker = TupleMaker(value, path)
        labelled = zip(fields, maker.entries, strict=True)
        return self.made_by(maker, [self.child(entry, f"{path}.{name}") for name, entry in labelled])

    def sequence(self, value: Any, path: str, top: bool) -> _Part | None:
        kind = type(value)
        if not top and _is_numbers(value):
            return None
        maker: Maker | None = None
        if kind is list or kind is tuple:
            entries: list[Any] = list(value)
        else:
            maker = ListMaker(value, path) if isinstance(value, list) else TupleMaker(value, path)
            entries = maker.entries
        parts: list[_Part] = []
        nested = False
        for i, entry in enumerate(entries):
            inner = self.container(entry, f"{path}[{i}]")
            nested = nested or inner is not None
            parts.append(self.tensor(entry, f"{path}[{i}]") if inner is None else inner)
        # A flat list or tuple gives a list, as in TensorFlow; a structure gives the same structure.
        if top and not nested:
            self.is_flat = True
            return lambda leaves: [part(leaves) for part in parts]
        if maker is not None:
            return self.made_by(maker, parts)
        if kind is list:
            return lambda leaves: [part(leaves) for part in parts]
        return lambda leaves: tuple([part(leaves) for part in parts])

    def made_by(self, maker: Maker, parts: list[_Part]) -> _Part:
        maker.prepare()
        self.makers.append(maker)
        return lambda leaves: maker.make([part(leaves) for part in parts])

    def container(self, value: Any, path: str) -> _Part | None:
        """Collect an entry that is a container. Returns None if it is a tensor, which is not collected."""
        kind = type(value)
        if kind is np.ndarray or value is None:
            return None
        # A subclass may say of itself that it is an array.
        builtin = kind is dict or kind is list or kind is tuple
        if not builtin and (isinstance(value, IndexedSlices) or is_array_like(value)):
            return None
        return self.node(value, path)

    def child(self, value: Any, path: str) -> _Part:
        """Collect an entry, which may be a container itself."""
        inner = self.container(value, path)
        return self.tensor(value, path) if inner is None else inner

    def tensor(self, value: Any, path: str) -> _Part:
        self.labels.append(path)
        self.entries.append(value)
        if value is None:
            self.leaves.append(None)
            return _next_none
        if isinstance(value, IndexedSlices):
            self.leaves.append(self.leaf(value.values, f"{path}.values"))
            return lambda leaves: _with_values(value, next(leaves))
        self.leaves.append(self.leaf(value, path))
        return next

    def registered(self, value: Any, path: str) -> _Part | None:
        """Collect a container that optree knows, if it is installed."""
        if find_spec("optree") is None:
            return None
        maker = RegisteredMaker(value, path)
        if maker.is_leaf:
            return None
        return self.made_by(
            maker, [self.child(child, f"{path}<{i}>") for i, child in enumerate(maker.entries)]
        )


def _with_values(slices: IndexedSlices, leaf: Any) -> IndexedSlices:
    # An output that was passed in comes back itself.
    return leaf if isinstance(leaf, IndexedSlices) else slices._with_values(leaf)


def _next_none(leaves: Iterator[Any]) -> None:
    next(leaves)
