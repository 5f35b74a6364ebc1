"""Containers of the caller's own types, read and made again with other entries.

A subclass is made without calling its constructor, which may take anything: a tuple by ``tuple.__new__``, a
list or dict as a copy that is filled through the base class. Entries are what the base class holds. A type
that shows others when it is read (by an ``__iter__`` of its own, say) is refused, for nobody could say then
which of them are the tensors; and so is what does not give back the very entries that were put into it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import MemberDescriptorType
from typing import Any

__all__ = [
    "CannotRebuild",
    "DictMaker",
    "KeyedMaker",
    "ListMaker",
    "Maker",
    "MappingMaker",
    "RegisteredMaker",
    "TupleMaker",
    "field_names",
    "is_plain_named_tuple",
    "stored_entries",
]


class CannotRebuild(TypeError):
    """A container cannot be read, or made again with other entries."""


def stored_entries(value: list[Any] | tuple[Any, ...]) -> Sequence[Any]:
    """What a list or tuple holds, whatever its class makes of it. A copy, if it is a list."""
    return list.copy(value) if isinstance(value, list) else tuple.__getitem__(value, slice(None))


def field_names(value: Any) -> Sequence[str] | None:
    """The fields of a named tuple; None if it is none."""
    # Not `isinstance`, which believes what an object says of its class.
    if not issubclass(type(value), tuple):
        return None
    fields = getattr(type(value), "_fields", None)
    if not isinstance(fields, tuple) or tuple.__len__(value) != len(fields):
        return None
    return fields if all(isinstance(name, str) for name in fields) else None


def is_plain_named_tuple(kind: type) -> bool:
    """Whether a class of named tuples reads as a tuple, and has no attributes."""
    own: Any = kind
    return own.__bases__ == (tuple,) and own.__iter__ is tuple.__iter__ and not own.__dictoffset__


def _differ(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return len(found) != len(expected) or any(a is not b for a, b in zip(found, expected, strict=True))


def _slot_members(kind: type) -> Iterator[Any]:
    """The descriptors of the attributes that a class and its bases keep in slots."""
    for base in kind.__mro__:
        for member in vars(base).values():
            if type(member) is MemberDescriptorType:
                yield member


def _copy_attributes(old: Any, new: Any) -> None:
    """Give an object the attributes of another of its type, those in slots included."""
    for member in _slot_members(type(old)):
        try:
            attribute = member.__get__(old)
        except AttributeError:
            # It is not set.
            continue
        member.__set__(new, attribute)
    attributes = getattr(old, "__dict__", None)
    if attributes is old:
        # A dict whose entries are its attributes.
        new.__dict__ = new
    elif attributes:
        new.__dict__.update(attributes)


def _relink_attributes(old: Any, new: Any, entries: Sequence[Any], replaced_by: Sequence[Any]) -> None:
    """Let attributes that are entries, or the container itself, be the new ones.

    Some types keep their entries as attributes as well: left alone, these would show the old tensors.
    """
    links = {
        id(entry): other
        for entry, other in zip(entries, replaced_by, strict=True)
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
    attributes, others = getattr(old, "__dict__", None), getattr(new, "__dict__", None)
    if (
        isinstance(attributes, dict)
        and isinstance(others, dict)
        and attributes is not old
        and others is not new
    ):
        for name, attribute in attributes.items():
            if id(attribute) in links:
                others[name] = links[id(attribute)]


class Maker:
    """Reads one container, and makes it again.

    Parameters
    ----------
    original : container
        The container.
    path : str
        What it is called in messages.

    Attributes
    ----------
    entries : list
        What it holds.
    ahead : container or None
        The container that entries are put into, where it is made before they are known.

    Raises
    ------
    CannotRebuild
        If it does not read as it holds its entries.
    """

    #: The class that a subclass is read and filled through.
    base: type

    def __init__(self, original: Any, path: str) -> None:
        self.original = original
        self.path = path
        self.ahead: Any = None
        self.entries: list[Any] = self._attempt(self._read, original)
        self._made: Any = None
        self._put: list[Any] = []

    def prepare(self) -> None:
        """Make what can be made before the entries are known. Raises CannotRebuild if that is impossible."""

    def make(self, entries: list[Any]) -> Any:
        """Return a container of the same type with other entries, which :meth:`check` is yet to look at."""
        made = self._attempt(self._filled, entries)
        if type(made) is type(self.original) and made is not self.original:
            _relink_attributes(self.original, made, self.entries, entries)
        self._made, self._put = made, entries
        return made

    def check(self) -> None:
        """Raise CannotRebuild if what was made last does not give the very entries that were put into it."""
        made, self._made = self._made, None
        if type(made) is not type(self.original):
            raise self.refusal(f"what comes out is a {type(made).__name__}")
        if made is self.original or _differ(self._attempt(self._read, made), self._put):
            raise self.refusal("what comes out does not hold what was put in")

    def refusal(self, reason: str) -> CannotRebuild:
        """The error that says why it is refused."""
        kind = type(self.original).__name__
        return CannotRebuild(
            f"{self.path} is a {kind}, a container that cannot be made again with other entries: {reason}"
        )

    def _read(self, value: Any) -> list[Any]:
        """The entries of a container of this type."""
        raise NotImplementedError

    def _filled(self, entries: list[Any]) -> Any:
        """A container of this type with other entries."""
        raise NotImplementedError

    def _attempt(self, action: Callable[[Any], Any], argument: Any) -> Any:
        """Call what may run code of the container's type."""
        try:
            return action(argument)
        except (CannotRebuild, RecursionError, MemoryError):
            raise
        except Exception as error:
            raise self.refusal(f"{type(error).__name__}: {error}") from error

    def _check_iteration(self, value: Any, stored: Sequence[Any]) -> None:
        """Raise CannotRebuild if a subclass iterates over something else than what it holds."""
        base: Any = self.base
        # No further than it should go: it might never end.
        if type(value).__iter__ is not base.__iter__ and _differ(
            list(islice(iter(value), len(stored) + 1)), stored
        ):
            raise self.refusal("iterating over it does not give what it holds")

    def _prepare_ahead(self) -> None:
        self.ahead = self._attempt(self._made_ahead, self.original)

    def _made_ahead(self, original: Any) -> Any:
        """A container of the original's type, to be filled: blank, or a copy if the type says how to copy."""
        kind = type(original)
        base: Any = self.base
        if getattr(kind, "__copy__", None) in (None, defaultdict.__copy__):
            try:
                blank = base.__new__(kind)
            except TypeError:
                # It is compiled, and has a layout of its own.
                pass
            else:
                _copy_attributes(original, blank)
                return blank
        ahead = self._copied(original)
        if base.__len__(ahead) != len(self.entries):
            raise self.refusal("copy.copy() of it has another number of entries")
        return ahead

    def _copied(self, original: Any) -> Any:
        # Two, because a copy that is there already would be given to the next caller as well.
        first, second = copy.copy(original), copy.copy(original)
        if type(first) is not type(original):
            raise self.refusal(f"copy.copy() of it is a {type(first).__name__}")
        if first is original or first is second:
            raise self.refusal("copy.copy() of it is no new container")
        return first


class TupleMaker(Maker):
    """For subclasses of tuple, named ones included."""

    base = tuple

    def _read(self, value: Any) -> list[Any]:
        stored = list(stored_entries(value))
        self._check_iteration(value, stored)
        return stored

    def _filled(self, entries: list[Any]) -> Any:
        made = tuple.__new__(type(self.original), entries)
        _copy_attributes(self.original, made)
        return made


class ListMaker(Maker):
    """For subclasses of list."""

    base = list

    def prepare(self) -> None:
        """Make the list that entries will be put into."""
        self._prepare_ahead()

    def _read(self, value: Any) -> list[Any]:
        stored = list(stored_entries(value))
        self._check_iteration(value, stored)
        return stored

    def _filled(self, entries: list[Any]) -> Any:
        list.__setitem__(self.ahead, slice(None), entries)
        return self.ahead


class KeyedMaker(Maker):
    """What mappings have in common.

    Attributes
    ----------
    keys : list
        The keys of the entries.
    """

    def __init__(self, original: Any, path: str) -> None:
        self.keys: list[Any] | None = None
        super().__init__(original, path)

    def labelled(self) -> zip[tuple[Any, Any]]:
        """The keys with their entries."""
        return zip(self.keys or (), self.entries, strict=True)

    def _read(self, value: Any) -> list[Any]:
        keys, entries = self._keys_and_entries(value)
        if self.keys is None:
            self.keys = keys
        elif len(keys) != len(self.keys) or any(
            a is not b and a != b for a, b in zip(keys, self.keys, strict=True)
        ):
            raise self.refusal("what comes out has other keys")
        return entries

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        raise NotImplementedError


class DictMaker(KeyedMaker):
    """For subclasses of dict."""

    def __init__(self, original: Any, path: str) -> None:
        # An OrderedDict has an order of its own beside that of the dict.
        self.base = OrderedDict if isinstance(original, OrderedDict) else dict
        super().__init__(original, path)

    def prepare(self) -> None:
        """Make the dict that entries will be put into."""
        self._prepare_ahead()

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        base: Any = self.base
        pairs = list(base.items(value))
        keys, entries = [key for key, _ in pairs], [entry for _, entry in pairs]
        self._check_iteration(value, keys)
        if type(value).__getitem__ is not dict.__getitem__ and _differ([value[key] for key in keys], entries):
            raise self.refusal("its items are not what it holds")
        return keys, entries

    def _filled(self, entries: list[Any]) -> Any:
        base: Any = self.base
        for key, entry in zip(self.keys or (), entries, strict=True):
            base.__setitem__(self.ahead, key, entry)
        return self.ahead


class MappingMaker(KeyedMaker):
    """For mappings that are no dicts: copied if the type says how to, else made of pairs by the type."""

    def prepare(self) -> None:
        """Make a copy that entries will be put into, if that is possible."""
        kind = type(self.original)
        if hasattr(kind, "__copy__") and hasattr(kind, "__setitem__"):
            try:
                self.ahead = self._attempt(self._copied, self.original)
            except CannotRebuild:
                self.ahead = None

    def _copied(self, original: Any) -> Any:
        copied = super()._copied(original)
        for key, entry in self.labelled():
            # A copy that shares its memory with the original would write into that.
            copied[key] = probe = object()
            if original[key] is probe:
                original[key] = entry
                raise self.refusal("copy.copy() of it shares its entries")
            break
        return copied

    def _keys_and_entries(self, value: Any) -> tuple[list[Any], list[Any]]:
        keys = list(islice(iter(value), len(value) + 1))
        return keys, [value[key] for key in keys]

    def _filled(self, entries: list[Any]) -> Any:
        pairs = list(zip(self.keys or (), entries, strict=True))
        if self.ahead is None:
            return type(self.original)(pairs)
        for key, entry in pairs:
            self.ahead[key] = entry
        return self.ahead


class RegisteredMaker(Maker):
    """For what optree may know.

    Attributes
    ----------
    is_leaf : bool
        Whether optree does not know it.
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
