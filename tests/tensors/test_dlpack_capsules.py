"""DLPack capsules written field by field: what is read, what is refused, and when deleters are called."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.attempts import REFUSALS
from support.clip_calls import CLIPS, NORMS, clips_for
from support.dlpack_capsules import (
    CUDA,
    IS_COPIED,
    READ_ONLY,
    TYPE_CODES,
    Exporter,
    ManagedTensor,
    UnversionedExporter,
    exporter,
)
from support.strategies import WRITABLE_LAYOUTS, finite_values, laid_out

DTYPES = [dtype for dtype in TYPE_CODES if dtype.kind != "b"]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def values(shape: Any = (6, 5), dtype: Any = np.float32, seed: int = 1) -> Any:
    if np.dtype(dtype).kind in "iu":
        return np.random.default_rng(seed).integers(0, 100, shape, dtype)
    return finite_values(np.random.default_rng(seed), np.empty(shape).shape, dtype)


def assert_read(source: Exporter, array: Any) -> None:
    """Checks every function against its result for an array, and that every capsule is freed by its end."""
    for name, clip in clips_for(array.dtype):
        (result,), (expected,) = clip([source]), clip([array])
        assert type(result) is np.ndarray, name
        assert result.flags.writeable, name
        assert oracle.same_bits(result, expected), name
        if "use_norm" not in name:
            assert all(managed.deletions == 1 for managed in source.exports), name
        source.close()
    if array.dtype.kind not in "iu":
        for norm in NORMS.values():
            assert oracle.same_bits(norm([source]), norm([array]))
            source.close()


def assert_refused(source: Any, error: Any = REFUSALS, match: str | None = None) -> None:
    """Checks that every function refuses an exporter, and that what it handed out is freed once."""
    other = exporter(values())
    for name, clip in CLIPS.items():
        with pytest.raises(error, match=match) as caught:
            clip([source])
        assert ("grads" if name == "adaptive_clip" else "t") in str(caught.value), name
        del caught
        source.close()
    for norm in NORMS.values():
        # In the middle of a list: those before it are freed, too.
        with pytest.raises(error, match=match) as caught:
            norm([other, values(), source, other])
        assert "t_list[2]" in str(caught.value)
        del caught
        source.close()
        other.close()
    target = values()
    before = target.copy()
    with pytest.raises(REFUSALS) as caught:
        fastclip.clip_by_global_norm([values(), values()], 0.5, out=[target, source])
    assert "out[1]" in str(caught.value)
    del caught
    source.close()
    assert oracle.same_bits(target, before)


# --- what is read -------------------------------------------------------------------------------


@EVERY_DTYPE
def test_every_dtype(dtype: np.dtype[Any]) -> None:
    array = values(dtype=dtype)
    assert_read(exporter(array), array)
    assert_read(exporter(array, UnversionedExporter, version=None), array)


@pytest.mark.parametrize("layout", [layout for layout in WRITABLE_LAYOUTS if layout != "misaligned"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (17,)], ids=str)
def test_every_layout(layout: str, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        array = laid_out(values(shape, dtype), layout)
        assert_read(exporter(array), array)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.itemsize > 1], ids=str)
def test_misaligned_memory(dtype: np.dtype[Any]) -> None:
    array = laid_out(values(dtype=dtype), "misaligned")
    assert array.ctypes.data % dtype.itemsize
    assert_read(exporter(array), array)
    base = values((31,), np.float64)
    aligned = base.view(np.uint8)[3 : 3 + 30 * dtype.itemsize // 2].view(np.uint8)
    offset: Any = np.ndarray((15,), dtype, aligned.data)
    offset[:] = values((15,), dtype)
    assert_read(exporter(offset, data=base.ctypes.data, byte_offset=3), offset)


READ: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "null strides": (lambda: values(), {"strides": None}),
    "byte offset": (lambda: values((9, 5))[3:], {"byte_offset": 60, "data": None}),
    "no axes": (lambda: values(()), {}),
    "no axes, null shape and strides": (lambda: values(()), {"shape": None, "strides": None}),
    "empty, null data": (lambda: values((0, 3)), {"data": 0}),
    "empty, data": (lambda: values((0, 3)), {"data": 4096}),
    "empty, strides of nonsense": (lambda: values((0, 3)), {"strides": [2**40, -(2**40)]}),
    "empty, null strides": (lambda: values((3, 0)), {"strides": None}),
    "one element, strides of nonsense": (lambda: values((1, 1)), {"strides": [2**40, -(2**40)]}),
    "side of one, stride of nonsense": (lambda: values((1, 7)), {"strides": [12345, 1]}),
    "repeated rows": (lambda: np.broadcast_to(values((5,)), (4, 5)), {}),
    "repeated number": (lambda: np.broadcast_to(values(()), (4, 5)), {}),
    "negative strides": (lambda: values()[::-1, ::-2], {}),
    "read-only": (lambda: values(), {"flags": READ_ONLY}),
    "copied": (lambda: values(), {"flags": IS_COPIED}),
    "unknown flags": (lambda: values(), {"flags": 1 << 40}),
    "minor version 3": (lambda: values(), {"version": (1, 3)}),
    "minor version unknown": (lambda: values(), {"version": (1, 99)}),
    "device number": (lambda: values(), {"device": (1, 7)}),
    "no deleter": (lambda: values(), {"has_deleter": False}),
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str) -> None:
    make, fields = READ[name]
    array = make()
    if fields.get("data", 0) is None:
        fields = fields | {"data": array.ctypes.data - fields["byte_offset"]}
    source = exporter(array, **fields)
    if fields.get("has_deleter", True):
        assert_read(source, array)
        return
    for norm in NORMS.values():
        assert oracle.same_bits(norm([source]), norm([array]))
    for managed in source.exports:
        managed.close()


def test_as_many_axes_as_numpy_has() -> None:
    axes = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    array = values((2,) + (1,) * (axes - 2) + (3,))
    source = exporter(array)
    result = fastclip.clip_by_norm(source, 0.5)
    assert oracle.same_bits(result, fastclip.clip_by_norm(array, 0.5))
    source.close()


def test_memory_is_shared_and_kept_until_the_end_of_the_call() -> None:
    """The result of the second tensor shows that the first was still there when the last was read."""
    freed_early = []
    array = values((40_000,))

    def freed() -> None:
        array[:] = np.nan

    first = Exporter(lambda: ManagedTensor.over(array, on_delete=freed))

    class Late(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            freed_early.append(any(managed.deletions for managed in first.exports))
            return super().__dlpack__(**options)

    other = values((7,), seed=2)
    late = Late(lambda: ManagedTensor.over(other))
    expected, expected_norm = fastclip.clip_by_global_norm([array.copy(), other], 0.5)
    clipped, norm = fastclip.clip_by_global_norm([first, late], 0.5)
    assert oracle.same_bits(norm, expected_norm)
    assert oracle.same_bits(clipped[0], expected[0])
    assert freed_early == [False]
    assert np.isnan(array).all()
    first.close()
    late.close()


def test_results_do_not_keep_the_exporters_memory() -> None:
    array = values()
    source = exporter(array)
    results = []
    for bound in (0.5, 1e9):
        results.append(fastclip.clip_by_global_norm([source], bound)[0][0])
    gc.collect()
    assert all(managed.deletions == 1 for managed in source.exports)
    array[:] = np.nan
    assert not np.isnan(results[0]).any()
    assert not np.isnan(results[1]).any()
    source.close()


def test_outputs_are_freed_when_the_call_is_done() -> None:
    array = values()
    out = exporter(np.zeros_like(array))
    for clip in CLIPS.values():
        clip([array], out=[out])
        gc.collect()
        assert all(managed.deletions == 1 for managed in out.exports)
        out.close()


def test_deleter_may_call_fastclip() -> None:
    array, norms = values(), []
    source = Exporter(
        lambda: ManagedTensor.over(array, on_delete=lambda: norms.append(fastclip.global_norm([np.ones(4)])))
    )
    assert fastclip.global_norm([source, source]) > 0
    source.close()
    assert norms == [2.0, 2.0]


def test_error_of_a_call_survives_deleters_that_run_code() -> None:
    def fail_quietly() -> None:
        try:
            raise KeyError("in the deleter")
        except KeyError:
            gc.collect()

    array = values()
    source = Exporter(lambda: ManagedTensor.over(array, on_delete=fail_quietly))
    with pytest.raises(TypeError, match=r"t_list\[1\].*int32"):
        fastclip.global_norm([source, np.ones(2, np.int32)])
    with pytest.raises(fastclip.NonFiniteError, match=r"t_list\[1\]"):
        fastclip.clip_by_global_norm([source, np.array([np.nan])], 1.0, on_nonfinite="raise")
    gc.collect()
    source.close()


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "device of CUDA": {"device": CUDA},
    "unknown device": {"device": (99, 0)},
    "device 0": {"device": (0, 0)},
    "negative device": {"device": (-1, 0)},
    "opaque handles": {"dtype": (3, 64)},
    "bool": {"dtype": (6, 8)},
    "float8": {"dtype": (10, 8)},
    "float4": {"dtype": (17, 4)},
    "unknown type code": {"dtype": (200, 32)},
    "float of 128 bits": {"dtype": (2, 128)},
    "float of 24 bits": {"dtype": (2, 24)},
    "float of 8 bits": {"dtype": (2, 8)},
    "float of no bits": {"dtype": (2, 0)},
    "bfloat of 32 bits": {"dtype": (4, 32)},
    "complex of 32 bits": {"dtype": (5, 32)},
    "two lanes": {"lanes": 2},
    "no lanes": {"lanes": 0},
    "65535 lanes": {"lanes": 65535},
    "negative number of axes": {"ndim": -1},
    "least number of axes": {"ndim": -(2**31)},
    "65 axes": {"shape": (1,) * 65, "strides": (1,) * 65},
    "huge number of axes": {"ndim": 2**31 - 1},
    "million axes": {"ndim": 1_000_000},
    "null shape": {"shape": None, "ndim": 2},
    "negative side": {"shape": (-1, 5)},
    "two negative sides": {"shape": (-2, -3)},
    "least side": {"shape": (-(2**63), 1)},
    "elements overflow": {"shape": (2**62, 4), "strides": (0, 0)},
    "bytes overflow": {"shape": (2**62, 1), "strides": (1, 1)},
    "product wraps to zero": {"shape": (2**32, 2**32), "strides": (0, 0)},
    "product wraps to four": {"shape": (2**62 + 1, 4), "strides": (0, 0)},
    "null data": {"data": 0},
    "null data and byte offset": {"data": 0, "byte_offset": 64},
    "address overflows": {"byte_offset": 2**64 - 1},
    "extent overflows": {"strides": (2**62, 2**62)},
    "extent overflows downwards": {"strides": (-(2**62), -(2**62))},
    "stride overflows": {"strides": (2**63 - 1, 1)},
    "least stride": {"strides": (-(2**63), 1)},
    "extent passes address zero": {"strides": (-(2**58), 1)},
    "major version 2": {"version": (2, 0)},
    "huge version": {"version": (2**32 - 1, 2**32 - 1)},
    "name of something else": {"name": b"numpy array"},
    "name of a taken capsule": {"name": b"used_dltensor_versioned"},
    "name of a taken capsule of 0.x": {"name": b"used_dltensor"},
    "name in capitals": {"name": b"DLTENSOR_VERSIONED"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fields = REFUSED[name]
    if fields.get("name", b"").startswith(b"used_"):
        # Whoever has taken such a capsule frees it.
        fields = fields | {"has_deleter": False}
    assert_refused(exporter(values(), **fields))


@pytest.mark.parametrize(
    "name", [n for n in REFUSED if not n.startswith(("name", "major version", "huge version"))]
)
def test_refused_of_version_0(name: str) -> None:
    assert_refused(exporter(values(), UnversionedExporter, **(REFUSED[name] | {"version": None})))


def test_message_of_a_refused_device_names_it() -> None:
    for device, name in (
        (CUDA, "(?i)cuda"),
        ((8, 0), "(?i)metal"),
        ((14, 1), "(?i)oneapi|sycl|14"),
        ((99, 0), "99"),
    ):
        source = exporter(values(), device=device)
        source.device = device
        with pytest.raises(TypeError, match=name):
            fastclip.global_norm([source])
        source.close()


def test_message_of_a_refused_dtype_names_the_argument() -> None:
    for fields in ({"dtype": (6, 8)}, {"lanes": 4}, {"dtype": (10, 8)}):
        source = exporter(values(), **fields)
        with pytest.raises(TypeError, match=r"t_list\[0\]"):
            fastclip.global_norm([source])
        source.close()


def test_same_capsule_twice_is_refused_and_freed_once() -> None:
    array = values()

    class Once(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            return self.exports[0].capsule if self.exports else super().__dlpack__(**options)

    for calls in (2, 5):
        source = Once(lambda: ManagedTensor.over(array))
        with pytest.raises(REFUSALS, match=r"t_list\[1\]"):
            fastclip.global_norm([source] * calls)
        source.close()
    # A capsule that an earlier call has taken, too.
    source = Once(lambda: ManagedTensor.over(array))
    assert fastclip.global_norm([source]) == fastclip.global_norm([array])
    with pytest.raises(REFUSALS, match=r"t_list\[0\]"):
        fastclip.global_norm([source])
    source.close()


def test_thousands_of_exporters() -> None:
    arrays = [values((n % 9,), seed=n) for n in range(3000)]
    sources = [exporter(array) for array in arrays]
    clipped, norm = fastclip.clip_by_global_norm(sources, 0.5)
    expected, expected_norm = fastclip.clip_by_global_norm(arrays, 0.5)
    assert oracle.same_bits(norm, expected_norm)
    assert all(oracle.same_bits(a, b) for a, b in zip(clipped, expected, strict=True))
    for source in sources:
        source.close()
    sources[-1] = exporter(arrays[-1], dtype=(6, 8))
    with pytest.raises(TypeError, match=r"t_list\[2999\]"):
        fastclip.global_norm(sources)
    for source in sources:
        source.close()
