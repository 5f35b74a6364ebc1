"""Containers of tensors: nested lists, tuples, named tuples and dicts, flattened and unflattened.

Most calls pass a plain list of arrays: the compiled part recognises it, and its copy is the flat list.
Types that are registered as pytrees are flattened by optree, if it is installed.

Containers of user-defined types are rebuilt by `_arguments/rebuilding.py`.
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
    DictRebuilder,
    KeyedRebuilder,
    ListRebuilder,
    MappingRebuilder,
    Rebuilder,
    RegisteredRebuilder,
    TupleRebuilder,
    field_names,
    is_plain_named_tuple,
    stored_entries,
)
from fastclip._indexed_slices import IndexedSlices

__all__ = ["Tree", "check_same_structure", "flatten", "flatten_like"]

_ToArray = Callable[[Any, str], npt.NDArray[Any]]
_Unflatten = Callable[[list[Any]], Any]
#: Builds one entry of a container from the leaves that an iterator yields, consuming as many as it needs.
_EntryBuilder = Callable[[Iterator[Any]], Any]


@dataclass(slots=True)
class Tree:
    """A flattened container.

    Attributes
    ----------
    leaves : list or tuple
        An array, or None, for each entry.
    leaf_names : list of str or None
        Name of each leaf in error messages, such as ``grads['w'][0]``; None for a plain list, whose leaves
        are ``argument[0]``, ``argument[1]``, ….
    argument : str
        Name of the argument.
    unflatten : callable
        Builds the container from a list of as many new leaves. It may be called once: subclasses of list and
        dict are created beforehand, and filled.
    entries : list or tuple
        The objects that the leaves were converted from, as they were when the container was read.
    container : object
        The container itself.
    is_flat : bool
        Whether the container is a list or tuple of tensors, for which a list is returned.
    """

    leaves: Sequence[npt.NDArray[Any] | None]
    leaf_names: list[str] | None
    argument: str
    unflatten: _Unflatten
    entries: Sequence[Any]
    container: Any
    is_flat: bool

    def returned_container(self, results: list[Any], out: Tree | None) -> Any:
        """Returns a new container of the results, or the container of outputs that was passed."""
        if out is None:
            return self.unflatten(results)
        # The outputs are written: returning them must neither fail nor depend on how the caller's list has
        # changed since it was read. `results` and `out.entries` are copies owned by fastclip.
        if out.leaf_names is None:
            return results
        return out.entries if out.is_flat else out.container

    def argument_names(self, out: Tree | None = None) -> ArgumentNames:
        """Returns the names of the leaves, and of the leaves of the outputs, for the compiled part."""
        if out is None or out is self:
            return (self.argument, self.leaf_names, "out", self.leaf_names)
        return (self.argument, self.leaf_names, out.argument, out.leaf_names)


def _identity(leaves: list[Any]) -> list[Any]:
    return leaves


def flatten(container: Any, argument: str, to_array: _ToArray = as_array) -> Tree:
    """Flattens a container of tensors.

    Parameters
    ----------
    container : list, tuple, dict or registered pytree
        Arrays, IndexedSlices, None, or containers of these.
    argument : str
        Name of the argument in error messages.
    to_array : callable, optional
        Converts an entry, given its name, to an array.

    Raises
    ------
    TypeError
        If the argument is an array, a scalar, a string or a generator, an entry is not an array, or a
        container cannot be rebuilt with other entries.
    ValueError
        If it is nested too deeply, or contains itself.
    """
    leaves = _core.plain_list(container)
    if leaves is not None:
        # The caller's list is read once, here, so that the arrays that are checked are those that are
        # written and returned.
        return Tree(leaves, None, argument, _identity, leaves, container, True)
    if container is None or isinstance(container, IndexedSlices) or is_array_like(container):
        raise TypeError(f"{argument} is {describe(container)}; it takes a list (or dict, or tuple) of arrays")
    flattener = _Flattener(to_array)
    try:
        build = flattener.container(container, argument, at_root=True)
        if build is None:
            what = (
                "generator, which can be read only once"
                if hasattr(container, "send")
                else type(container).__name__
            )
            raise TypeError(f"{argument} is a {what}; it takes a list (or dict, or tuple) of arrays")
        unflatten = flattener.unflatten_function(build)
        if flattener.rebuilders:
            # A trial with the entries themselves, so that a failure comes before any result is computed.
            flattener.check_separate()
            unflatten(list(flattener.entries))
    except RecursionError:
        raise ValueError(f"{argument} is nested too deeply, or contains itself") from None
    return Tree(
        flattener.leaves,
        flattener.leaf_names,
        argument,
        unflatten,
        flattener.entries,
        container,
        flattener.is_flat,
    )


def flatten_like(out: Any, tree: Tree, argument: str = "out") -> Tree:
    """Flattens a container of outputs, which must have the structure of another container.

    Raises
    ------
    TypeError
        If an entry is not memory that can be written to.
    ValueError
        If the structures differ.
    """
    outputs = flatten(out, argument, as_output)
    check_same_structure(outputs, tree)
    return outputs


def check_same_structure(tree: Tree, model: Tree) -> None:
    """Raises ValueError if two containers differ in their keys, fields or lengths."""

    def paths(tree: Tree) -> list[str]:
        if tree.leaf_names is None:
            return [f"[{i}]" for i in range(len(tree.leaves))]
        return [name.removeprefix(tree.argument) for name in tree.leaf_names]

    if tree.leaf_names is None and model.leaf_names is None and len(tree.leaves) == len(model.leaves):
        return
    tree_paths, model_paths = paths(tree), paths(model)
    if tree_paths != model_paths:
        pairs = zip(tree_paths, model_paths, strict=False)
        differing = next((pair for pair in pairs if pair[0] != pair[1]), None)
        detail = (
            f"{tree.argument}{differing[0]} stands where {model.argument}{differing[1]} does"
            if differing
            else f"it has {len(tree_paths)} entries, {model.argument} has {len(model_paths)}"
        )
        raise ValueError(f"{tree.argument} must have the structure of {model.argument}: {detail}")


def _is_numbers(value: Any) -> bool:
    """Whether nested lists hold only Python's and NumPy's numbers, so that they stand for one array."""
    if issubclass(type(value), (list, tuple)):
        entries = stored_entries(value)
        return bool(entries) and all(_is_numbers(entry) for entry in entries)
    return isinstance(value, (int, float, complex, np.generic))


class _Flattener:
    """Collects the leaves of one container by visiting it recursively.

    Attributes
    ----------
    leaves, leaf_names, entries, is_flat
        As in :class:`Tree`.
    rebuilders : list of Rebuilder
        One for each container of a user-defined type. Lists, tuples, dicts and ordinary named tuples are
        rebuilt without one, because that cannot fail.
    """

    def __init__(self, to_array: _ToArray) -> None:
        self.to_array = to_array
        self.leaves: list[npt.NDArray[Any] | None] = []
        self.leaf_names: list[str] = []
        self.entries: list[Any] = []
        self.rebuilders: list[Rebuilder] = []
        self.is_flat = False

    def unflatten_function(self, build: _EntryBuilder) -> _Unflatten:
        """Returns the function that builds the root container from new leaves and checks it."""
        rebuilders = self.rebuilders
        if not rebuilders:
            return lambda leaves: build(iter(leaves))

        def unflatten(leaves: list[Any]) -> Any:
            container = build(iter(leaves))
            for rebuilder in rebuilders:
                # Checked when all are filled, to detect two containers that share their entries.
                rebuilder.check()
            return container

        return unflatten

    def check_separate(self) -> None:
        """Raises TypeError if a prepared container is an original or another prepared one.

        Results of one would overwrite those of the other.
        """
        containers = {id(rebuilder.original) for rebuilder in self.rebuilders}
        for rebuilder in self.rebuilders:
            if rebuilder.prepared is not None:
                if id(rebuilder.prepared) in containers:
                    raise rebuilder.error("copy.copy() of it is no new container")
                containers.add(id(rebuilder.prepared))

    def container(self, value: Any, path: str, at_root: bool = False) -> _EntryBuilder | None:
        """Collects the leaves of a container. Returns its builder; None if the value is not a container."""
        if isinstance(value, (list, tuple)):
            fields = field_names(value)
            if fields is None:
                return self.sequence(value, path, at_root)
            return self.named_tuple(value, fields, path)
        return self.mapping(value, path) if isinstance(value, Mapping) else self.registered(value, path)

    def mapping(self, value: Mapping[Any, Any], path: str) -> _EntryBuilder:
        if type(value) is dict:
            pairs = list(value.items())
            keys = [key for key, _ in pairs]
            builders = [self.entry(entry, f"{path}[{key!r}]") for key, entry in pairs]
            return lambda leaves: dict(zip(keys, [build(leaves) for build in builders], strict=True))
        rebuilder: KeyedRebuilder = (
            DictRebuilder(value, path) if isinstance(value, dict) else MappingRebuilder(value, path)
        )
        builders = [self.entry(entry, f"{path}[{key!r}]") for key, entry in rebuilder.items()]
        return self.rebuilt(rebuilder, builders)

    def named_tuple(self, value: Any, fields: Sequence[str], path: str) -> _EntryBuilder:
        kind = type(value)
        if is_plain_named_tuple(kind):
            builders = [
                self.entry(entry, f"{path}.{field}") for field, entry in zip(fields, value, strict=True)
            ]
            return lambda leaves: tuple.__new__(kind, [build(leaves) for build in builders])
        rebuilder = TupleRebuilder(value, path)
        named_entries = zip(fields, rebuilder.entries, strict=True)
        return self.rebuilt(
            rebuilder, [self.entry(entry, f"{path}.{field}") for field, entry in named_entries]
        )

    def sequence(self, value: Any, path: str, at_root: bool) -> _EntryBuilder | None:
        kind = type(value)
        if not at_root and _is_numbers(value):
            return None
        rebuilder: Rebuilder | None = None
        if kind is list or kind is tuple:
            entries: list[Any] = list(value)
        else:
            rebuilder = ListRebuilder(value, path) if isinstance(value, list) else TupleRebuilder(value, path)
            entries = rebuilder.entries
        builders: list[_EntryBuilder] = []
        nested = False
        for i, entry in enumerate(entries):
            inner = self.inner_container(entry, f"{path}[{i}]")
            nested = nested or inner is not None
            builders.append(self.tensor(entry, f"{path}[{i}]") if inner is None else inner)
        # For a flat list or tuple a list is returned, as in TensorFlow; else the structure is kept.
        if at_root and not nested:
            self.is_flat = True
            return lambda leaves: [build(leaves) for build in builders]
        if rebuilder is not None:
            return self.rebuilt(rebuilder, builders)
        if kind is list:
            return lambda leaves: [build(leaves) for build in builders]
        return lambda leaves: tuple([build(leaves) for build in builders])

    def rebuilt(self, rebuilder: Rebuilder, builders: list[_EntryBuilder]) -> _EntryBuilder:
        """Registers a rebuilder. Returns the builder that passes it the entries of the new container."""
        rebuilder.prepare()
        self.rebuilders.append(rebuilder)
        return lambda leaves: rebuilder.rebuild([build(leaves) for build in builders])

    def inner_container(self, value: Any, path: str) -> _EntryBuilder | None:
        """Collects the leaves of an entry that is a container. For a tensor, collects none, returns None."""
        kind = type(value)
        if kind is np.ndarray or value is None:
            return None
        # A subclass of a built-in container may implement a protocol of arrays.
        builtin = kind is dict or kind is list or kind is tuple
        if not builtin and (isinstance(value, IndexedSlices) or is_array_like(value)):
            return None
        return self.container(value, path)

    def entry(self, value: Any, path: str) -> _EntryBuilder:
        """Collects an entry, which may be a container itself."""
        inner = self.inner_container(value, path)
        return self.tensor(value, path) if inner is None else inner

    def tensor(self, value: Any, path: str) -> _EntryBuilder:
        self.leaf_names.append(path)
        self.entries.append(value)
        if value is None:
            self.leaves.append(None)
            return _skip_leaf
        if isinstance(value, IndexedSlices):
            self.leaves.append(self.to_array(value.values, f"{path}.values"))
            return lambda leaves: _with_values(value, next(leaves))
        self.leaves.append(self.to_array(value, path))
        return next

    def registered(self, value: Any, path: str) -> _EntryBuilder | None:
        """Collects a container that is registered with optree. Returns None for any other object."""
        if find_spec("optree") is None:
            return None
        rebuilder = RegisteredRebuilder(value, path)
        if rebuilder.is_leaf:
            return None
        return self.rebuilt(
            rebuilder, [self.entry(child, f"{path}<{i}>") for i, child in enumerate(rebuilder.entries)]
        )


def _with_values(slices: IndexedSlices, leaf: Any) -> IndexedSlices:
    # During the trial the leaf is the entry itself.
    return leaf if isinstance(leaf, IndexedSlices) else slices._with_values(leaf)


def _skip_leaf(leaves: Iterator[Any]) -> None:
    next(leaves)
