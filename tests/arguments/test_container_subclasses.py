"""Subclasses of containers come back with type and attributes, or are refused before anything is written."""

from __future__ import annotations

import threading
import types
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastclip


def a(value: float = 3.0) -> Any:
    return np.full(4, value, np.float32)


def clip(structure: Any, **more: Any) -> Any:
    return fastclip.clip_by_global_norm(structure, 1.0, **more)[0]


# --- types that come back ----------------------------------------------------------------


class StarList(list[Any]):
    """A list whose constructor takes its entries one by one."""

    def __init__(self, *entries: Any) -> None:
        super().__init__(entries)


class StarTuple(tuple[Any, ...]):
    """A tuple whose constructor takes its entries one by one, with an attribute."""

    def __new__(cls, *entries: Any) -> StarTuple:
        made = super().__new__(cls, entries)
        made.note = "kept"
        return made

    note: str


class NoteList(list[Any]):
    """A list with an attribute and a slot, whose constructor needs more than entries."""

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
    """A list that says how it is copied."""

    def __copy__(self) -> Copying:
        made = Copying(self)
        made.copied = True
        return made

    copied = False


class Layer(NamedTuple):
    weight: Any
    bias: Any


class Named(Layer):
    """A named tuple with attributes, whose constructor takes something else."""

    def __new__(cls, name: str) -> Named:
        made = super().__new__(cls, a(), a(1.0))
        made.name = name
        return made

    name: str


class Params(dict[str, Any]):
    """A dict with attributes and slots, whose constructor takes something else."""

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
    made = Moved(b=a(), a=a(1.0), c=None)
    made.move_to_end("b")
    return made


def params() -> Params:
    return Params("net", w=a(), b=a(1.0))


#: A container, and its entries.
TYPES: dict[str, Callable[[], Any]] = {
    "list with a constructor of *args": lambda: StarList(a(), a(1.0), [a(2.0)]),
    "tuple with a constructor of *args": lambda: StarTuple(a(), a(1.0), [a(2.0)]),
    "list with attributes and slots": lambda: NoteList("here", [a(), None, a(2.0)], "text"),
    "list with __getitem__": lambda: OneBased([a(), a(1.0)]),
    "list that cannot be reconstructed": lambda: Pickled([a(), a(1.0)]),
    "list with __copy__": lambda: Copying([a(), a(1.0)]),
    "empty list": lambda: StarList(),
    "subclass of a named tuple": lambda: Named("first"),
    "OrderedDict": lambda: OrderedDict(b=a(), a=a(1.0)),
    "subclass of OrderedDict, reordered": moved,
    "defaultdict": lambda: defaultdict(list, b=a(), a=[a(1.0)]),
    "subclass of defaultdict": lambda: filled(NamedDefault("n"), b=a(), a=a(1.0)),
    "Counter": lambda: filled(Counter(), b=a(), a=a(1.0)),
    "subclass of Counter": lambda: filled(NamedCounter("n"), b=a(), a=a(1.0)),
    "dict with attributes and slots": params,
    "UserDict": lambda: UserDict(b=a(), a=a(1.0)),
    "subclass of UserDict": lambda: filled(Settings("n"), b=a(), a=a(1.0)),
    "ChainMap": lambda: ChainMap({"b": a()}, {"a": a(1.0)}),
}
EVERY_TYPE = pytest.mark.parametrize("make", TYPES.values(), ids=TYPES.keys())


def entries_of(container: Any) -> list[Any]:
    if isinstance(container, Mapping):
        return list(container.values())
    return list(container)


def plain(container: Any) -> Any:
    """The same in lists."""
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
def test_container_comes_back_with_type_keys_and_attributes(make: Callable[[], Any], nested: str) -> None:
    container = make()
    flat = isinstance(container, (list, tuple)) and not any(isinstance(e, list) for e in container)
    if nested == "at the top" and flat and not isinstance(container, Layer):
        pytest.skip("a flat list gives a plain list")
    wrap: dict[str, Any] = {
        "in a list": lambda inner: [a(5.0), inner, a(6.0)],
        "in a dict": lambda inner: {"x": a(5.0), "y": inner, "z": a(6.0)},
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
def test_container_is_taken_for_outputs(make: Callable[[], Any]) -> None:
    inputs, out = [make()], [make()]
    expected = clip(inputs)
    got = clip(inputs, out=out)
    assert got is out
    assert_same(plain(out[0]), plain(expected[0]))


@pytest.mark.parametrize(
    "flat",
    [StarList(a(), a(1.0)), StarTuple(a(), a(1.0)), NoteList("", [a(), a(1.0)], ""), OneBased([a(), a(1.0)])],
    ids=lambda flat: type(flat).__name__,
)
def test_flat_list_of_a_subclass_gives_a_plain_list(flat: Any) -> None:
    expected = clip([a(), a(1.0)])
    got = clip(flat)
    assert type(got) is list
    assert_same(got, expected)
    out = type(flat)(a(), a()) if isinstance(flat, (StarList, StarTuple)) else [a(), a()]
    got = clip(flat, out=out)
    assert type(got) is list
    assert_same(got, expected)
    assert got[0] is next(iter(out))


def test_list_that_says_how_to_copy_is_copied_so() -> None:
    got = clip({"x": Copying([a(), a()])})["x"]
    assert type(got) is Copying
    assert got.copied


def test_later_leaves_do_not_shift() -> None:
    got = clip([StarList(a(), a(1.0)), a(7.0), StarTuple(a(2.0)), a(8.0)])
    expected = clip([a(), a(1.0), a(7.0), a(2.0), a(8.0)])
    assert_same([*got[0], got[1], *got[2], got[3]], expected)


def test_attributes_of_the_result_are_its_own() -> None:
    container = NoteList("here", [a(), a()], "text")
    got = clip([container])[0]
    got.note = got.place = "other"
    assert (container.note, container.place) == ("text", "here")


def test_each_call_gives_a_container_of_its_own() -> None:
    container = [params(), Copying([a(), a()])]
    first, second = clip(container), clip(container)
    assert first[0] is not second[0]
    assert first[1] is not second[1]


def test_container_listed_twice_comes_back_as_two() -> None:
    inner = NoteList("here", [a(), a(2.0)], "text")
    got = clip([inner, inner])
    assert got[0] is not got[1]
    assert_same([list(got[0]), list(got[1])], clip([[a(), a(2.0)], [a(), a(2.0)]]))


# --- types that are refused ----------------------------------------------------------------


class Raising(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no")


class Shrinking(list[Any]):
    """Its second iteration gives less than the first."""

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
    """Each copy is the same object."""

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
    """What is read is not what is held."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key) + 0


class Hiding(dict[str, Any]):
    def __iter__(self) -> Iterator[str]:
        return iter(list(dict.keys(self))[1:])


class SharesItsMemory(UserDict[str, Any]):
    """A copy writes into the original, and the constructor takes no pairs."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)

    def __copy__(self) -> Any:
        made = SharesItsMemory()
        made.data = self.data
        return made


class Loses(Mapping[str, Any]):
    """Made of pairs, it keeps the first."""

    def __init__(self, pairs: Any) -> None:
        self.entries = dict(list(pairs)[:1] if isinstance(pairs, list) else pairs)

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


REFUSED: dict[str, Callable[[], Any]] = {
    "__iter__ raises": lambda: Raising([a(), a()]),
    "__iter__ gives less later": lambda: Shrinking([a(), a()]),
    "__iter__ never ends": lambda: Endless([a(), a()]),
    "__iter__ gives other arrays": lambda: Doubling([a(), a()]),
    "__iter__ gives another order": lambda: Reversed([a(), a()]),
    "__copy__ gives itself": lambda: CopiesToItself([a(), a()]),
    "__copy__ gives another type": lambda: CopiesToList([a(), a()]),
    "__copy__ gives less": lambda: CopiesToLess([a(), a()]),
    "__copy__ gives the same each time": lambda: CopiesToOne([a(), a()]),
    "__copy__ raises": lambda: CopyRaises(x=a(), y=a()),
    "__copy__ gives other keys": lambda: CopiesToOtherKeys(x=a(), y=a()),
    "__getitem__ of a dict gives other arrays": lambda: Wrapping(x=a(), y=a()),
    "__iter__ of a dict gives less": lambda: Hiding(x=a(), y=a()),
    "mapping whose copy shares its memory": lambda: SharesItsMemory(x=a(), y=a()),
    "mapping that loses entries": lambda: Loses({"x": a(), "y": a()}),
    "mappingproxy": lambda: types.MappingProxyType({"x": a(), "y": a()}),
}
EVERY_REFUSED = pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())


@EVERY_REFUSED
def test_type_that_cannot_be_made_again_is_refused_by_name(make: Callable[[], Any]) -> None:
    container = make()
    with pytest.raises(TypeError, match=r"t_list\['k'\]\[1\] is a \w+") as raised:
        clip({"k": [a(), container]})
    assert type(container).__name__ in str(raised.value)
    with pytest.raises(TypeError, match=r"t_list\['k'\]"):
        fastclip.clip_by_block_rms({"k": container}, 0.1)


def held_by(container: Any) -> list[Any]:
    """The entries that a container holds, whatever it shows."""
    if isinstance(container, list):
        return list.copy(container)
    if isinstance(container, tuple):
        return list(tuple.__getitem__(container, slice(None)))
    return list(dict.values(container) if isinstance(container, dict) else container.values())


@EVERY_REFUSED
def test_type_that_cannot_be_made_again_is_refused_for_outputs(make: Callable[[], Any]) -> None:
    out = {"k": make()}
    arrays, norms = held_by(out["k"]), np.full(2, -1.0)
    inputs: Any = {"k": {"x": a(), "y": a()} if isinstance(out["k"], Mapping) else [a(), a()]}
    with pytest.raises(TypeError, match=r"out\['k'\]"):
        clip(inputs, out=out, norms=norms)
    assert all((array == 3.0).all() for array in arrays)
    assert (norms == -1.0).all()


@EVERY_REFUSED
def test_container_that_is_refused_is_as_it_was(make: Callable[[], Any]) -> None:
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

    first, second = Sibling([a(), a(1.0)]), Sibling([a(2.0), a(4.0)])
    first.sibling, second.sibling = second, first
    with pytest.raises(TypeError, match=r"t_list\[\d\]"):
        clip([first, second])
    assert_same([list(first), list(second)], [[a(), a(1.0)], [a(2.0), a(4.0)]])


def test_container_that_breaks_when_it_is_filled_raises_and_leaves_norms_as_they_were() -> None:
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
        clip([Late(x=a(), y=a())], norms=norms, comm=Comm())
    assert (norms == -1.0).all()


@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("where", ["at the top", "inside"])
def test_object_that_only_says_it_is_a_container_is_refused(kind: type, where: str) -> None:
    class Proxy:
        __class__: Any = property(lambda self: kind)  # type: ignore[assignment]

        def __iter__(self) -> Iterator[Any]:
            return iter(["x", "y"] if kind is dict else [a(), a()])

        def __getitem__(self, key: Any) -> Any:
            return a()

        def __len__(self) -> int:
            return 2

    with pytest.raises(TypeError, match=r"^t_list(\[1\])? is a Proxy"):
        clip(Proxy() if where == "at the top" else [a(), Proxy()])


@pytest.mark.parametrize("where", ["at the top", "inside"])
def test_namespace_is_no_container(where: str) -> None:
    space = types.SimpleNamespace(w=a(), b=a())
    with pytest.raises(TypeError, match=r"t_list"):
        clip(space if where == "at the top" else [a(), space])


def test_structure_of_fields_of_the_interpreter_is_refused() -> None:
    import time

    odd = time.struct_time([a()] * 9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"t_list\[0\] is a struct_time"):
        clip([odd])


def test_dataclass_that_optree_knows_comes_back() -> None:
    optree = pytest.importorskip("optree")

    @optree.dataclasses.dataclass(namespace=getattr(optree.registry, "__GLOBAL_NAMESPACE"))
    class Block:
        weights: Any
        biases: Any

    got = clip({"x": Block(StarList(a(), a(1.0)), {"b": a()}), "y": a()})
    assert type(got["x"]) is Block
    assert type(got["x"].weights) is StarList
    expected = clip([a(), a(1.0), a(), a()])
    assert_same([*got["x"].weights, got["x"].biases["b"], got["y"]], expected)


# --- lists that change meanwhile ------------------------------------------------------------


class Changing:
    """A communicator that changes a list in the middle of a call."""

    def __init__(self, change: Callable[[], None]) -> None:
        self.change = change

    def allreduce(self, values: Any) -> Any:
        self.change()
        return values


@pytest.mark.parametrize("where", ["the same", "another"])
def test_what_is_returned_is_what_was_written_whatever_becomes_of_the_list(where: str) -> None:
    tensors = [a(), a(1.0)]
    out = tensors if where == "the same" else [a(), a()]
    written = list(out)

    def change() -> None:
        tensors.clear()
        out.clear()

    got = clip(tensors, out=out, comm=Changing(change))
    assert type(got) is list
    assert len(got) == 2
    assert all(x is y for x, y in zip(got, written, strict=True))
    assert_same(got, clip([a(), a(1.0)]))


def test_list_that_another_thread_changes_is_read_once() -> None:
    first, second = [a(2.0), a(2.0)], [a(4.0), a(4.0), a(4.0)]
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
            assert min(abs(float(norm) - known) for known in norms) < 1e-5
            value = {2: 2.0, 3: 4.0}[len(got)]
            assert all((array == value).all() for array in got)
            nested = fastclip.clip_by_global_norm([StarList(a()), tensors], 1e9)[0][1]
            value = {2: 2.0, 3: 4.0}[len(nested)]
            assert all((array == value).all() for array in nested)
    finally:
        stop.set()
        thread.join()


class AttributeDict(dict[str, Any]):
    """Its entries are its attributes."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.__dict__ = self


class MirroredDict(dict[str, Any]):
    """It keeps each entry as an attribute as well."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Slotted(list[Any]):
    __slots__ = ("first", "itself")


class Caching(tuple[Any, ...]):
    first: Any

    def __new__(cls, *entries: Any) -> Caching:
        made = super().__new__(cls, entries)
        made.first = made[0]
        return made


def _mirrored() -> Any:
    made = MirroredDict()
    made["w"], made["b"] = np.float32([3.0, 4.0]), np.float32([12.0])
    return made


def _slotted() -> Any:
    made = Slotted([np.float32([3.0, 4.0]), [np.float32([12.0])]])
    made.first, made.itself = made[0], made
    return made


def test_attributes_that_are_entries_are_those_of_the_result() -> None:
    for make in (lambda: AttributeDict(w=np.float32([3.0, 4.0]), b=np.float32([12.0])), _mirrored):
        given = make()
        clipped, _ = fastclip.clip_by_global_norm(given, 6.5)
        np.testing.assert_array_equal(clipped["w"], [1.5, 2.0])
        assert clipped.w is clipped["w"]
        assert clipped.b is clipped["b"]
        assert type(clipped) is type(given)
        assert given.w is given["w"]
        np.testing.assert_array_equal(given.w, [3.0, 4.0])
    given = _slotted()
    clipped, _ = fastclip.clip_by_global_norm(given, 6.5)
    assert clipped.first is clipped[0]
    assert clipped.itself is clipped
    assert given.first is given[0]
    assert given.itself is given
    caching = Caching(np.float32([3.0, 4.0]), [np.float32([12.0])])
    clipped, _ = fastclip.clip_by_global_norm(caching, 6.5)
    assert clipped.first is clipped[0]
    np.testing.assert_array_equal(clipped.first, [1.5, 2.0])
