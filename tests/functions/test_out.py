"""``out=``: outputs that are accepted or refused, and calls that raise before they write."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support import fresh_python, oracle
from support.dtypes import EVERY_FLOAT
from support.ranks import Exchange
from support.strategies import (
    LAYOUTS,
    PROPERTY,
    WRITABLE_LAYOUTS,
    array_lists,
    finite_values,
    laid_out,
    read_only,
)

#: The functions of one array, as callables of ``t`` and ``out``; each clips.
SINGLE: dict[str, Callable[..., Any]] = {
    "value": lambda t, **out: fastclip.clip_by_value(t, -0.25, 0.25, **out),
    "norm": lambda t, **out: fastclip.clip_by_norm(t, 0.5, **out),
    "norm_axes": lambda t, **out: fastclip.clip_by_norm(t, 0.5, axes=0, **out),
    "average_norm": lambda t, **out: fastclip.clip_by_average_norm(t, 1e-4, **out),
}
EVERY_SINGLE = pytest.mark.parametrize("call", SINGLE.values(), ids=SINGLE.keys())

#: The functions of a list of arrays, likewise.
LISTED: dict[str, Callable[..., Any]] = {
    "global_norm": lambda t, **out: fastclip.clip_by_global_norm(t, 0.5, **out)[0],
    "use_norm": lambda t, **out: fastclip.clip_by_global_norm(t, 0.5, 4.0, **out)[0],
    "block_rms": lambda t, **out: fastclip.clip_by_block_rms(t, 0.1, **out),
    "adaptive": lambda t, **out: fastclip.adaptive_clip(
        [None if x is None else np.full_like(x, 1e-3) for x in t], t, **out
    ),
}
EVERY_LISTED = pytest.mark.parametrize("call", LISTED.values(), ids=LISTED.keys())


def values(shape: Any, dtype: Any = np.float32, seed: int = 1) -> Any:
    array = finite_values(np.random.default_rng(seed), np.empty(shape).shape, dtype)
    array[...] += 1
    return array


# --- outputs that are accepted ------------------------------------------------------------------


@EVERY_SINGLE
@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", WRITABLE_LAYOUTS)
def test_one_array_into_another_layout(call: Callable[..., Any], source: str, target: str) -> None:
    array = laid_out(values((3, 4, 5)), source)
    before = array.copy()
    out = laid_out(np.full((3, 4, 5), 7, np.float32), target)
    assert call(array, out=out) is out
    assert oracle.same_bits(out, call(array))
    assert oracle.same_bits(array, before)


@EVERY_LISTED
@pytest.mark.parametrize("target", WRITABLE_LAYOUTS)
def test_a_list_into_another_layout(call: Callable[..., Any], target: str) -> None:
    arrays = [values((3, 4)), None, values((5,), np.float64), values((2, 1, 3), np.float16)]
    outs = [None if a is None else laid_out(np.zeros_like(a), target) for a in arrays]
    got = call(arrays, out=outs)
    assert isinstance(got, list)
    assert all(a is b for a, b in zip(got, outs, strict=True))
    for output, expected in zip(got, call(arrays), strict=True):
        assert output is None or oracle.same_bits(output, expected)


@EVERY_SINGLE
@EVERY_FLOAT
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_one_array_in_place(call: Callable[..., Any], dtype: np.dtype[Any], layout: str) -> None:
    if dtype.kind == "c" and call is SINGLE["value"]:
        pytest.skip("complex numbers have no order")
    array = laid_out(values((6, 7), dtype), layout)
    expected = call(array.copy())
    assert call(array, out=array) is array
    np.testing.assert_array_equal(oracle.float64_parts(array), oracle.float64_parts(expected))


@PROPERTY
@given(arrays=array_lists(layouts=WRITABLE_LAYOUTS, min_size=1), factor=st.sampled_from([0.3, 0.9]))
def test_a_list_in_place(arrays: list[Any], factor: float) -> None:
    before = [array.copy() for array in arrays]
    exact = oracle.norm(before)
    limit = oracle.to_float(exact) * factor
    got, norm = fastclip.clip_by_global_norm(arrays, limit, out=arrays)
    assert all(a is b for a, b in zip(got, arrays, strict=True))
    oracle.assert_norm(norm, before)
    oracle.assert_clipped(arrays, before, exact, limit)


def test_gaps_between_elements_are_not_written() -> None:
    for layout in ("stepped", "offset"):
        array = laid_out(values((40, 30)), layout)
        base = array
        while base.base is not None:
            base = base.base
        gaps = int(np.isnan(base).sum())
        assert gaps >= 2
        fastclip.clip_by_global_norm([array], 0.5, out=[array])
        assert int(np.isnan(base).sum()) == gaps


def test_structures_of_outputs() -> None:
    grads = {"w": [values(3), (values(4), None)], "b": values(2)}
    outs: Any = {"w": [np.zeros(3, "f4"), (np.zeros(4, "f4"), None)], "b": np.zeros(2, "f4")}
    got, _ = fastclip.clip_by_global_norm(grads, 0.5, out=outs)
    expected, _ = fastclip.clip_by_global_norm(grads, 0.5)
    assert got["w"][0] is outs["w"][0]
    assert got["w"][1][0] is outs["w"][1][0]
    assert got["w"][1][1] is None
    assert oracle.same_bits(outs["b"], expected["b"])
    assert oracle.same_bits(outs["w"][1][0], expected["w"][1][0])


def test_a_tuple_of_outputs_for_a_list() -> None:
    outs = (np.zeros(3, np.float32),)
    got, _ = fastclip.clip_by_global_norm([values(3)], 0.5, out=outs)
    assert got[0] is outs[0]
    assert outs[0].any()


def test_memmap_in_place(tmp_path: Any) -> None:
    path = tmp_path / "gradients.bin"
    array = np.memmap(path, np.float32, "w+", shape=(1000,))
    array[:] = 2
    fastclip.clip_by_global_norm([array], 1.0, out=[array])
    array.flush()
    on_disk = np.fromfile(path, np.float32)
    np.testing.assert_allclose(on_disk, 2 / np.sqrt(4000), rtol=1e-6)


# --- outputs that are refused -------------------------------------------------------------------


def assert_refused(error: Any, match: str, arrays: list[Any], out: Any) -> None:
    """Checks that a call raises and changes neither inputs nor outputs."""
    memory = [*arrays, *(out if isinstance(out, (list, tuple)) else [out])]
    before = [x.copy() if isinstance(x, np.ndarray) else x for x in memory]
    with pytest.raises(error, match=match):
        fastclip.clip_by_global_norm(arrays, 0.5, out=out)
    for x, copy in zip(memory, before, strict=True):
        if isinstance(x, np.ndarray):
            assert oracle.same_bits(x, copy)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(4, np.float32),
        np.zeros((3, 1), np.float32),
        np.zeros((), np.float32),
        np.zeros(3, np.float64),
        np.zeros(3, np.float16),
        np.zeros(3, np.int32),
        np.zeros(3, np.complex64),
        np.zeros(3, np.dtype(np.float32).newbyteorder()),
        read_only(np.zeros(3, np.float32)),
        np.broadcast_to(np.zeros(1, np.float32), (3,)),
    ],
    ids=repr,
)
def test_wrong_shape_dtype_order_or_read_only(wrong: Any) -> None:
    """The output is the last of three, so that the others could be written before it is checked."""
    arrays = [values(5), values(2), values(3)]
    assert_refused(ValueError, r"out\[2\]", arrays, [arrays[0], arrays[1], wrong])
    for call in SINGLE.values():
        with pytest.raises(ValueError, match="out"):
            call(arrays[2], out=wrong)
    for call in LISTED.values():
        with pytest.raises(ValueError, match=r"out\[0\]"):
            call([arrays[2]], out=[wrong])


def test_message_has_the_required_and_the_actual_dtype_or_shape() -> None:
    with pytest.raises(ValueError, match="float64") as caught:
        fastclip.clip_by_global_norm([values((3, 2))], 1.0, out=[np.zeros((3, 2))])
    assert "float32" in str(caught.value)
    with pytest.raises(ValueError, match=r"\(2, 3\)") as caught:
        fastclip.clip_by_global_norm([values((3, 2))], 1.0, out=[np.zeros((2, 3), "f4")])
    assert "(3, 2)" in str(caught.value)


def test_read_only_output_is_refused_even_if_nothing_would_be_written() -> None:
    array = read_only(values(3))
    with pytest.raises(ValueError, match=r"read-only|writable|writeable"):
        fastclip.clip_by_global_norm([array], 1e9, out=[array])


@pytest.mark.parametrize(
    "wrong", [[0.0, 0.0, 0.0], 1.0, "abc", object(), np.float32(1)], ids=lambda w: type(w).__name__
)
def test_output_that_is_no_array_is_a_type_error(wrong: Any) -> None:
    for call in SINGLE.values():
        with pytest.raises(TypeError, match="out"):
            call(values(3), out=wrong)


def test_list_of_outputs_with_an_entry_that_is_no_array_is_refused() -> None:
    arrays = [values(3), values(2)]
    assert_refused(TypeError, r"out\[1\]", arrays, [arrays[0], "abc"])
    assert_refused(TypeError, r"out\[1\]", arrays, [arrays[0], 1.0])


@pytest.mark.parametrize(
    "out",
    [
        [],
        [np.zeros(3, "f4")],
        [np.zeros(3, "f4"), None],
        [np.zeros(3, "f4"), [np.zeros(2, "f4")]],
        [np.zeros(3, "f4"), np.zeros(2, "f4"), np.zeros(1, "f4")],
        {"a": np.zeros(3, "f4"), "b": np.zeros(2, "f4")},
        np.zeros(3, "f4"),
    ],
    ids=["empty", "short", "none", "nested", "long", "dict", "bare"],
)
def test_outputs_of_another_structure_are_refused(out: Any) -> None:
    assert_refused((ValueError, TypeError), "out", [values(3), values(2)], out)


def test_dict_of_outputs_with_other_keys() -> None:
    grads, out = {"a": values(3)}, {"b": np.zeros(3, "f4")}
    with pytest.raises(ValueError, match="out"):
        fastclip.clip_by_global_norm(grads, 0.5, out=out)
    assert not out["b"].any()


# --- overlap ------------------------------------------------------------------------------------


def test_error_for_the_same_output_twice_names_both_positions() -> None:
    array = values(6)
    with pytest.raises(ValueError, match=r"out\[0\]") as caught:
        fastclip.clip_by_global_norm([array, values(3), array], 0.5, out=[array, values(3), array])
    assert "out[2]" in str(caught.value)
    arrays = [array, values(3), array]
    assert_refused(ValueError, r"out\[0\].*out\[2\]|out\[2\].*out\[0\]", arrays, arrays)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (slice(0, 6), slice(5, 11)),
        (slice(0, 6), slice(0, 6)),
        (slice(0, 6), slice(5, None, -1)),
        (slice(0, 12, 2), slice(0, 18, 3)),
        (slice(0, 12, 2), slice(6, 0, -1)),
        (slice(5, 11), slice(0, 6)),
    ],
    ids=str,
)
def test_overlapping_outputs_are_refused(first: slice, second: slice) -> None:
    memory = np.zeros(20, np.float32)
    a, b = memory[first], memory[second]
    assert a.size == b.size == 6
    assert np.shares_memory(a, b)
    assert_refused(ValueError, "out", [values(6), values(6)], [a, b])


@pytest.mark.parametrize("shift", [1, 5, -1])
def test_output_that_overlaps_a_shifted_part_of_its_input_is_refused(shift: int) -> None:
    memory = values(30)
    array, out = memory[10:20], memory[10 + shift : 20 + shift]
    assert_refused(ValueError, "out", [array], [out])
    for call in SINGLE.values():
        before = memory.copy()
        with pytest.raises(ValueError, match="out"):
            call(array, out=out)
        assert oracle.same_bits(memory, before)


def test_output_that_is_its_input_with_other_strides_is_refused() -> None:
    array = values((5, 5))
    assert_refused(ValueError, "out", [array], [array[::-1]])
    assert_refused(ValueError, "out", [array], [array.T])


def test_output_that_is_another_input_is_refused() -> None:
    a, b = values(4), values(4, seed=2)
    assert_refused(ValueError, "out", [a, b], [b, a])
    assert_refused(ValueError, "out", [a, b], [np.zeros(4, "f4"), a])
    assert_refused(ValueError, "out", [a[:2], a[2:]], [a[1:3], np.zeros(2, "f4")])


def test_output_that_overlaps_itself_is_refused() -> None:
    memory = np.zeros(4, np.float32)
    out = np.lib.stride_tricks.as_strided(memory, (3, 2), (4, 4))
    assert_refused(ValueError, "out", [values((3, 2))], [out])
    repeated = np.lib.stride_tricks.as_strided(memory, (3,), (0,))
    assert_refused(ValueError, "out", [values(3)], [repeated])


def test_output_that_overlaps_a_bound_or_a_limit_is_refused() -> None:
    array, memory = values(4), np.ones(5, np.float32)
    bound = memory[:4]
    calls: list[Callable[..., Any]] = [
        lambda out: fastclip.clip_by_value(array, bound, 2.0, out=out),
        lambda out: fastclip.clip_by_value(array, -1.0, bound, out=out),
        lambda out: fastclip.clip_by_norm(array, bound, out=out),
    ]
    for call in calls:
        for out in (bound, memory[1:], memory[3::-1]):
            with pytest.raises(ValueError, match="out"):
                call(out)
        assert (memory == 1).all()


def test_interleaved_views_do_not_overlap() -> None:
    memory = values(20)
    before = memory.copy()
    a, b = memory[::2], memory[1::2]
    fastclip.clip_by_global_norm([a, b], 0.5, out=[a, b])
    oracle.assert_clipped([memory], [before], oracle.norm([before]), 0.5)


def test_columns_of_a_matrix_do_not_overlap() -> None:
    memory = values((30, 8))
    before = memory.copy()
    views = [memory[:, :3], memory[:, 3:4], memory[:, 7:3:-1]]
    fastclip.clip_by_global_norm(views, 0.5, out=views)
    oracle.assert_clipped([memory], [before], oracle.norm([before]), 0.5)


def test_adjacent_views_of_one_buffer_do_not_overlap() -> None:
    memory = values(1000)
    before = memory.copy()
    views = [memory[start : start + 10] for start in range(990, -1, -10)]
    fastclip.clip_by_global_norm(views, 0.5, out=views)
    oracle.assert_clipped([memory], [before], oracle.norm([before]), 0.5)


def test_interleaved_views_of_different_dtypes_do_not_overlap() -> None:
    records = np.zeros(50, np.dtype([("a", "f4"), ("b", "f8")]))
    a, b = records["a"], records["b"]
    a[:], b[:] = 3, 4
    fastclip.clip_by_global_norm([a, b], 1.0, out=[a, b])
    np.testing.assert_allclose(a, 3 / np.sqrt(50 * 25), rtol=1e-6)
    np.testing.assert_allclose(b, 4 / np.sqrt(50 * 25), rtol=1e-12)


def test_empty_outputs_overlap_nothing() -> None:
    memory = values(6)
    empty = memory[3:3]
    got, _ = fastclip.clip_by_global_norm([memory, empty, empty], 0.5, out=[memory, empty, empty])
    assert got[1] is empty


def test_same_input_twice_is_accepted() -> None:
    array = np.array([3.0, 4.0])
    outs = [np.zeros(2), np.zeros(2)]
    _, norm = fastclip.clip_by_global_norm([array, array], 1.0, out=outs)
    assert norm == pytest.approx(np.sqrt(50), rel=1e-15)
    assert oracle.same_bits(outs[0], outs[1])


# --- nothing written on failure -----------------------------------------------------------------


class Failure(Exception):
    pass


class FailingComm:
    def allreduce(self, values: Any) -> Any:
        raise Failure


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"clip_norm": np.nan}),
        (ValueError, {"clip_norm": -1.0}),
        (TypeError, {"clip_norm": "1"}),
        (ValueError, {"ord": 0}),
        (ValueError, {"use_norm": -1.0}),
        (ValueError, {"norms": np.zeros(9)}),
        (ValueError, {"on_nonfinite": "nonsense"}),
        (Failure, {"comm": FailingComm()}),
    ],
    ids=str,
)
def test_bad_argument_writes_nothing(error: type[Exception], options: dict[str, Any]) -> None:
    arrays = [values(100), values(7)]
    before = [array.copy() for array in arrays]
    clip_norm = options.pop("clip_norm", 0.5)
    with pytest.raises(error):
        fastclip.clip_by_global_norm(arrays, clip_norm, out=arrays, **options)
    for array, copy in zip(arrays, before, strict=True):
        assert oracle.same_bits(array, copy)


@pytest.mark.parametrize("wrong", [np.ones(3, np.int64), "abc", np.array([None]), 1j * np.ones(2)])
def test_bad_last_entry_writes_nothing(wrong: Any) -> None:
    arrays = [values(100), values(7), wrong]
    out = [arrays[0], arrays[1], np.zeros(3, np.float32)]
    before = [array.copy() for array in out]
    with pytest.raises((TypeError, ValueError), match=r"t_list\[2\]|out\[2\]"):
        fastclip.clip_by_global_norm(arrays, 0.5, out=out)
    for array, copy in zip(out, before, strict=True):
        assert oracle.same_bits(array, copy)


def test_bad_bound_writes_nothing() -> None:
    array = np.arange(5)
    with pytest.raises(TypeError):
        fastclip.clip_by_value(array, 0, 2.0, out=array)
    with pytest.raises(OverflowError):
        fastclip.clip_by_value(array, 1, 2**80, out=array)
    np.testing.assert_array_equal(array, np.arange(5))


# --- unclipped arrays are not written -----------------------------------------------------------

PROTECTED = """
import ctypes, mmap, resource, sys
import numpy as np
import fastclip
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
memory = mmap.mmap(-1, 1 << 20)
array = np.frombuffer(memory, np.float32)
array[:] = 1
assert array.flags.writeable
libc = ctypes.CDLL(None, use_errno=True)
pages = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(1 << 20)
assert libc.mprotect(*pages, mmap.PROT_READ) == 0
fraction = float(sys.argv[1])
norm = np.float64(512.0)
if sys.argv[2] == "global":
    fastclip.clip_by_global_norm([array], norm * fraction, out=[array])
elif sys.argv[2] == "use_norm":
    fastclip.clip_by_global_norm([array], norm * fraction, norm, out=[array])
else:
    fastclip.clip_by_norm(array, norm * fraction, out=array)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize("call", ["global", "use_norm", "norm"])
def test_in_place_and_not_clipped_does_not_write(call: str) -> None:
    """The memory is write-protected: a write, even of equal values, ends the process."""
    assert fresh_python.run(PROTECTED, "1.0", call).stdout == "done\n"
    crashed = fresh_python.run(PROTECTED, "0.5", call, expect=None)
    assert crashed.returncode == -signal.SIGSEGV, "the protection did not hold: the test proves nothing"


def test_container_that_cannot_be_rebuilt_is_refused_before_anything_is_written() -> None:
    array = np.array([3.0, 4.0])
    container = types.MappingProxyType({"a": array})
    with pytest.raises(TypeError, match="t_list"):
        fastclip.clip_by_global_norm(container, 1.0, out=container)
    np.testing.assert_array_equal(array, [3.0, 4.0])


def test_container_of_outputs_is_returned() -> None:
    grads = {"a": [np.array([3.0]), np.array([4.0])]}
    clipped, _ = fastclip.clip_by_global_norm(grads, 1.0, out=grads)
    assert clipped is grads
    np.testing.assert_allclose(np.concatenate(grads["a"]), [0.6, 0.8], rtol=1e-15)


@pytest.mark.parametrize(
    "call",
    [
        lambda t, out: fastclip.clip_by_global_norm([t], 1.0, out=[out]),
        lambda t, out: fastclip.clip_by_norm(t, 1.0, out=out),
        lambda t, out: fastclip.clip_by_norm(t, 1.0, axes=[0], out=out),
        lambda t, out: fastclip.clip_by_value(t, -1.0, 1.0, out=out),
        lambda t, out: fastclip.clip_by_global_norm([t], 1.0, out=[out], comm=Exchange(1).ranks[0]),
    ],
)
def test_an_output_must_not_overlap_an_input_in_swapped_byte_order(call: Any) -> None:
    swapped = np.dtype(np.float32).newbyteorder()
    buffer = np.arange(12, dtype=np.float32).astype(swapped)
    before = buffer.tobytes()
    with pytest.raises(ValueError, match="shares memory"):
        call(buffer[:8], buffer.view(np.float32)[2:10])
    assert buffer.tobytes() == before
    apart = np.empty(8, np.float32)
    call(buffer[:8], apart)
    expected = np.empty(8, np.float32)
    call(buffer[:8].astype(np.float32), expected)
    assert np.array_equal(apart, expected)
