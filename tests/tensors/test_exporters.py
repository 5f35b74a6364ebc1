"""Objects with ``__dlpack__`` or a buffer that are old, unusual, broken or hostile."""

from __future__ import annotations

import array as stdlib_array
import ctypes
import gc
import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import fresh_python, oracle
from support.attempts import REFUSALS, attempt
from support.clip_calls import CLIPS
from support.dlpack_capsules import CPU, CUDA, ExchangeTable, Exporter, ManagedTensor, exporter, table_capsule
from support.strategies import finite_values


def assert_read_or_refused(array: Any, norm: Any, refusal: str | None) -> None:
    """Asserts that a call read the array, or that the refusal names the argument."""
    if refusal is None:
        assert norm == fastclip.global_norm([array])
    else:
        assert "t_list[0]" in refusal


def values(shape: Any = (6, 5), dtype: Any = np.float32, seed: int = 1) -> Any:
    return finite_values(np.random.default_rng(seed), np.empty(shape).shape, dtype)


class Failure(Exception):
    pass


# --- how __dlpack__ is called -------------------------------------------------------------------


def exporter_with(dlpack: Callable[..., Any], device: Any = None) -> Any:
    """Returns an object whose ``__dlpack__`` and ``__dlpack_device__`` are functions of the object."""

    def cpu(self: Any) -> Any:
        return CPU

    return type("Custom", (), {"__dlpack__": dlpack, "__dlpack_device__": device or cpu})()


def test_version_1_is_asked_for_first_and_then_no_version() -> None:
    array, asked = values(), []
    handed_out: list[ManagedTensor] = []

    def dlpack(self: Any, **options: Any) -> Any:
        asked.append(options.get("max_version"))
        if "max_version" in options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        handed_out.append(ManagedTensor.over(array, version=None))
        return handed_out[-1].capsule

    assert fastclip.global_norm([exporter_with(dlpack)]) == fastclip.global_norm([array])
    assert len(asked) == 2
    assert asked[0][0] == 1
    assert asked[1] is None
    for managed in handed_out:
        managed.close()


@pytest.mark.parametrize("version", [(1, 0), (1, 3), None], ids=str)
def test_version_of_the_capsule_may_be_lower_than_asked_for(version: Any) -> None:
    array = values()
    source = exporter(array, version=version)
    result = fastclip.clip_by_norm(source, 0.5)
    assert oracle.same_bits(result, fastclip.clip_by_norm(array, 0.5))
    source.close()


@pytest.mark.parametrize(
    "options", [{}, {"stream": None}, {"stream": None, "max_version": None}], ids=lambda o: str(list(o))
)
def test_every_signature(options: dict[str, Any]) -> None:
    array = values()
    handed_out: list[ManagedTensor] = []

    def hand_out() -> Any:
        handed_out.append(ManagedTensor.over(array, version=None))
        return handed_out[-1].capsule

    signatures: dict[int, Callable[..., Any]] = {
        0: lambda self: hand_out(),
        1: lambda self, stream=None: hand_out(),
        2: lambda self, *, stream=None, max_version=None: hand_out(),
    }
    source = exporter_with(signatures[len(options)])
    assert fastclip.global_norm([source]) == fastclip.global_norm([array])
    for managed in handed_out:
        managed.close()


def test_type_error_of_another_cause_is_a_type_error() -> None:
    def dlpack(self: Any, **options: Any) -> Any:
        raise TypeError("nothing to do with versions")

    with pytest.raises(TypeError, match=r"t_list\[0\]"):
        fastclip.global_norm([exporter_with(dlpack)])


@pytest.mark.parametrize("error", [BufferError, RuntimeError, ValueError, Failure, AttributeError, OSError])
def test_exporter_that_raises(error: type[Exception]) -> None:
    def dlpack(self: Any, **options: Any) -> Any:
        raise error("cannot be exported: reason 17")

    array = values()
    before = array.copy()
    for place in (0, 1):
        tensors: list[Any] = [values(), values()]
        tensors[place] = exporter_with(dlpack)
        with pytest.raises((*REFUSALS, error)) as caught:
            fastclip.global_norm(tensors)
        message, cause = str(caught.value), caught.value.__cause__
        assert "reason 17" in message or "reason 17" in str(cause)
    with pytest.raises((*REFUSALS, error)):
        fastclip.clip_by_global_norm([array, values()], 0.5, out=[array, exporter_with(dlpack)])
    assert oracle.same_bits(array, before)
    for clip in CLIPS.values():
        with pytest.raises((*REFUSALS, error)):
            clip([exporter_with(dlpack)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit])
def test_interrupts_and_exhausted_memory_are_passed_on(error: type[BaseException]) -> None:
    def raising(self: Any, **options: Any) -> Any:
        raise error

    class Attribute:
        __dlpack__ = property(raising)
        __dlpack_device__ = property(raising)

    for source in (exporter_with(raising), Attribute()):
        with pytest.raises(error):
            fastclip.global_norm([source])
        with pytest.raises(error):
            fastclip.clip_by_norm(source, 1.0)


@pytest.mark.parametrize(
    "result",
    [
        None,
        0,
        1.5,
        "capsule",
        b"dltensor",
        [],
        np.ones(3),
        object(),
        NotImplemented,
        np.float32(1),
        sys.stdout,
    ],
    ids=lambda r: type(r).__name__,
)
def test_exporter_that_returns_no_capsule(result: Any) -> None:
    source = exporter_with(lambda self, **options: result)
    with pytest.raises(REFUSALS, match=r"t_list\[1\]"):
        fastclip.global_norm([values(), source])
    for clip in CLIPS.values():
        with pytest.raises(REFUSALS):
            clip([source])


def test_capsule_of_another_library() -> None:
    import datetime

    capsule: Any = datetime.datetime_CAPI  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(REFUSALS, match=r"t_list\[0\]"):
            fastclip.global_norm([exporter_with(lambda self, **options: capsule)])
    assert "datetime.datetime_CAPI" in repr(capsule)


@pytest.mark.parametrize(
    "device",
    [
        None,
        1,
        "cpu",
        (),
        (1,),
        (1, 0, 0),
        ("1", "0"),
        (1.0, 0.0),
        (2**40, 0),
        (1, -(2**70)),
        (None, None),
        [1, 0],
        (True, False),
    ],
    ids=str,
)
def test_devices_of_nonsense(device: Any) -> None:
    array = values()
    source = exporter(array)
    source.device = device
    norm, refusal = attempt(lambda: fastclip.global_norm([source]))
    assert_read_or_refused(array, norm, refusal)
    source.close()


def test_device_that_contradicts_the_capsule() -> None:
    array = values()
    for claimed, true in ((CUDA, CPU), (CPU, CUDA)):
        source = exporter(array, device=true)
        source.device = claimed
        norm, refusal = attempt(lambda: fastclip.global_norm([source]))  # noqa: B023
        assert_read_or_refused(array, norm, refusal)
        assert refusal is not None or true == CPU
        source.close()


def test_missing_device() -> None:
    array = values()

    class NoDevice:
        def __dlpack__(self, **options: Any) -> Any:
            return array.__dlpack__()

    norm, refusal = attempt(lambda: fastclip.global_norm([NoDevice()]), TypeError)
    assert_read_or_refused(array, norm, refusal)


def test_dlpack_of_the_object_and_not_of_its_type() -> None:
    """Python looks special methods up on the type; other libraries find those of an object, too."""
    array = values()

    class Plain:
        pass

    source: Any = Plain()
    source.__dlpack__ = lambda **options: array.__dlpack__()
    source.__dlpack_device__ = lambda: CPU
    norm, refusal = attempt(lambda: fastclip.global_norm([source]), TypeError)
    assert_read_or_refused(array, norm, refusal)


# --- the table of C functions -------------------------------------------------------------------


TABLES: dict[str, Any] = {
    "number": lambda: 1,
    "none": lambda: None,
    "text": lambda: "dlpack_exchange_api",
    "other name": lambda: (ExchangeTable(1, 3), b"something_else"),
    "no functions": lambda: (ExchangeTable(1, 3), b"dlpack_exchange_api"),
    "major version 2": lambda: (ExchangeTable(2, 0, None, 1, 1, 1, 1, 1), b"dlpack_exchange_api"),
    "major version 0": lambda: (ExchangeTable(0, 8, None, 1, 1, 1, 1, 1), b"dlpack_exchange_api"),
}


@pytest.mark.parametrize("name", TABLES)
def test_unusable_tables_of_c_functions_are_not_used(name: str) -> None:
    """The object also has ``__dlpack__``, which works."""
    array = values()
    made = TABLES[name]()
    value = table_capsule(*made) if isinstance(made, tuple) else made

    class Tabled(Exporter):
        __dlpack_c_exchange_api__ = value

    source = Tabled(lambda: ManagedTensor.over(array))
    for _ in range(2):
        norm, refusal = attempt(lambda: fastclip.global_norm([source]))
        assert_read_or_refused(array, norm, refusal)
    source.close()


def test_table_whose_attribute_raises_is_not_used() -> None:
    array = values()

    class Meta(type):
        @property
        def __dlpack_c_exchange_api__(cls) -> Any:
            raise Failure

    class Tabled(Exporter, metaclass=Meta):
        pass

    source = Tabled(lambda: ManagedTensor.over(array))
    norm, refusal = attempt(lambda: fastclip.global_norm([source]), (*REFUSALS, Failure))
    assert refusal is not None or norm == fastclip.global_norm([array])
    source.close()


# --- re-entrancy --------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[list[Any]], object]] = {
    "cleared": lambda entries: entries.clear(),
    "shortened": lambda entries: entries.pop(),
    "extended": lambda entries: entries.extend([np.ones(3)] * 1000),
    "reversed": lambda entries: entries.reverse(),
    "replaced": lambda entries: entries.__setitem__(slice(None), [np.full(9, np.nan)] * len(entries)),
    "last replaced by text": lambda entries: entries.__setitem__(-1, "text"),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_list_that_changes_during_the_call(name: str, place: int) -> None:
    array = values()
    entries: list[Any] = []

    class Changing(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            CHANGES[name](entries)
            gc.collect()
            return super().__dlpack__(**options)

    source = Changing(lambda: ManagedTensor.over(array))
    arrays = [values(seed=2), values((7,), np.float64, seed=3), values((2, 3), seed=4)]
    arrays[place] = array
    expected, expected_norm = fastclip.clip_by_global_norm(arrays, 0.5)
    entries[:] = [array.copy() for array in arrays]
    entries[place] = source
    clipped, norm = fastclip.clip_by_global_norm(entries, 0.5)
    assert oracle.same_bits(norm, expected_norm)
    assert all(oracle.same_bits(a, b) for a, b in zip(clipped, expected, strict=True))
    source.close()
    entries[:] = [array.copy() for array in arrays]
    entries[place] = source
    assert oracle.same_bits(fastclip.global_norm(entries), expected_norm)
    source.close()


@pytest.mark.parametrize("name", CHANGES)
def test_outputs_that_change_during_the_call(name: str) -> None:
    arrays = [values(), values(seed=2)]
    expected, _ = fastclip.clip_by_global_norm(arrays, 0.5)
    targets = [np.zeros_like(array) for array in arrays]
    out: list[Any] = []

    class Changing(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            CHANGES[name](out)
            gc.collect()
            return super().__dlpack__(**options)

    source = Changing(lambda: ManagedTensor.over(targets[0]))
    out[:] = [source, targets[1]]
    fastclip.clip_by_global_norm(arrays, 0.5, out=out)
    assert all(oracle.same_bits(a, b) for a, b in zip(targets, expected, strict=True))
    source.close()


def test_exporter_that_calls_fastclip() -> None:
    array, other = values(), values(seed=2)
    results = []

    class Calling(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            results.append(fastclip.clip_by_global_norm([other, exporter(other)], 0.5)[1])
            return super().__dlpack__(**options)

    source = Calling(lambda: ManagedTensor.over(array))
    assert oracle.same_bits(fastclip.global_norm([source, other]), fastclip.global_norm([array, other]))
    assert oracle.same_bits(results[0], fastclip.global_norm([other, other]))
    source.close()


def test_exporter_that_frees_the_arrays_before_it() -> None:
    """The list holds the only references to the other arrays, and is cleared."""
    entries: list[Any] = []

    class Clearing(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            entries.clear()
            gc.collect()
            junk = [np.full(2000, 1e30, np.float32) for _ in range(50)]
            del junk
            return super().__dlpack__(**options)

    array = values()
    source = Clearing(lambda: ManagedTensor.over(array))
    entries += [np.full(2000, 3.0, np.float32), source, np.full(2000, 4.0, np.float32)]
    expected = fastclip.global_norm([np.full(2000, 3.0, "f4"), array, np.full(2000, 4.0, "f4")])
    assert oracle.same_bits(fastclip.global_norm(entries), expected)
    source.close()


def test_exporter_that_resizes_an_array_before_it() -> None:
    """Nothing outside of the memory is read: the array is read as it is, or the call refuses it."""
    script = """
    import numpy as np, fastclip
    from support.dlpack_capsules import Exporter, ManagedTensor
    for size in (0, 1, 10_000_000):
        victim = np.full(1_000_000, 3.0, np.float32)
        class Resizing(Exporter):
            def __dlpack__(self, **options):
                try:
                    victim.resize(size, refcheck=False)
                except ValueError:
                    pass
                return super().__dlpack__(**options)
        array = np.ones(4, np.float32)
        source = Resizing(lambda: ManagedTensor.over(array))
        for tensors in ([victim, source], [source, victim]):
            try:
                fastclip.clip_by_global_norm(tensors, 0.5)
            except (TypeError, ValueError, BufferError):
                pass
            source.close()
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"


def test_threads_that_export_at_the_same_time() -> None:
    array = values((1000,))
    expected = fastclip.global_norm([array] * 3)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(50):
            sources = [exporter(array) for _ in range(3)]
            norm = fastclip.global_norm(sources)
            if norm != expected:
                wrong.append(norm)
            for source in sources:
                source.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- the buffer protocol ------------------------------------------------------------------------


def test_buffers_are_released() -> None:
    memory = bytearray(np.array([3.0, 4.0], "f4").tobytes())
    view = memoryview(memory).cast("f")
    result = fastclip.clip_by_norm(view, 2.5)
    clipped, _ = fastclip.clip_by_global_norm([view], 2.5, out=[view])
    with pytest.raises(TypeError):
        fastclip.global_norm([view, np.ones(2, np.int32)])
    assert clipped[0] is view
    del clipped
    gc.collect()
    view.release()
    # A bytearray with an exported buffer cannot be resized.
    memory.extend(b"more")
    np.testing.assert_array_equal(result, np.array([1.5, 2.0], "f4"))


def test_released_memoryview_is_refused() -> None:
    view = memoryview(bytearray(8)).cast("f")
    view.release()
    for clip in CLIPS.values():
        with pytest.raises((TypeError, ValueError)):
            clip([view])
    with pytest.raises((TypeError, ValueError), match=r"t_list\[0\]"):
        fastclip.global_norm([view])
    with pytest.raises((TypeError, ValueError), match=r"out\[0\]"):
        fastclip.clip_by_global_norm([np.ones(2, "f4")], 0.5, out=[view])


def test_closed_mapping_is_refused() -> None:
    memory = mmap.mmap(-1, 8)
    memory.close()
    with pytest.raises((TypeError, ValueError)):
        fastclip.clip_by_value(memory, 0, 1)


def test_mapped_file_that_is_read_only(tmp_path: Any) -> None:
    path = tmp_path / "floats"
    path.write_bytes(np.array([3.0, 4.0], "f4").tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        view = memoryview(memory).cast("f")
        assert fastclip.global_norm([view]) == 5
        with pytest.raises(ValueError, match="read-only"):
            fastclip.clip_by_norm(view, 1.0, out=view)
        view.release()
    assert path.read_bytes() == np.array([3.0, 4.0], "f4").tobytes()


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_every_code_of_the_standard_librarys_arrays(code: str) -> None:
    value = stdlib_array.array(code, [3, 4, 100])
    result = fastclip.clip_by_value(value, 4, 50)
    assert type(result) is np.ndarray
    assert result.dtype == np.dtype(code)
    np.testing.assert_array_equal(result, [4, 4, 50])


@pytest.mark.parametrize("code", ["c", "?", "P", "n"])
def test_formats_that_are_no_numbers_are_refused(code: str) -> None:
    view = memoryview(bytearray(16)).cast(code)
    result, refusal = attempt(lambda: fastclip.clip_by_value(view, 0, 1), TypeError)
    # Pointers and sizes are unsigned and signed numbers.
    assert refusal is not None or (code in "Pn" and result.dtype.kind in "iu")


def test_ctypes_of_several_dimensions_and_other_byte_order() -> None:
    kind = (ctypes.c_double * 3) * 2
    value = kind((1, 2, 3), (4, 5, 6))
    plain = np.array([[1, 2, 3], [4, 5, 6.0]])
    assert oracle.same_bits(fastclip.clip_by_norm(value, 0.5), fastclip.clip_by_norm(plain, 0.5))
    swapped_type = ctypes.c_float.__ctype_be__ if sys.byteorder == "little" else ctypes.c_float.__ctype_le__
    swapped = (swapped_type * 2)(3.0, 4.0)
    assert fastclip.global_norm([swapped]) == 5
    with pytest.raises((TypeError, ValueError), match="out"):
        fastclip.clip_by_norm(np.ones(2, "f4"), 0.5, out=swapped)
    assert list(swapped) == [3.0, 4.0]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes export buffers since Python 3.12")
def test_class_that_exports_a_buffer() -> None:
    class Buffer:
        def __init__(self) -> None:
            self.memory = bytearray(np.array([3.0, 4.0], "f4").tobytes())
            self.released = 0

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(self.memory).cast("f")

        def __release_buffer__(self, view: memoryview) -> None:
            self.released += 1
            view.release()

    value: Any = Buffer()
    assert fastclip.global_norm([value]) == 5
    assert fastclip.clip_by_norm(value, 2.5, out=value) is value
    assert np.frombuffer(value.memory, "f4").tolist() == [1.5, 2.0]
    gc.collect()
    assert value.released >= 2


def test_object_with_an_array_method_is_read() -> None:
    class ArrayLike:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return np.array([3.0, 4.0], dtype)

    result = fastclip.clip_by_norm(ArrayLike(), 2.5)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, [1.5, 2])
    with pytest.raises(TypeError, match="out"):
        fastclip.clip_by_norm(np.ones(2), 0.5, out=ArrayLike())


def test_attributes_that_raise() -> None:
    """Whatever an object raises where it is asked what it is, the call refuses it or raises just that."""

    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise Failure(name)

    class Everything:
        def __getattribute__(self, name: str) -> Any:
            raise Failure(name)

    for source in (Hostile(), Everything()):
        for clip in CLIPS.values():
            with pytest.raises((*REFUSALS, Failure)):
                clip([source])
        with pytest.raises((*REFUSALS, Failure)):
            fastclip.global_norm([np.ones(2), source])
        with pytest.raises((*REFUSALS, Failure)):
            fastclip.clip_by_norm(np.ones(2), 0.5, out=source)


def test_subclass_of_ndarray_with_its_own_dlpack_is_read_as_the_array_it_is() -> None:
    class Lying(np.ndarray[Any, Any]):
        def __dlpack__(self, **options: Any) -> Any:  # type: ignore[override]
            return np.full(10**6, 7.0).__dlpack__()

        def __dlpack_device__(self) -> Any:
            return CUDA

    array = values()
    result = fastclip.clip_by_norm(array.view(Lying), 0.5)
    assert oracle.same_bits(result, fastclip.clip_by_norm(array, 0.5))
