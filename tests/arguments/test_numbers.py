"""Values accepted or refused as numbers, for every argument that is a number."""

from __future__ import annotations

from collections import UserString
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastclip
from fastclip import Variable, train
from support import oracle

W = np.float32([3.0, 4.0])


def optimizer(**arguments: Any) -> None:
    """Constructs an optimizer and takes a step, which reads callable hyper-parameters."""
    descent = train.GradientDescentOptimizer(**{"learning_rate": 0.1, **arguments})
    descent.apply_gradients([(W.copy(), W.copy())])


#: The name of an argument, and a call with a value for it.
ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "clip_by_global_norm(clip_norm)": ("clip_norm", lambda x: fastclip.clip_by_global_norm([W], x)),
    "clip_by_global_norm(use_norm)": ("use_norm", lambda x: fastclip.clip_by_global_norm([W], 1.0, x)),
    "clip_by_global_norm(ord)": ("ord", lambda x: fastclip.clip_by_global_norm([W], 1.0, ord=x)),
    "clip_by_norm(clip_norm)": ("clip_norm", lambda x: fastclip.clip_by_norm(W, x)),
    "clip_by_norm(clip_norm, out)": ("clip_norm", lambda x: fastclip.clip_by_norm(W, x, out=W.copy())),
    "clip_by_norm(clip_norm, axes)": ("clip_norm", lambda x: fastclip.clip_by_norm(W, x, axes=[0])),
    "clip_by_norm(ord)": ("ord", lambda x: fastclip.clip_by_norm(W, 1.0, ord=x)),
    "clip_by_average_norm(clip_norm)": ("clip_norm", lambda x: fastclip.clip_by_average_norm(W, x)),
    "clip_by_block_rms(threshold)": ("threshold", lambda x: fastclip.clip_by_block_rms([W], x)),
    "adaptive_clip(clipping)": ("clipping", lambda x: fastclip.adaptive_clip([W], [W], x)),
    "adaptive_clip(eps)": ("eps", lambda x: fastclip.adaptive_clip([W], [W], 0.1, x)),
    "global_norm(ord)": ("ord", lambda x: fastclip.global_norm([W], ord=x)),
    "tensor_norms(ord)": ("ord", lambda x: fastclip.tensor_norms([W], ord=x)),
    "clipvalue": ("clipvalue", lambda x: optimizer(clipvalue=x)),
    "clipnorm": ("clipnorm", lambda x: optimizer(clipnorm=x)),
    "global_clipnorm": ("global_clipnorm", lambda x: optimizer(global_clipnorm=x)),
    "loss_scale": ("loss_scale", lambda x: optimizer(loss_scale=x)),
    "loss_scale, called": ("loss_scale", lambda x: optimizer(loss_scale=lambda: x)),
    "learning_rate": ("learning_rate", lambda x: optimizer(learning_rate=x)),
    "learning_rate, called": ("learning_rate", lambda x: optimizer(learning_rate=lambda: x)),
    "initial_accumulator_value": (
        "initial_accumulator_value",
        lambda x: train.AdagradOptimizer(0.1, initial_accumulator_value=x),
    ),
}
EVERY_ARGUMENT = pytest.mark.parametrize(("name", "call"), ARGUMENTS.values(), ids=ARGUMENTS.keys())


#: Calls whose argument may be an array too.
BOUNDS_OF_SLICES = [call for key, (_, call) in ARGUMENTS.items() if key.startswith("clip_by_norm(clip_norm")]


class Subclass(np.ndarray[Any, Any]):
    """A subclass of ndarray."""


class Tensor:
    """A framework's tensor, whose dtype is none of NumPy's."""

    def __init__(self, value: float, dtype: str, shape: tuple[int, ...] = ()) -> None:
        self.value, self.dtype, self.shape = value, dtype, shape

    def __float__(self) -> float:
        return self.value


class Indexed:
    def __index__(self) -> int:
        return 2


NO_NUMBERS: dict[str, Any] = {
    "bool": True,
    "np.bool_": np.True_,
    "str": "2",
    "np.str_": np.str_("2"),
    "UserString": UserString("2"),
    "bytes": b"2",
    "np.bytes_": np.bytes_(b"2"),
    "bytearray": bytearray(b"2"),
    "memoryview": memoryview(b"2"),
    "complex": 2 + 0j,
    "complex64": np.complex64(2),
    "complex128": np.complex128(2),
    "array of bool": np.array(True),
    "array of str": np.array("2"),
    "array of bytes": np.array(b"2"),
    "array of complex": np.array(2 + 0j),
    "array of objects": np.array(2.0, object),
    "array of a timedelta": np.array(2, "m8[s]"),
    "timedelta": np.timedelta64(2, "s"),
    "array of float8": np.array(2, ml_dtypes.float8_e4m3fn).view("V1"),
    "void": np.zeros((), "V4")[()],
    "subclass of arrays, of bool": np.array(True).view(Subclass),
    "subclass of arrays, of complex": np.array(2 + 0j).view(Subclass),
    "masked constant": np.ma.masked,
    "masked array": np.ma.array(2.0),
    "tensor of bool": Tensor(2.0, "torch.bool"),
    "tensor of complex": Tensor(2.0, "torch.complex64"),
    "object": object(),
}

NUMBERS: dict[str, Any] = {
    "int": 2,
    "float": 2.0,
    "int8": np.int8(2),
    "uint64": np.uint64(2),
    "float16": np.float16(2),
    "float32": np.float32(2),
    "float64": np.float64(2),
    "longdouble": np.longdouble(2),
    "bfloat16": ml_dtypes.bfloat16(2),
    "array of int": np.array(2),
    "array of float": np.array(2.0),
    "array of float32 in another byte order": np.array(2, ">f4"),
    "array of bfloat16": np.array(2, ml_dtypes.bfloat16),
    "subclass of arrays": np.array(2.0).view(Subclass),
    "Fraction": Fraction(2),
    "Decimal": Decimal(2),
    "Variable": Variable(2.0),
    "object with __index__": Indexed(),
    "tensor of float": Tensor(2.0, "torch.float32"),
    "tensor of int": Tensor(2.0, "<dtype: 'int64'>"),
}


@EVERY_ARGUMENT
@pytest.mark.parametrize("wrong", NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
def test_value_that_is_no_number_is_a_type_error_that_names_the_argument(
    name: str, call: Callable[[Any], Any], wrong: Any
) -> None:
    if isinstance(wrong, (bytearray, memoryview)) and call in BOUNDS_OF_SLICES:
        pytest.skip("a buffer is an array")
    with pytest.raises(TypeError, match=rf"^{name} is "):
        call(wrong)


@pytest.mark.parametrize("kind", ["bool", "np.bool_", "str", "bytes", "complex", "complex64", "array of str"])
def test_message_has_the_value(kind: str) -> None:
    for name, call in (ARGUMENTS[key] for key in ("clip_by_global_norm(use_norm)", "learning_rate")):
        with pytest.raises(TypeError) as raised:
            call(NO_NUMBERS[kind])
        assert str(raised.value) == f"{name} is {NO_NUMBERS[kind]!r}; it takes a number"


@EVERY_ARGUMENT
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
def test_every_kind_of_number_is_accepted(name: str, call: Callable[[Any], Any], number: Any) -> None:
    got, expected = call(number), call(2.0)
    if name == "use_norm":
        assert got[1] is number
        got, expected = got[0], expected[0]
    if isinstance(got, (tuple, list)):
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_array_equal(x, y)
    elif expected is not None and isinstance(expected, (np.ndarray, np.generic)):
        np.testing.assert_array_equal(got, expected)


@EVERY_ARGUMENT
@pytest.mark.parametrize(
    "wrong", [Tensor(2.0, "torch.float32", (1,)), np.ones((1, 1, 1))], ids=["tensor", "array"]
)
def test_number_with_dimensions_is_an_error(name: str, call: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{name} "):
        call(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([True, False]),
        np.array([1 + 0j, 2]),
        np.array(["1", "2"]),
        np.array([b"1", b"2"]),
        np.array([1, 2], object),
        np.zeros(2, "V4"),
        np.ma.array([1.0, 2.0]),
        [True, False],
        ["1", "2"],
        [1j, 2.0],
    ],
    ids=repr,
)
def test_array_of_bounds_of_another_dtype_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^clip_norm is "):
        fastclip.clip_by_norm(np.ones((2, 2)), wrong, axes=[0])


@pytest.mark.parametrize("bound", [Fraction(5, 2), np.float16(2.5), Decimal("2.5")], ids=repr)
def test_bounds_of_slices_may_be_any_number(bound: Any) -> None:
    t = np.array([[3.0, 4.0], [0.3, 0.4]])
    got = fastclip.clip_by_norm(t, bound, axes=[1], out=np.empty_like(t))
    assert oracle.same_bits(got, fastclip.clip_by_norm(t, 2.5, axes=[1]))


@pytest.mark.parametrize(
    "wrong", [True, np.True_, 1j, np.complex64(1), "1", b"1", np.zeros((), "V4")], ids=repr
)
@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_bound_of_clip_by_value_that_is_no_number_is_a_type_error(wrong: Any, dtype: str) -> None:
    with pytest.raises(TypeError, match=r"^clip_value_max is "):
        fastclip.clip_by_value(np.ones(2, dtype), 0, wrong)


def test_number_above_float64_is_a_value_error_that_names_the_argument() -> None:
    for name, call in ARGUMENTS.values():
        with pytest.raises(ValueError, match=rf"^{name} is beyond float64"):
            call(10**400)


def test_numbers_are_checked_while_autograd_traces() -> None:
    autograd = pytest.importorskip("autograd")
    anp = pytest.importorskip("autograd.numpy")

    def gradient(bound: Any) -> Any:
        return autograd.grad(lambda x: anp.sum(fastclip.clip_by_global_norm([x], bound)[0][0]))(np.ones(3))

    np.testing.assert_array_equal(gradient(Fraction(1, 2)), gradient(0.5))
    for wrong in (True, np.True_, 1j, np.array("2"), b"2"):
        with pytest.raises(TypeError, match=r"clip_norm|a bound"):
            gradient(wrong)


@pytest.mark.interop("torch")
@EVERY_ARGUMENT
def test_torch_tensors_without_dimensions_are_numbers(name: str, call: Callable[[Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    for number in (torch.tensor(2.0), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16)):
        call(number)
    for wrong in (torch.tensor(True), torch.tensor(2.0 + 0j)):
        with pytest.raises(TypeError, match=rf"^{name} is "):
            call(wrong)
    with pytest.raises((TypeError, ValueError), match=rf"^{name} (is|has shape) "):
        call(torch.full((2, 3, 5, 7), 2.0))
