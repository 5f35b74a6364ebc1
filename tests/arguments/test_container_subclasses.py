"""Subclasses of containers: results keep their type and attributes, or they are refused before any write."""

from __future__ import annotations

import threading
import types
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastclip


def tensor(value: float = 3.0) -> Any:
    return np.full(4, value, np.float32)


def clip(structure: Any, **more: Any) -> Any:
    return fastclip.clip_by_global_norm(structure, 1.0, **more)[0]


# --- types that are kept -----------------------------------------------------------------


class StarList(list[Any]):
    """A list whose constructor has one argument for each entry."""

    def __init__(self, *entries: Any) -> None:
        super().__init__(entries)


class StarTuple(tuple[Any, ...]):
    """A tuple with an attribute, whose constructor has one argument for each entry."""

    def __new__(cls, *entries: Any) -> StarTuple:
        container = super().__new__(cls, entries)
        container.note = "kept"
        return container

    note: str


class NoteList(list[Any]):
    """A list with an attribute and a slot, whose constructor has other required arguments."""

    __slots__ = ("__dict__", "place")

    def __init__(self, place: str, entries: Any, note: str) -> None:
        super().__init__(entries)
        self.place = place
        self.note = note


class OneBased(list[Any]):
    """A list that is indexed from 1."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index - 1)


class Pickled(list[Any]):
    """A list that may be neither appended to nor reconstructed."""

    def append(self, entry: Any) -> None:
        raise AssertionError("appended to")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AssertionError("reconstructed")


class Copying(list[Any]):
    """A list with a `__copy__` method."""

    def __copy__(self) -> Copying:
        duplicate = Copying(self)
        duplicate.copied = True
        return duplicate

    copied = False


class Layer(NamedTuple):
    weight: Any
    bias: Any


class Named(Layer):
    """A named tuple with an attribute, whose constructor does not accept entries."""

    def __new__(cls, name: str) -> Named:
        container = super().__new__(cls, tensor(), tensor(1.0))
        container.name = name
        return container

    name: str


class Params(dict[str, Any]):
    """A dict with attributes and slots, whose constructor requires a name."""

    __slots__ = ("__dict__", "frozen", "unset")

    def __init__(self, name: str, **entries: Any) -> None:
        super().__init__(entries)
        self.name = name
        self.frozen = True

    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("set by the subclass")

    def copy(self) -> Any:
        return dict(self)


class NamedCounter(Counter[str]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class NamedDefault(defaultdict[str, Any]):
    def __init__(self, name: str) -> None:
        super().__init__(list)
        self.name = name


class Moved(OrderedDict[str, Any]):
    pass


class Settings(UserDict[str, Any]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def filled(mapping: Any, **entries: Any) -> Any:
    for key, entry in entries.items():
        mapping[key] = entry
    return mapping


def moved() -> Moved:
    container = Moved(b=tensor(), a=tensor(1.0), c=None)
    container.move_to_end("b")
    return container


def params() -> Params:
    return Params("net", w=tensor(), b=tensor(1.0))


#: Functions that return a new container.
TYPES: dict[str, Callable[[], Any]] = {
    "list with a constructor of *args": lambda: StarList(tensor(), tensor(1.0), [tensor(2.0)]),
    "tuple with a constructor of *args": lambda: StarTuple(tensor(), tensor(1.0), [tensor(2.0)]),
    "list with attributes and slots": lambda: NoteList("here", [tensor(), None, tensor(2.0)], "text"),
    "list with __getitem__": lambda: OneBased([tensor(), tensor(1.0)]),
    "list that cannot be reconstructed": lambda: Pickled([tensor(), tensor(1.0)]),
    "list with __copy__": lambda: Copying([tensor(), tensor(1.0)]),
    "empty list": lambda: StarList(),
    "subclass of a named tuple": lambda: Named("first"),
    "OrderedDict": lambda: OrderedDict(b=tensor(), a=tensor(1.0)),
    "subclass of OrderedDict, reordered": moved,
    "defaultdict": lambda: defaultdict(list, b=tensor(), a=[tensor(1.0)]),
    "subclass of defaultdict": lambda: filled(NamedDefault("n"), b=tensor(), a=tensor(1.0)),
    "Counter": lambda: filled(Counter(), b=tensor(), a=tensor(1.0)),
    "subclass of Counter": lambda: filled(NamedCounter("n"), b=tensor(), a=tensor(1.0)),
    "dict with attributes and slots": params,
    "UserDict": lambda: UserDict(b=tensor(), a=tensor(1.0)),
    "subclass of UserDict": lambda: filled(Settings("n"), b=tensor(), a=tensor(1.0)),
    "ChainMap": lambda: ChainMap({"b": tensor()}, {"a": tensor(1.0)}),
}
EVERY_TYPE = pytest.mark.parametrize("make", TYPES.values(), ids=TYPES.keys())


def entries_of(container: Any) -> list[Any]:
    if isinstance(container, Mapping):
        return list(container.values())
    return list(container)


def plain(container: Any) -> Any:
    """Returns the entries with lists in place of all containers."""
    return [plain(e) if isinstance(e, (list, tuple)) else e for e in entries_of(container)]


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for left, right in zip(got, expected, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_array_equal(got, expected)


@EVERY_TYPE
@pytest.mark.parametrize("nested", ["in a list", "in a dict", "at the top"])
def test_result_has_the_containers_type_keys_and_attributes(make: Callable[[], Any], nested: str) -> None:
    container = make()
    flat = isinstance(container, (list, tuple)) and not any(isinstance(e, list) for e in container)
    if nested == "at the top" and flat and not isinstance(container, Layer):
        pytest.skip("a flat list gives a plain list")
    wrap: dict[str, Any] = {
        "in a list": lambda inner: [tensor(5.0), inner, tensor(6.0)],
        "in a dict": lambda inner: {"x": tensor(5.0), "y": inner, "z": tensor(6.0)},
        "at the top": lambda inner: inner,
    }
    structure = wrap[nested](container)
    before = entries_of(container)
    result = clip(structure)
    got = {"in a list": lambda: result[1], "in a dict": lambda: result["y"], "at the top": lambda: result}[
        nested
    ]()
    assert type(got) is type(container)
    assert got is not container
    expected = clip({str(i): e for i, e in enumerate([plain(wrap[nested](plain(container)))])})["0"]
    assert_same(plain(got), expected[1] if nested != "at the top" else expected)
    if isinstance(container, Mapping):
        assert list(got) == list(container)
    for name in ("note", "place", "name", "frozen", "default_factory"):
        assert getattr(got, name, "absent") == getattr(container, name, "absent")
    assert all(x is y for x, y in zip(entries_of(container), before, strict=True))
    assert not hasattr(got, "unset")


@EVERY_TYPE
def test_container_is_accepted_for_outputs(make: Callable[[], Any]) -> None:
    inputs, out = [make()], [make()]
    expected = clip(inputs)
    got = clip(inputs, out=out)
    assert got is out
    assert_same(plain(out[0]), plain(expected[0]))


@pytest.mark.parametrize(
    "flat",
    [
        StarList(tensor(), tensor(1.0)),
        StarTuple(tensor(), tensor(1.0)),
        NoteList("", [tensor(), tensor(1.0)], ""),
        OneBased([tensor(), tensor(1.0)]),
    ],
    ids=lambda flat: type(flat).__name__,
)
def test_flat_list_of_a_subclass_gives_a_plain_list(flat: Any) -> None:
    expected = clip([tensor(), tensor(1.0)])
    got = clip(flat)
    assert type(got) is list
    assert_same(got, expected)
    out = type(flat)(tensor(), tensor()) if isinstance(flat, (StarList, StarTuple)) else [tensor(), tensor()]
    got = clip(flat, out=out)
    assert type(got) is list
    assert_same(got, expected)
    assert got[0] is next(iter(out))


def test_copy_method_of_a_list_is_used() -> None:
    got = clip({"x": Copying([tensor(), tensor()])})["x"]
    assert type(got) is Copying
    assert got.copied


def test_leaves_after_a_container_keep_their_order() -> None:
    got = clip([StarList(tensor(), tensor(1.0)), tensor(7.0), StarTuple(tensor(2.0)), tensor(8.0)])
    expected = clip([tensor(), tensor(1.0), tensor(7.0), tensor(2.0), tensor(8.0)])
    assert_same([*got[0], got[1], *got[2], got[3]], expected)


def test_assigning_attributes_of_the_result_does_not_affect_the_input() -> None:
    container = NoteList("here", [tensor(), tensor()], "text")
    got = clip([container])[0]
    got.note = got.place = "other"
    assert (container.note, container.place) == ("text", "here")


def test_each_call_returns_a_new_container() -> None:
    container = [params(), Copying([tensor(), tensor()])]
    first, second = clip(container), clip(container)
    assert first[0] is not second[0]
    assert first[1] is not second[1]


def test_container_listed_twice_gives_two_containers() -> None:
    inner = NoteList("here", [tensor(), tensor(2.0)], "text")
    got = clip([inner, inner])
    assert got[0] is not got[1]
    assert_same([list(got[0]), list(got[1])], clip([[tensor(), tensor(2.0)], [tensor(), tensor(2.0)]]))


# --- types that are refused ----------------------------------------------------------------


class Raising(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no")


class Shrinking(list[Any]):
    """A list whose second iteration yields fewer entries than the first."""

    count = 0

    def __iter__(self) -> Iterator[Any]:
        self.count += 1
        return iter(list.copy(self)[: len(self) if self.count == 1 else 1])


class Endless(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from list.copy(self)


class Doubling(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([entry * 2 for entry in list.copy(self)])


class Reversed(tuple[Any, ...]):
    def __iter__(self) -> Iterator[Any]:
        return iter(tuple.__getitem__(self, slice(None, None, -1)))


class CopiesToItself(list[Any]):
    def __copy__(self) -> Any:
        return self


class CopiesToList(list[Any]):
    def __copy__(self) -> Any:
        return list(self)


class CopiesToLess(list[Any]):
    def __copy__(self) -> Any:
        return CopiesToLess(list(self)[1:])


class CopiesToOne(list[Any]):
    """A list whose copies are all the same object."""

    one: Any = None

    def __copy__(self) -> Any:
        if CopiesToOne.one is None:
            CopiesToOne.one = CopiesToOne(self)
        return CopiesToOne.one


class CopyRaises(dict[str, Any]):
    def __copy__(self) -> Any:
        raise RuntimeError("no")


class CopiesToOtherKeys(dict[str, Any]):
    def __copy__(self) -> Any:
        return CopiesToOtherKeys({key + "'": entry for key, entry in self.items()})


class Wrapping(dict[str, Any]):
    """A dict whose `__getitem__` returns copies of its arrays."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key) + 0


class Hiding(dict[str, Any]):
    def __iter__(self) -> Iterator[str]:
        return iter(list(dict.keys(self))[1:])


class SharesItsMemory(UserDict[str, Any]):
    """A mapping whose copy shares its data, and whose constructor accepts no pairs."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)

    def __copy__(self) -> Any:
        duplicate = SharesItsMemory()
        duplicate.data = self.data
        return duplicate


class Loses(Mapping[str, Any]):
    """A mapping that keeps only the first of the pairs it is constructed from."""

    def __init__(self, pairs: Any) -> None:
        self.entries = dict(list(pairs)[:1] if isinstance(pairs, list) else pairs)

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


REFUSED: dict[str, Callable[[], Any]] = {
    "__iter__ raises": lambda: Raising([tensor(), tensor()]),
    "__iter__ gives less later": lambda: Shrinking([tensor(), tensor()]),
    "__iter__ never ends": lambda: Endless([tensor(), tensor()]),
    "__iter__ gives other arrays": lambda: Doubling([tensor(), tensor()]),
    "__iter__ gives another order": lambda: Reversed([tensor(), tensor()]),
    "__copy__ gives itself": lambda: CopiesToItself([tensor(), tensor()]),
    "__copy__ gives another type": lambda: CopiesToList([tensor(), tensor()]),
    "__copy__ gives less": lambda: CopiesToLess([tensor(), tensor()]),
    "__copy__ gives the same each time": lambda: CopiesToOne([tensor(), tensor()]),
    "__copy__ raises": lambda: CopyRaises(x=tensor(), y=tensor()),
    "__copy__ gives other keys": lambda: CopiesToOtherKeys(x=tensor(), y=tensor()),
    "__getitem__ of a dict gives other arrays": lambda: Wrapping(x=tensor(), y=tensor()),
    "__iter__ of a dict gives less": lambda: Hiding(x=tensor(), y=tensor()),
    "mapping whose copy shares its memory": lambda: SharesItsMemory(x=tensor(), y=tensor()),
    "mapping that loses entries": lambda: Loses({"x": tensor(), "y": tensor()}),
    "mappingproxy": lambda: types.MappingProxyType({"x": tensor(), "y": tensor()}),
}
EVERY_REFUSED = pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())


@EVERY_REFUSED
def test_error_names_a_type_that_cannot_be_rebuilt(make: Callable[[], Any]) -> None:
    container = make()
    with pytest.raises(TypeError, match=r"t_list\['k'\]\[1\] is a \w+") as raised:
        clip({"k": [tensor(), container]})
    assert type(container).__name__ in str(raised.value)
    with pytest.raises(TypeError, match=r"t_list\['k'\]"):
        fastclip.clip_by_block_rms({"k": container}, 0.1)


def held_by(container: Any) -> list[Any]:
    """Returns the entries of a container, without the methods that its class overrides."""
    if isinstance(container, list):
        return list.copy(container)
    if isinstance(container, tuple):
        return list(tuple.__getitem__(container, slice(None)))
    return list(dict.values(container) if isinstance(container, dict) else container.values())


@EVERY_REFUSED
def test_type_that_cannot_be_rebuilt_is_refused_for_outputs(make: Callable[[], Any]) -> None:
    out = {"k": make()}
    arrays, norms = held_by(out["k"]), np.full(2, -1.0)
    inputs: Any = {
        "k": {"x": tensor(), "y": tensor()} if isinstance(out["k"], Mapping) else [tensor(), tensor()]
    }
    with pytest.raises(TypeError, match=r"out\['k'\]"):
        clip(inputs, out=out, norms=norms)
    assert all((array == 3.0).all() for array in arrays)
    assert (norms == -1.0).all()


@EVERY_REFUSED
def test_refused_container_is_not_changed(make: Callable[[], Any]) -> None:
    container = make()
    before = held_by(container)
    with pytest.raises(TypeError):
        clip([container])
    assert all(x is y for x, y in zip(held_by(container), before, strict=True))


def test_two_containers_that_copy_to_each_other_are_refused() -> None:
    class Sibling(list[Any]):
        sibling: Any = None

        def __copy__(self) -> Any:
            self.turn = not getattr(self, "turn", False)
            return self.sibling if self.turn else Sibling(self)

    first, second = Sibling([tensor(), tensor(1.0)]), Sibling([tensor(2.0), tensor(4.0)])
    first.sibling, second.sibling = second, first
    with pytest.raises(TypeError, match=r"t_list\[\d\]"):
        clip([first, second])
    assert_same([list(first), list(second)], [[tensor(), tensor(1.0)], [tensor(2.0), tensor(4.0)]])


def test_container_that_fails_while_it_is_filled_raises_and_norms_are_not_written() -> None:
    class Late(UserDict[str, Any]):
        broken = False

        def __getitem__(self, key: str) -> Any:
            return None if Late.broken else super().__getitem__(key)

    class Comm:
        def allreduce(self, values: Any) -> Any:
            Late.broken = True
            return values

    norms = np.full(2, -1.0)
    with pytest.raises(TypeError, match="t_list"):
        clip([Late(x=tensor(), y=tensor())], norms=norms, comm=Comm())
    assert (norms == -1.0).all()


@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("where", ["at the top", "inside"])
def test_object_whose_class_attribute_is_a_container_type_is_refused(kind: type, where: str) -> None:
    class Proxy:
        __class__: Any = property(lambda self: kind)  # type: ignore[assignment]

        def __iter__(self) -> Iterator[Any]:
            return iter(["x", "y"] if kind is dict else [tensor(), tensor()])

        def __getitem__(self, key: Any) -> Any:
            return tensor()

        def __len__(self) -> int:
            return 2

    with pytest.raises(TypeError, match=r"^t_list(\[1\])? is a Proxy"):
        clip(Proxy() if where == "at the top" else [tensor(), Proxy()])


@pytest.mark.parametrize("where", ["at the top", "inside"])
def test_namespace_is_no_container(where: str) -> None:
    space = types.SimpleNamespace(w=tensor(), b=tensor())
    with pytest.raises(TypeError, match=r"t_list"):
        clip(space if where == "at the top" else [tensor(), space])


def test_struct_sequence_is_refused() -> None:
    import time

    sequence = time.struct_time([tensor()] * 9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"t_list\[0\] is a struct_time"):
        clip([sequence])


def test_dataclass_registered_with_optree_is_kept() -> None:
    optree = pytest.importorskip("optree")

    @optree.dataclasses.dataclass(namespace=getattr(optree.registry, "__GLOBAL_NAMESPACE"))
    class Block:
        weights: Any
        biases: Any

    got = clip({"x": Block(StarList(tensor(), tensor(1.0)), {"b": tensor()}), "y": tensor()})
    assert type(got["x"]) is Block
    assert type(got["x"].weights) is StarList
    expected = clip([tensor(), tensor(1.0), tensor(), tensor()])
    assert_same([*got["x"].weights, got["x"].biases["b"], got["y"]], expected)


# --- lists that change during a call --------------------------------------------------------


class Changing:
    """A communicator that changes a list in the middle of a call."""

    def __init__(self, change: Callable[[], None]) -> None:
        self.change = change

    def allreduce(self, values: Any) -> Any:
        self.change()
        return values


@pytest.mark.parametrize("where", ["the same", "another"])
def test_returned_arrays_are_those_written_even_if_the_lists_change(where: str) -> None:
    tensors = [tensor(), tensor(1.0)]
    out = tensors if where == "the same" else [tensor(), tensor()]
    written = list(out)

    def change() -> None:
        tensors.clear()
        out.clear()

    got = clip(tensors, out=out, comm=Changing(change))
    assert type(got) is list
    assert len(got) == 2
    assert all(x is y for x, y in zip(got, written, strict=True))
    assert_same(got, clip([tensor(), tensor(1.0)]))


def test_list_changed_by_another_thread_is_read_once() -> None:
    first, second = [tensor(2.0), tensor(2.0)], [tensor(4.0), tensor(4.0), tensor(4.0)]
    tensors: list[Any] = list(first)
    norms = {4.0 * np.sqrt(2), 8.0 * np.sqrt(3)}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            tensors[:] = second
            tensors[:] = first

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            got, norm = fastclip.clip_by_global_norm(tensors, 1e9)
            assert min(abs(float(norm) - expected) for expected in norms) < 1e-5
            value = {2: 2.0, 3: 4.0}[len(got)]
            assert all((array == value).all() for array in got)
            nested = fastclip.clip_by_global_norm([StarList(tensor()), tensors], 1e9)[0][1]
            value = {2: 2.0, 3: 4.0}[len(nested)]
            assert all((array == value).all() for array in nested)
    finally:
        stop.set()
        thread.join()


class AttributeDict(dict[str, Any]):
    """A dict whose entries are its attributes."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.__dict__ = self


class MirroredDict(dict[str, Any]):
    """A dict that stores each entry as an attribute too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Slotted(list[Any]):
    __slots__ = ("first", "itself")


class Caching(tuple[Any, ...]):
    first: Any

    def __new__(cls, *entries: Any) -> Caching:
        container = super().__new__(cls, entries)
        container.first = container[0]
        return container


def _mirrored() -> Any:
    container = MirroredDict()
    container["w"], container["b"] = np.float32([3.0, 4.0]), np.float32([12.0])
    return container


def _slotted() -> Any:
    container = Slotted([np.float32([3.0, 4.0]), [np.float32([12.0])]])
    container.first, container.itself = container[0], container
    return container


def test_attributes_that_are_entries_refer_to_the_results_entries() -> None:
    for make in (lambda: AttributeDict(w=np.float32([3.0, 4.0]), b=np.float32([12.0])), _mirrored):
        container = make()
        clipped, _ = fastclip.clip_by_global_norm(container, 6.5)
        np.testing.assert_array_equal(clipped["w"], [1.5, 2.0])
        assert clipped.w is clipped["w"]
        assert clipped.b is clipped["b"]
        assert type(clipped) is type(container)
        assert container.w is container["w"]
        np.testing.assert_array_equal(container.w, [3.0, 4.0])
    container = _slotted()
    clipped, _ = fastclip.clip_by_global_norm(container, 6.5)
    assert clipped.first is clipped[0]
    assert clipped.itself is clipped
    assert container.first is container[0]
    assert container.itself is container
    caching = Caching(np.float32([3.0, 4.0]), [np.float32([12.0])])
    clipped, _ = fastclip.clip_by_global_norm(caching, 6.5)
    assert clipped.first is clipped[0]
    np.testing.assert_array_equal(clipped.first, [1.5, 2.0])


class CountingCopies(list[Any]):
    """A list that counts how often it is copied."""

    copies = 0

    def __copy__(self) -> CountingCopies:
        type(self).copies += 1
        return CountingCopies(list.copy(self))


def test_container_is_not_rebuilt_for_a_norm() -> None:
    nested = {"k": CountingCopies([tensor(), tensor()])}
    CountingCopies.copies = 0
    fastclip.global_norm(nested)
    assert CountingCopies.copies == 0
    assert type(clip(nested)["k"]) is CountingCopies
    assert CountingCopies.copies > 0
