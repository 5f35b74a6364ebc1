"""``out=``: tensors, buffers and exporters that are written, and those that are refused."""

from __future__ import annotations

import array as stdlib_array
import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.clip_calls import CLIPS, EVERY_SCALING, Clip, clips_for
from support.dlpack_capsules import (
    CPU,
    CUDA,
    IS_COPIED,
    READ_ONLY,
    UnversionedExporter,
    exporter,
)
from support.tensor_kinds import (
    EVERY_FRAMEWORK,
    EVERY_IMMUTABLE,
    EVERY_WRITABLE,
    KINDS,
    Kind,
    from_torch,
    shape_of,
    to_torch,
    values,
)

# --- outputs that are written -------------------------------------------------------------------


@EVERY_WRITABLE
def test_in_place(kind: Kind) -> None:
    for dtype in kind.dtypes:
        array = values(shape_of(kind), dtype)
        for name, clip in clips_for(dtype):
            tensor = kind.make(array)
            (expected,) = clip([array])
            (result,) = clip([tensor], out=[tensor])
            assert result is tensor, name
            got = kind.read(tensor)
            # In place, zeros of the other sign may stay where they are equal to a bound.
            np.testing.assert_array_equal(oracle.float64_parts(got), oracle.float64_parts(expected))


@EVERY_WRITABLE
@EVERY_SCALING
def test_separate_output(kind: Kind, clip: Clip) -> None:
    array = values(shape_of(kind))
    tensor, out = kind.make(array), kind.make(np.full_like(array, 9))
    (result,) = clip([tensor], out=[out])
    assert result is out
    assert oracle.same_bits(kind.read(out), clip([array])[0])
    assert oracle.same_bits(kind.read(tensor), array)


@EVERY_WRITABLE
def test_output_of_another_kind_than_the_input(kind: Kind) -> None:
    array = values(shape_of(kind))
    (expected,), _ = fastclip.clip_by_global_norm([array], 0.5)
    out = kind.make(np.zeros_like(array))
    clipped, _ = fastclip.clip_by_global_norm([array], 0.5, out=[out])
    assert clipped[0] is out
    assert oracle.same_bits(kind.read(out), expected)
    target = np.zeros_like(array)
    clipped, _ = fastclip.clip_by_global_norm([kind.make(array)], 0.5, out=[target])
    assert clipped[0] is target
    assert oracle.same_bits(target, expected)


@EVERY_FRAMEWORK
def test_array_as_output_of_a_frameworks_tensor(kind: Kind) -> None:
    array = values()
    target = np.zeros_like(array)
    assert fastclip.clip_by_norm(kind.make(array), 0.5, out=target) is target
    assert oracle.same_bits(target, fastclip.clip_by_norm(array, 0.5))


@EVERY_WRITABLE
def test_in_place_within_the_bound_changes_nothing(kind: Kind) -> None:
    array = values(shape_of(kind))
    tensor = kind.make(array)
    clipped, norm = fastclip.clip_by_global_norm([tensor], 1e9, out=[tensor])
    assert clipped[0] is tensor
    assert oracle.same_bits(kind.read(tensor), array)
    assert oracle.same_bits(norm, fastclip.global_norm([array]))


def test_memory_is_written_through_every_buffer() -> None:
    expected = np.array([1.5, 2.0], "f4")
    memory = bytearray(np.array([3.0, 4.0], "f4").tobytes())
    view = memoryview(memory).cast("f")
    assert fastclip.clip_by_norm(view, 2.5, out=view) is view
    assert bytes(memory) == expected.tobytes()

    floats = stdlib_array.array("f", [3.0, 4.0])
    assert fastclip.clip_by_norm(floats, 2.5, out=floats) is floats
    assert floats.tolist() == [1.5, 2.0]

    c_floats = (ctypes.c_float * 2)(3.0, 4.0)
    assert fastclip.clip_by_norm(c_floats, 2.5, out=c_floats) is c_floats
    assert list(c_floats) == [1.5, 2.0]

    mapped = mmap.mmap(-1, 8)
    mapped[:] = np.array([3.0, 4.0], "f4").tobytes()
    view = memoryview(mapped).cast("f")
    fastclip.clip_by_global_norm([view], 2.5, out=[view])
    assert mapped[:] == expected.tobytes()


def test_bytes_are_clamped_as_unsigned_numbers() -> None:
    for memory in (bytearray(b"\x00\x07\xff"), mmap.mmap(-1, 3)):
        memory[:] = b"\x00\x07\xff"
        np.testing.assert_array_equal(fastclip.clip_by_value(memory, 3, 9), np.array([3, 7, 9], np.uint8))
        assert fastclip.clip_by_value(memory, 3, 9, out=memory) is memory
        assert bytes(memory) == b"\x03\x07\x09"


def test_exporter_is_written_once_and_released() -> None:
    memory = values()
    (expected,), _ = fastclip.clip_by_global_norm([memory.copy()], 0.5)
    out = exporter(memory)
    clipped, _ = fastclip.clip_by_global_norm([out], 0.5, out=[out])
    assert clipped[0] is out
    assert oracle.same_bits(memory, expected)
    out.close()


@pytest.mark.interop("torch")
def test_list_of_outputs_is_returned_with_its_tensors() -> None:
    pytest.importorskip("torch")
    tensors = [to_torch(values(seed=1)), None, to_torch(values((3,), np.float64, seed=2))]
    arrays = [values(seed=1), None, values((3,), np.float64, seed=2)]
    expected, _ = fastclip.clip_by_global_norm(arrays, 0.5)
    clipped, _ = fastclip.clip_by_global_norm(tensors, 0.5, out=tensors)
    assert all(a is b for a, b in zip(clipped, tensors, strict=True))
    for tensor, array in zip(tensors, expected, strict=True):
        assert tensor is None or oracle.same_bits(from_torch(tensor), array)
    grads = {"w": to_torch(values(seed=1)), "b": [to_torch(values((3,), np.float64, seed=2))]}
    clipped, _ = fastclip.clip_by_global_norm(grads, 0.5, out=grads)
    assert clipped is grads
    assert oracle.same_bits(from_torch(grads["w"]), expected[0])
    assert oracle.same_bits(from_torch(grads["b"][0]), expected[2])


@pytest.mark.interop("torch")
def test_parameters_are_written_as_under_no_grad() -> None:
    torch = pytest.importorskip("torch")
    array = values()
    for clip in CLIPS.values():
        parameter = torch.nn.Parameter(to_torch(array.copy()))
        memory = parameter.data_ptr()
        assert torch.is_grad_enabled()
        (result,) = clip([parameter], out=[parameter])
        assert result is parameter
        assert parameter.is_leaf
        assert parameter.grad_fn is None
        assert parameter.requires_grad
        assert parameter.data_ptr() == memory
        np.testing.assert_array_equal(from_torch(parameter), clip([array])[0])


# --- outputs that are refused -------------------------------------------------------------------


def assert_refused(error: Any, match: str, out: Any, array: Any = None) -> None:
    """Checks that every function refuses an output, and that an output before it is not written."""
    array = values() if array is None else array
    first = array + 1
    before = first.copy()
    for clip in CLIPS.values():
        with pytest.raises(error, match=match) as caught:
            clip([array], out=[out])
        assert "out" in str(caught.value)
    with pytest.raises(error, match=match) as caught:
        fastclip.clip_by_global_norm([first, array], 0.5, out=[first, out])
    assert "out[1]" in str(caught.value)
    assert oracle.same_bits(first, before)


@EVERY_IMMUTABLE
def test_immutable_tensors_are_refused(kind: Kind) -> None:
    array = values()
    tensor = kind.make(array)
    assert_refused(TypeError, "(?i)immutable", tensor)
    with pytest.raises(TypeError, match=r"(?i)out\[0\].*immutable"):
        fastclip.clip_by_global_norm([tensor], 1e9, out=[tensor])
    assert oracle.same_bits(kind.read(tensor), array)


@pytest.mark.interop("tensorflow")
@pytest.mark.filterwarnings("ignore")
def test_variables_of_tensorflow_are_refused() -> None:
    tf = pytest.importorskip("tensorflow")
    array = values()
    variable = tf.Variable(array)
    assert_refused(TypeError, "(?i)immutable", variable)
    np.testing.assert_array_equal(variable.numpy(), array)


@pytest.mark.interop("tensorflow")
@pytest.mark.filterwarnings("ignore")
def test_variables_of_tensorflow_are_read() -> None:
    tf = pytest.importorskip("tensorflow")
    array = values()
    result = fastclip.clip_by_norm(tf.Variable(array), 0.5)
    assert type(result) is type(tf.constant(0.0))
    assert oracle.same_bits(result.numpy(), fastclip.clip_by_norm(array, 0.5))


def test_read_only_exporter_is_refused() -> None:
    memory = values()
    before = memory.copy()
    out = exporter(memory, flags=READ_ONLY)
    assert_refused(ValueError, "read-only", out)
    with pytest.raises(ValueError, match="read-only"):
        fastclip.clip_by_global_norm([out], 1e9, out=[out])
    assert oracle.same_bits(memory, before)
    out.close()
    assert fastclip.global_norm([out]) == fastclip.global_norm([memory])
    out.close()


def test_exporter_that_made_a_copy_is_refused() -> None:
    """What is written to a copy is lost."""
    memory = values()
    before = memory.copy()
    out = exporter(memory, flags=IS_COPIED)
    assert_refused((TypeError, ValueError), "(?i)cop|read-only", out)
    assert oracle.same_bits(memory, before)
    out.close()
    assert fastclip.global_norm([out]) == fastclip.global_norm([memory])
    out.close()


def test_exporter_that_does_not_say_whether_it_may_be_written_is_refused() -> None:
    memory = values()
    before = memory.copy()
    out = exporter(memory, UnversionedExporter, version=None)
    assert_refused((TypeError, ValueError), "out", out)
    assert oracle.same_bits(memory, before)
    out.close()
    assert fastclip.global_norm([out]) == fastclip.global_norm([memory])
    out.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a.tobytes(),
        lambda a: memoryview(a.tobytes()).cast("f", (6, 5)),
        lambda a: memoryview(a).toreadonly(),
    ],
    ids=["bytes", "memoryview of bytes", "read-only memoryview"],
)
def test_read_only_buffers_are_refused(make: Callable[[Any], Any]) -> None:
    array = values()
    out = make(array)
    error = TypeError if isinstance(out, bytes) else ValueError
    for clip in CLIPS.values():
        with pytest.raises(error, match="out"):
            clip([array], out=[out])
    if error is ValueError:
        assert_refused(ValueError, "read-only", out)


@pytest.mark.interop("torch")
def test_tensor_on_another_device_is_refused_with_the_frameworks_own_function() -> None:
    torch = pytest.importorskip("torch")
    elsewhere = torch.empty((6, 5), device="meta")
    assert_refused(TypeError, "meta", elsewhere)
    for clip in CLIPS.values():
        with pytest.raises(TypeError, match="meta") as caught:
            clip([elsewhere])
        assert "torch." in str(caught.value)
    with pytest.raises(TypeError, match=r"t_list\[1\].*meta.*torch\.nn\.utils\.clip_grad_norm_"):
        fastclip.clip_by_global_norm([values(), elsewhere], 0.5)
    for norm in (fastclip.global_norm, fastclip.tensor_norms):
        with pytest.raises(TypeError, match=r"t_list\[0\].*meta"):
            norm([elsewhere])


def test_exporter_on_another_device_is_refused() -> None:
    memory = values()
    for device in (CPU, CUDA):
        out = exporter(memory, device=CUDA)
        out.device = device
        assert_refused((TypeError, ValueError, BufferError), "out", out)
        out.close()


@EVERY_WRITABLE
def test_outputs_of_another_dtype_or_shape(kind: Kind) -> None:
    shape = shape_of(kind)
    array = values(shape)
    for wrong in (np.zeros(shape, np.float64), np.zeros(7, np.float32)):
        out = kind.make(wrong)
        with pytest.raises(ValueError, match="out") as caught:
            fastclip.clip_by_norm(array, 0.5, out=out)
        assert str(wrong.dtype) in str(caught.value)
        with pytest.raises(ValueError, match=r"out\[0\]"):
            fastclip.clip_by_global_norm([kind.make(array)], 0.5, out=[out])
        assert not kind.read(out).any()


# --- overlap ------------------------------------------------------------------------------------


@pytest.mark.interop("torch")
def test_overlapping_tensors_are_refused() -> None:
    torch = pytest.importorskip("torch")
    memory = torch.arange(20, dtype=torch.float32)
    before = memory.clone()
    a, b = memory[0:6], memory[5:11]
    pairs = [
        ([values((6,)), values((6,))], [a, b]),
        ([a, b], [a, b]),
        ([memory[0:10]], [memory[1:11]]),
        ([memory[:16].view(4, 4)], [memory[:16].view(4, 4).T]),
        ([a, memory[6:12]], [memory[6:12], a]),
        ([values((6,)), values((6,))], [a, memory[0:6]]),
    ]
    for tensors, out in pairs:
        with pytest.raises(ValueError, match="out"):
            fastclip.clip_by_global_norm(tensors, 0.5, out=out)
        assert torch.equal(memory, before)


@pytest.mark.interop("torch")
def test_overlap_of_different_kinds_over_the_same_memory_is_refused() -> None:
    torch = pytest.importorskip("torch")
    memory = np.arange(20, dtype=np.float32)
    before = memory.copy()
    tensor = torch.from_numpy(memory)
    for tensors, out in (
        ([values((6,)), values((6,))], [tensor[:6], memory[3:9]]),
        ([memory[:6]], [tensor[1:7]]),
        ([tensor[:6]], [memoryview(memory)[1:7]]),
        ([tensor[:6]], [exporter(memory[1:7])]),
    ):
        with pytest.raises(ValueError, match="out"):
            fastclip.clip_by_global_norm(tensors, 0.5, out=out)
        assert oracle.same_bits(memory, before)
    # The same memory in another kind is the input itself.
    out = exporter(memory[:6])
    fastclip.clip_by_global_norm([tensor[:6]], 0.5, out=[out])
    out.close()
    assert oracle.same_bits(memory[:6], fastclip.clip_by_norm(before[:6], 0.5))
    assert oracle.same_bits(memory[6:], before[6:])


@pytest.mark.interop("torch")
def test_output_that_overlaps_a_bound_of_another_kind_is_refused() -> None:
    torch = pytest.importorskip("torch")
    array, memory = values((4,)), np.ones(5, np.float32)
    out = torch.from_numpy(memory)[1:]
    for call in (
        lambda: fastclip.clip_by_value(array, -1.0, memory[:4], out=out),
        lambda: fastclip.clip_by_norm(array, memory[:4], out=out),
        lambda: fastclip.clip_by_value(array, -1.0, torch.from_numpy(memory)[:4], out=out),
    ):
        with pytest.raises(ValueError, match="out"):
            call()
        assert (memory == 1).all()


@pytest.mark.interop("torch")
def test_gaps_between_elements_are_not_written() -> None:
    torch = pytest.importorskip("torch")
    memory = torch.full((10, 10), float("nan"))
    tensor = memory[1:9:2, 2:8:3]
    tensor.fill_(2.0)
    fastclip.clip_by_global_norm([tensor], 0.5, out=[tensor])
    assert int(memory.isnan().sum()) == 100 - tensor.numel()
    assert not tensor.isnan().any()


@pytest.mark.interop("torch")
def test_nothing_is_written_by_a_call_that_fails() -> None:
    torch = pytest.importorskip("torch")
    tensor = to_torch(values())
    before = tensor.clone()
    for error, options in (
        (ValueError, {"clip_norm": -1.0}),
        (ValueError, {"norms": np.zeros(7)}),
        (TypeError, {"out": [tensor, torch.empty(2, device="meta")]}),
        (fastclip.NonFiniteError, {"on_nonfinite": "raise"}),
    ):
        arguments: dict[str, Any] = {"clip_norm": 0.5, "out": [tensor, torch.zeros(2)]} | options
        with pytest.raises(error):
            fastclip.clip_by_global_norm([tensor, torch.tensor([np.nan, 1.0])], **arguments)
        assert torch.equal(tensor, before)


@pytest.mark.interop("torch")
def test_norms_are_written_to_an_array_of_numpy_whatever_the_tensors_are() -> None:
    pytest.importorskip("torch")
    norms = np.zeros(2)
    fastclip.clip_by_global_norm(
        [to_torch(np.array([3.0, 4.0])), KINDS["torch"].make(np.ones(4))], 1.0, norms=norms
    )
    np.testing.assert_array_equal(norms, [5, 2])
