"""Containers of user-defined types, read and rebuilt with other entries.

A subclass is rebuilt without calling its constructor, whose parameters are unknown: a tuple by
``tuple.__new__``, a list or dict as a copy that is filled through the base class. Its entries are those that
the base class stores. A type that yields other entries when it is read (by its own ``__iter__``, say) raises,
because it would be ambiguous which of them are the tensors; so does a type that, once rebuilt, does not
return the very objects that were put into it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from types import MemberDescriptorType
from typing import Any

import numpy as np

from fastclip._arguments.arrays import describe, is_array_like
from fastclip._indexed_slices import IndexedSlices

__all__ = [
    "CannotRebuild",
    "Rebuilder",
    "check_separate",
    "is_plain_named_tuple",
    "rebuilder",
    "stored_entries",
]


class CannotRebuild(TypeError):
    """A container cannot be read, or cannot be rebuilt with other entries."""


def stored_entries(value: list[Any] | tuple[Any, ...]) -> Sequence[Any]:
    """Returns what a list or tuple stores, bypassing methods of subclasses; a copy if it is a list."""
    return list.copy(value) if isinstance(value, list) else tuple.__getitem__(value, slice(None))


def field_names(value: Any) -> Sequence[str] | None:
    """Returns the field names of a named tuple; None for any other object."""
    # Not `isinstance`, which trusts an object's `__class__`.
    if not issubclass(type(value), tuple):
        return None
    fields = getattr(type(value), "_fields", None)
    if not isinstance(fields, tuple) or tuple.__len__(value) != len(fields):
        return None
    return fields if all(isinstance(name, str) for name in fields) else None


def is_plain_named_tuple(kind: type) -> bool:
    """Whether a class is one of named tuples that iterates as a tuple does, without attributes."""
    named_tuple: Any = kind
    fields = getattr(named_tuple, "_fields", None)
    return (
        isinstance(fields, tuple)
        and all(isinstance(name, str) for name in fields)
        and named_tuple.__bases__ == (tuple,)
        and named_tuple.__iter__ is tuple.__iter__
        and not named_tuple.__dictoffset__
    )


def _differ(entries: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two sequences hold different objects, compared by identity."""
    return len(entries) != len(expected) or any(a is not b for a, b in zip(entries, expected, strict=True))


def _slot_members(kind: type) -> Iterator[Any]:
    """Yields the descriptors of the attributes that a class and its bases keep in ``__slots__``."""
    for base in kind.__mro__:
        for member in vars(base).values():
            if type(member) is MemberDescriptorType:
                yield member


def _copy_attributes(old: Any, new: Any) -> None:
    """Copies the attributes of an object to another of its type, those in ``__slots__`` included."""
    for member in _slot_members(type(old)):
        try:
            attribute = member.__get__(old)
        except AttributeError:
            # The slot is empty.
            continue
        member.__set__(new, attribute)
    attributes = getattr(old, "__dict__", None)
    if attributes is old:
        # A dict that is its own `__dict__`: entries are attributes.
        new.__dict__ = new
    elif attributes:
        new.__dict__.update(attributes)


def _relink_attributes(old: Any, new: Any, entries: Sequence[Any], new_entries: Sequence[Any]) -> None:
    """Replaces attributes that refer to old entries, or to the old container, by the new objects.

    Some types keep their entries as attributes too; without this, those attributes would still refer to the
    old tensors.
    """
    links = {
        id(entry): new_entry
        for entry, new_entry in zip(entries, new_entries, strict=True)
        if not isinstance(entry, (int, float, complex, str, bytes, type(None)))
    }
    links[id(old)] = new
    for member in _slot_members(type(old)):
        try:
            attribute = member.__get__(old)
        except AttributeError:
            continue
        if id(attribute) in links:
            member.__set__(new, links[id(attribute)])
    old_attributes, new_attributes = getattr(old, "__dict__", None), getattr(new, "__dict__", None)
    if (
        isinstance(old_attributes, dict)
        and isinstance(new_attributes, dict)
        and old_attributes is not old
        and new_attributes is not new
    ):
        for name, attribute in old_attributes.items():
            if id(attribute) in links:
                new_attributes[name] = links[id(attribute)]


class Rebuilder:
    """Reads one container, and rebuilds it with other entries.

    Parameters
    ----------
    original : container
        The container.
    path : str
        Name of the container in error messages.

    Attributes
    ----------
    entries : list
        Entries of the container.
    prepared : container or None
        Container of the same type that :meth:`rebuild` fills, created before the new entries exist; None for
        types that are created from their entries.
    is_sequence : bool
        Whether the container is a list or tuple, and no named tuple.

    Raises
    ------
    CannotRebuild
        If reading the container does not give the entries that it stores.
    """

    #: The built-in class through which a subclass is read and filled.
    base: type

    is_sequence = False

    def __init__(self, original: Any, path: str) -> None:
        self.original = original
        self.path = path
        self.prepared: Any = None
        self.entries: list[Any] = self._call(self._read, original)
        self._rebuilt: Any = None
        self._rebuilt_entries: list[Any] = []

    def prepare(self) -> None:
        """Creates what can be created before the new entries exist. Raises CannotRebuild if it cannot be."""

    def rebuild(self, entries: list[Any]) -> Any:
        """Returns a container of the same type with other entries, which :meth:`check` then verifies."""
        rebuilt = self._call(self._filled, entries)
        if type(rebuilt) is type(self.original) and rebuilt is not self.original:
            _relink_attributes(self.original, rebuilt, self.entries, entries)
        self._rebuilt, self._rebuilt_entries = rebuilt, entries
        return rebuilt

    def check(self) -> None:
        """Raises CannotRebuild if the last rebuilt container does not hold the very entries put into it."""
        rebuilt, self._rebuilt = self._rebuilt, None
        if type(rebuilt) is not type(self.original):
            raise self.error(f"the rebuilt container is a {type(rebuilt).__name__}")
        if rebuilt is self.original or _differ(self._call(self._read, rebuilt), self._rebuilt_entries):
            raise self.error("the rebuilt container does not hold the entries that were put into it")

    def label(self, index: int) -> str:
        """Returns the part of an entry's name that follows the container's, for error messages."""
        return f"[{index}]"

    def error(self, reason: str) -> CannotRebuild:
        """Returns the exception that says why the container cannot be rebuilt."""
        kind = type(self.original).__name__
        return CannotRebuild(
            f"{self.path} is a {kind}, a container that cannot be rebuilt with other entries: {reason}"
        )

    def _read(self, value: Any) -> list[Any]:
        """Returns the entries of a container of this type."""
        raise NotImplementedError

    def _filled(self, entries: list[Any]) -> Any:
        """Returns a container of this type with other entries."""
        raise NotImplementedError

    def _call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Calls a function that may run code of the container's class; its errors become CannotRebuild."""
        try:
            return function(argument)
        except (CannotRebuild, RecursionError, MemoryError):
            raise
        except Exception as error:
            raise self.error(f"{type(error).__name__}: {error}") from error

    def _check_iteration(self, value: Any, stored: Sequence[Any]) -> None:
        """Raises CannotRebuild if a subclass iterates over other objects than it stores."""
        base: Any = self.base
        # Stops one entry past the expected end, because the iterator might never end.
        if type(value).__iter__ is not base.__iter__ and _differ(
            list(islice(iter(value), len(stored) + 1)), stored
        ):
            raise self.error("iterating over it does not give what it holds")

    def _prepare_container(self) -> None:
        self.prepared = self._call(self._empty_or_copy, self.original)

    def _empty_or_copy(self, original: Any) -> Any:
        """Returns an empty container of the original's type, or a copy if the type defines ``__copy__``."""
        kind = type(original)
        base: Any = self.base
        if getattr(kind, "__copy__", None) in (None, defaultdict.__copy__):
            try:
                empty = base.__new__(kind)
            except TypeError:
                # An extension type, whose memory layout is not that of the base class.
                pass
            else:
                _copy_attributes(original, empty)
                return empty
        copied = self._copied(original)
        if base.__len__(copied) != len(self.entries):
            raise self.error("copy.copy() of it has another number of entries")
        return copied

    def _copied(self, original: Any) -> Any:
        # Two copies, because a `__copy__` may return one shared object, which later callers would get too.
        first, second = copy.copy(original), copy.copy(original)
        if type(first) is not type(original):
            raise self.error(f"copy.copy() of it is a {type(first).__name__}")
        if first is original or first is second:
            raise self.error("copy.copy() of it is no new container")
        return first


class TupleRebuilder(Rebuilder):
    """Rebuilds subclasses of tuple, named tuples included."""

    base = tuple

    def __init__(self, original: Any, path: str) -> None:
        self._fields = field_names(original)
        self.is_sequence = self._fields is None
        super().__init__(original, path)

    def label(self, index: int) -> str:
        """Returns the index of an entry in brackets, or the name of a field after a dot."""
        return super().label(index) if self._fields is None else f".{self._fields[index]}"

    def _read(self, value: Any) -> list[Any]:
        stored = list(stored_entries(value))
        self._check_iteration(value, stored)
        return stored

    def _filled(self, entries: list[Any]) -> Any:
        rebuilt = tuple.__new__(type(self.original), entries)
        _copy_attributes(self.original, rebuilt)
        return rebuilt


class ListRebuilder(Rebuilder):
    """Rebuilds subclasses of list."""

    base = list
    is_sequence = True

    def prepare(self) -> None:
        """Creates the list that is filled with the new entries."""
        self._prepare_container()

    def _read(self, value: Any) -> list[Any]:
        stored = list(stored_entries(value))
        self._check_iteration(value, stored)
        return stored

    def _filled(self, entries: list[Any]) -> Any:
        list.__setitem__(self.prepared, slice(None), entries)
        return self.prepared


class KeyedRebuilder(Rebuilder):
    """Base class for mappings.

    Attributes
    ----------
    keys : list
        Keys of the entries, in the same order.
    """

    def __init__(self, original: Any, path: str) -> None:
        self.keys: list[Any] | None = None
        super().__init__(original, path)

    def label(self, index: int) -> str:
        """Returns the key of an entry in brackets."""
        return f"[{(self.keys or ())[index]!r}]"

    def items(self) -> zip[tuple[Any, Any]]:
        """Returns the keys with their entries."""
        return zip(self.keys or (), self.entries, strict=True)

    def _read(self, value: Any) -> list[Any]:
        keys, entries = self._keys_and_entries(value)
        if self.keys is None:
            self.keys = keys
        elif len(keys) != len(self.keys) or any(
            a is not b and a != b for a, b in zip(keys, self.keys, strict=True)
        ):
            raise self.error("the rebuilt container has other keys")
        return entries

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        raise NotImplementedError


class DictRebuilder(KeyedRebuilder):
    """Rebuilds subclasses of dict."""

    def __init__(self, original: Any, path: str) -> None:
        # An OrderedDict keeps an order of its own beside that of dict.
        self.base = OrderedDict if isinstance(original, OrderedDict) else dict
        super().__init__(original, path)

    def prepare(self) -> None:
        """Creates the dict that is filled with the new entries."""
        self._prepare_container()

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        base: Any = self.base
        pairs = list(base.items(value))
        keys, entries = [key for key, _ in pairs], [entry for _, entry in pairs]
        self._check_iteration(value, keys)
        if type(value).__getitem__ is not dict.__getitem__ and _differ([value[key] for key in keys], entries):
            raise self.error("its items are not what it holds")
        return keys, entries

    def _filled(self, entries: list[Any]) -> Any:
        base: Any = self.base
        for key, entry in zip(self.keys or (), entries, strict=True):
            base.__setitem__(self.prepared, key, entry)
        return self.prepared


class MappingRebuilder(KeyedRebuilder):
    """Rebuilds mappings that are not dicts: by filling a copy if the type defines one, else from pairs."""

    def prepare(self) -> None:
        """Creates a copy that is filled with the new entries, if the type supports it."""
        kind = type(self.original)
        if hasattr(kind, "__copy__") and hasattr(kind, "__setitem__"):
            try:
                self.prepared = self._call(self._copied, self.original)
            except CannotRebuild:
                self.prepared = None

    def _copied(self, original: Any) -> Any:
        copied = super()._copied(original)
        for key, entry in self.items():
            # A copy that shares its storage with the original would change the original when it is filled.
            copied[key] = probe = object()
            if original[key] is probe:
                original[key] = entry
                raise self.error("copy.copy() of it shares its entries")
            break
        return copied

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        keys = list(islice(iter(value), len(value) + 1))
        return keys, [value[key] for key in keys]

    def _filled(self, entries: list[Any]) -> Any:
        pairs = list(zip(self.keys or (), entries, strict=True))
        if self.prepared is None:
            return type(self.original)(pairs)
        for key, entry in pairs:
            self.prepared[key] = entry
        return self.prepared


class RegisteredRebuilder(Rebuilder):
    """Rebuilds containers that are registered with optree.

    Attributes
    ----------
    is_leaf : bool
        Whether the type is not registered, so that optree regards the object as a leaf.
    """

    def __init__(self, original: Any, path: str) -> None:
        import optree

        self._optree = optree
        super().__init__(original, path)
        self.is_leaf: bool = optree.treespec_is_leaf(self._treespec)

    def _read(self, value: Any) -> list[Any]:
        children, self._treespec = self._optree.tree_flatten(
            value,
            is_leaf=lambda node: node is not value and not isinstance(node, type(value)),
            none_is_leaf=True,
        )
        return list(children)

    def _filled(self, entries: list[Any]) -> Any:
        return self._optree.tree_unflatten(self._treespec, entries)

    def label(self, index: int) -> str:
        """Returns the number of an entry in angle brackets."""
        return f"<{index}>"


def rebuilder(value: Any, path: str, is_root: bool) -> Rebuilder | None:
    """Returns the object that rebuilds a container of another type than Python's own.

    The compiled part, which walks containers of Python's own types, calls this function for other objects.

    Parameters
    ----------
    value : object
        A container, or a tensor or array-like.
    path : str
        Name of the object in error messages.
    is_root : bool
        Whether the object is the argument itself, which must be a container.

    Returns
    -------
    Rebuilder or None
        None for an object that is no container.

    Raises
    ------
    TypeError
        If the argument itself is no container, or a container cannot be read.
    """
    is_tensor = value is None or isinstance(value, IndexedSlices) or is_array_like(value)
    found = None if is_tensor else _container_rebuilder(value, path, is_root)
    if found is None and is_root:
        if is_tensor:
            what = describe(value)
        elif hasattr(value, "send"):
            what = "a generator, which can be read only once"
        else:
            what = f"a {type(value).__name__}"
        raise TypeError(f"{path} is {what}; it takes a list (or dict, or tuple) of arrays")
    return found


def _container_rebuilder(value: Any, path: str, is_root: bool) -> Rebuilder | None:
    if isinstance(value, (list, tuple)):
        if field_names(value) is None and not is_root and _is_numbers(value):
            return None
        return ListRebuilder(value, path) if isinstance(value, list) else TupleRebuilder(value, path)
    if isinstance(value, Mapping):
        return DictRebuilder(value, path) if isinstance(value, dict) else MappingRebuilder(value, path)
    if find_spec("optree") is None:
        return None
    registered = RegisteredRebuilder(value, path)
    return None if registered.is_leaf else registered


def _is_numbers(value: Any) -> bool:
    """Whether nested lists hold only Python's and NumPy's numbers, so that they stand for one array."""
    if issubclass(type(value), (list, tuple)):
        entries = stored_entries(value)
        return bool(entries) and all(_is_numbers(entry) for entry in entries)
    return isinstance(value, (int, float, complex, np.generic))


def check_separate(rebuilders: list[Rebuilder]) -> None:
    """Raises TypeError if a prepared container is an original or another prepared one.

    Results of one would overwrite those of the other.
    """
    containers = {id(rebuilder.original) for rebuilder in rebuilders}
    for rebuilder in rebuilders:
        if rebuilder.prepared is not None:
            if id(rebuilder.prepared) in containers:
                raise rebuilder.error("copy.copy() of it is no new container")
            containers.add(id(rebuilder.prepared))
