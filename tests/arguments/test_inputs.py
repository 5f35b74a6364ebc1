"""Arguments accepted as arrays, and errors for those that are refused."""

from __future__ import annotations

import array as stdlib_array
import re
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.dtypes import BFLOAT16, FLOAT_DTYPES, INTEGER_DTYPES, dtype_id
from support.strategies import LAYOUTS, finite_values, laid_out

SINGLE: dict[str, Any] = {
    "clip_by_value": lambda t: fastclip.clip_by_value(t, -0.5, 0.5),
    "clip_by_norm": lambda t: fastclip.clip_by_norm(t, 0.5),
    "clip_by_norm(axes)": lambda t: fastclip.clip_by_norm(t, 0.5, axes=0),
    "clip_by_average_norm": lambda t: fastclip.clip_by_average_norm(t, 0.01),
}
LISTED: dict[str, Any] = {
    "clip_by_global_norm": lambda t: fastclip.clip_by_global_norm(t, 0.5)[0],
    "clip_by_global_norm(use_norm)": lambda t: fastclip.clip_by_global_norm(t, 0.5, 3.0)[0],
    "clip_by_block_rms": lambda t: fastclip.clip_by_block_rms(t, 0.01),
    "global_norm": fastclip.global_norm,
    "tensor_norms": fastclip.tensor_norms,
}
EVERY_SINGLE = pytest.mark.parametrize("call", SINGLE.values(), ids=SINGLE.keys())
EVERY_LISTED = pytest.mark.parametrize("call", LISTED.values(), ids=LISTED.keys())
EVERY_NATIVE = pytest.mark.parametrize("dtype", [d for d in FLOAT_DTYPES if d != BFLOAT16], ids=dtype_id)


def assert_same_results(call: Any, value: Any, plain: Any) -> None:
    """Checks that the result for ``value`` has the bits of that for the native array ``plain``."""
    got, expected = call(value), call(plain)
    if not isinstance(expected, list):
        got, expected = [got], [expected]
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        native = a.astype(a.dtype.newbyteorder("="))
        assert oracle.same_bits(native, b)


# --- accepted -----------------------------------------------------------------------------------


@EVERY_SINGLE
@EVERY_NATIVE
def test_other_byte_order(call: Any, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c" and call is SINGLE["clip_by_value"]:
        pytest.skip("complex numbers have no order")
    plain = finite_values(np.random.default_rng(1), (6, 7), dtype)
    swapped = plain.astype(dtype.newbyteorder())
    assert not swapped.dtype.isnative
    before = swapped.tobytes()
    assert_same_results(call, swapped, plain)
    assert_same_results(call, swapped[::-1, ::2], plain[::-1, ::2])
    assert swapped.tobytes() == before


@EVERY_LISTED
@EVERY_NATIVE
def test_other_byte_order_in_a_list(call: Any, dtype: np.dtype[Any]) -> None:
    plain = finite_values(np.random.default_rng(2), (301,), dtype)
    swapped = plain.astype(dtype.newbyteorder())
    assert_same_results(call, [plain, swapped], [plain, plain])


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=dtype_id)
def test_integers_of_other_byte_order(dtype: np.dtype[Any]) -> None:
    plain = np.arange(50, dtype=dtype)
    swapped = plain.astype(dtype.newbyteorder())
    got = np.asarray(fastclip.clip_by_value(swapped, 3, 9))
    np.testing.assert_array_equal(got, np.clip(plain, 3, 9))


@EVERY_SINGLE
@pytest.mark.parametrize(
    "value",
    [[3.0, -4.0], (3.0, -4.0), [[3.0], [-4.0]], [np.float32(3), np.float32(4)], [3, 4.5]],
    ids=repr,
)
def test_lists_are_converted_like_numpy_does(call: Any, value: Any) -> None:
    assert_same_results(call, value, np.asarray(value))


@pytest.mark.parametrize("call", [SINGLE["clip_by_value"], SINGLE["clip_by_norm"]])
@pytest.mark.parametrize("value", [3.0, np.float32(3), np.float64(-3), np.float16(3)], ids=repr)
def test_scalars(call: Any, value: Any) -> None:
    assert_same_results(call, value, np.asarray(value))


@pytest.mark.parametrize("value", [3 + 4j, np.complex64(3 + 4j)], ids=repr)
def test_complex_scalars(value: Any) -> None:
    assert complex(np.asarray(fastclip.clip_by_norm(value, 2.5))) == 1.5 + 2j


@EVERY_SINGLE
@pytest.mark.parametrize("code", ["f", "d"])
def test_standard_library_arrays_and_memoryviews(call: Any, code: str) -> None:
    value = stdlib_array.array(code, [3.0, -4.0, 0.5])
    plain = np.array([3.0, -4.0, 0.5], code)
    assert_same_results(call, value, plain)
    assert_same_results(call, memoryview(value), plain)
    assert_same_results(call, memoryview(value)[::2], plain[::2])


@EVERY_LISTED
def test_standard_library_arrays_and_memoryviews_in_a_list(call: Any) -> None:
    value = stdlib_array.array("f", [3.0, -4.0, 0.5])
    plain = np.array([3.0, -4.0, 0.5], np.float32)
    assert_same_results(call, [value, memoryview(value)], [plain, plain])


def test_half_precision_memoryview() -> None:
    plain = np.array([3.0, 4.0], np.float16)
    view: Any = memoryview(plain)  # type: ignore[arg-type]
    assert_same_results(SINGLE["clip_by_norm"], view, plain)


@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_standard_library_arrays_of_integers(code: str) -> None:
    value = stdlib_array.array(code, [1, 5, 9])
    np.testing.assert_array_equal(fastclip.clip_by_value(value, 2, 6), [2, 5, 6])


def test_standard_library_arrays_are_written_in_place() -> None:
    value = stdlib_array.array("f", [3.0, 4.0])
    assert fastclip.clip_by_norm(value, 2.5, out=value) is value
    assert value.tolist() == [1.5, 2.0]
    view = memoryview(value)
    fastclip.clip_by_global_norm([view], 1.25, out=[view])
    assert value.tolist() == [0.75, 1.0]


def test_read_only_buffers_are_read_and_not_written() -> None:
    value = memoryview(np.array([3, 4], np.float32).tobytes()).cast("f")
    assert value.readonly
    np.testing.assert_array_equal(fastclip.clip_by_norm(value, 2.5), np.array([1.5, 2], "f4"))
    with pytest.raises(ValueError, match="out"):
        fastclip.clip_by_norm(value, 2.5, out=value)


def test_read_only_arrays_are_read() -> None:
    value = np.array([3.0, 4.0])
    value.flags.writeable = False
    got = np.asarray(fastclip.clip_by_norm(value, 2.5))
    np.testing.assert_array_equal(got, [1.5, 2])
    assert got.flags.writeable


class Exporter:
    """An object that exports its memory through DLPack alone."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.array.__dlpack_device__()
        return device


def test_dlpack_exporters_are_read() -> None:
    plain = np.array([[3, 4], [0, 0]], np.float32)
    assert_same_results(SINGLE["clip_by_norm"], Exporter(plain), plain)
    assert fastclip.global_norm([Exporter(plain), np.array([12], "f4")]) == 13


class ArrayLike:
    """An object with `__array__`."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array([3.0, 4.0], dtype)


def test_array_protocol_is_read() -> None:
    np.testing.assert_array_equal(fastclip.clip_by_norm(ArrayLike(), 2.5), [1.5, 2])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_without_change(dtype: np.dtype[Any], layout: str) -> None:
    values = finite_values(np.random.default_rng(3), (5, 6, 7), dtype)
    array = laid_out(values, layout)
    before = array.copy()
    got = fastclip.clip_by_norm(array, 0.5)
    oracle.assert_clipped([got], [before], oracle.norm([before]), 0.5)
    assert oracle.same_bits(array, before)


@pytest.mark.parametrize("dimensions", [0, 1, 5, 8, 16, 32, 33, 64])
def test_many_dimensions(dimensions: int) -> None:
    if dimensions > 32 and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("this NumPy stops at 32")
    shape = [1] * dimensions
    if dimensions:
        shape[0] = shape[-1] = 2
    array = np.ones(shape, np.float32)
    got = np.asarray(fastclip.clip_by_norm(array, 0.5))
    assert got.shape == tuple(shape)
    np.testing.assert_allclose(got, 0.5 / np.sqrt(array.size), rtol=1e-6)
    assert fastclip.global_norm([array.T]) == np.float32(np.sqrt(array.size))


def test_subclasses_of_ndarray() -> None:
    class Tagged(np.ndarray[Any, Any]):
        pass

    array = np.array([3.0, 4.0]).view(Tagged)
    np.testing.assert_array_equal(np.asarray(fastclip.clip_by_norm(array, 2.5)), [1.5, 2])


# --- refused ------------------------------------------------------------------------------------

REFUSED: list[Any] = [
    np.ma.masked_array([[1.0, 2.0]], [[True, False]]),
    np.ma.masked_array([[1.0, 2.0]]),
    np.array([[1.0, None]], object),
    np.array([["a", "b"]]),
    np.array([[b"a", b"b"]]),
    np.array([["2020-01-01", "2020-01-02"]], "datetime64[D]"),
    np.array([[1, 2]], "timedelta64[s]"),
    np.zeros((1, 2), [("a", "f4"), ("b", "f4")]),
    np.zeros((1, 2), "V4"),
    np.array([[True, False]]),
]
if np.dtype(np.longdouble) != np.dtype(np.float64):
    REFUSED += [np.ones((1, 2), np.longdouble), np.ones((1, 2), np.clongdouble)]
REFUSED_IDS = [f"{type(x).__name__}-{x.dtype}" for x in REFUSED]

INTEGERS = [np.ones((1, 2), dtype) for dtype in INTEGER_DTYPES]
INTEGER_IDS = [str(dtype) for dtype in INTEGER_DTYPES]


def mentions_dtype(array: Any) -> str:
    """Returns a pattern that matches the name of the dtype, or for a masked array that of its type."""
    if isinstance(array, np.ma.MaskedArray):
        return "(?i)masked"
    return f"{re.escape(str(array.dtype))}|{re.escape(array.dtype.name)}"


@EVERY_SINGLE
@pytest.mark.parametrize("wrong", REFUSED, ids=REFUSED_IDS)
def test_error_has_the_argument_the_dtype_and_the_shape(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"\bt\b") as caught:
        call(wrong)
    assert re.search(mentions_dtype(wrong), str(caught.value))
    assert "(1, 2)" in str(caught.value)


@EVERY_LISTED
@pytest.mark.parametrize("wrong", REFUSED, ids=REFUSED_IDS)
def test_error_for_an_entry_has_its_position_the_dtype_and_the_shape(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"t_list\[1\]") as caught:
        call([np.ones(2), wrong])
    assert re.search(mentions_dtype(wrong), str(caught.value))
    assert "(1, 2)" in str(caught.value)
    with pytest.raises(TypeError, match=r"t_list\['w'\]\[0\]"):
        call({"b": np.ones(2), "w": [wrong]})


@pytest.mark.parametrize("wrong", INTEGERS, ids=INTEGER_IDS)
def test_integers_have_no_norm(wrong: Any) -> None:
    for name, call in SINGLE.items():
        if name != "clip_by_value":
            with pytest.raises(TypeError, match=wrong.dtype.name) as caught:
                call(wrong)
            assert "(1, 2)" in str(caught.value)
    for call in LISTED.values():
        with pytest.raises(TypeError, match=r"t_list\[2\]") as caught:
            call([np.ones(2), None, wrong])
        assert wrong.dtype.name in str(caught.value)
        assert "(1, 2)" in str(caught.value)


@pytest.mark.parametrize("wrong", [[1, 2], 3, (1,), [True], True], ids=repr)
def test_lists_of_python_integers_have_no_norm(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"\bt\b"):
        fastclip.clip_by_norm(wrong, 1.0)
    with pytest.raises(TypeError, match=r"t_list\[0\]"):
        fastclip.global_norm([wrong])


@pytest.mark.parametrize("wrong", ["abc", ["a"], None, object(), {"a": 1.0}, b"abc"], ids=repr)
@EVERY_SINGLE
def test_argument_that_is_no_array_is_a_type_error(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"\bt\b"):
        call(wrong)


@EVERY_SINGLE
def test_ragged_lists(call: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        call([[1.0], [1.0, 2.0]])


def test_message_lists_the_accepted_dtypes() -> None:
    with pytest.raises(TypeError, match="float32"):
        fastclip.global_norm([np.ones(2, np.int8)])
