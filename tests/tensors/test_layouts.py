"""torch tensors of every dtype and layout: the bits of the call on an array, in the tensor's memory order."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.attempts import attempt
from support.clip_calls import EVERY_NORM, NORMS, clips_for
from support.dtypes import COMPLEX_DTYPES, EVERY_FLOAT, EVERY_INTEGER
from support.strategies import finite_values
from support.tensor_kinds import from_torch, to_torch

pytestmark = [pytest.mark.interop("torch"), pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")

#: Layouts of the values of a tensor of shape (4, 3, 6), as functions of a contiguous tensor.
DENSE: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2),
    "permuted": lambda t: t.permute(1, 2, 0),
    "viewed": lambda t: t.view(6, 12),
    "flat": lambda t: t.flatten(),
    "offset": lambda t: torch.cat([t.flatten()[:5], t.flatten()])[5:].view(t.shape),
    "unsqueezed": lambda t: t.unsqueeze(1).unsqueeze(-1),
    "five axes": lambda t: t.view(2, 2, 3, 2, 3),
    "five axes, channels last": lambda t: t.view(2, 2, 3, 2, 3).contiguous(
        memory_format=torch.channels_last_3d
    ),
    "channels last": lambda t: t.view(4, 3, 2, 3).contiguous(memory_format=torch.channels_last),
    "no axes": lambda t: t[1, 2, 3],
    "no axes, of its own": lambda t: t[1, 2, 3].clone(),
    "one element": lambda t: t[1:2, 2, 3],
    "empty": lambda t: t[:0],
    "empty inside": lambda t: t[:, 1:1],
}
SPARSE_IN_MEMORY: dict[str, Callable[[Any], Any]] = {
    "sliced": lambda t: t[::2, :, 1::2],
    "a column": lambda t: t[:, 1, 2],
    "a row of columns": lambda t: t[1:3, :, 5],
    "transposed slice": lambda t: t[:, :, 1:4].transpose(0, 1),
    "diagonal": lambda t: t.diagonal(dim1=0, dim2=2),
}
OVERLAPPING: dict[str, Callable[[Any], Any]] = {
    "expanded": lambda t: t[:, :1, :].expand(4, 3, 6),
    "expanded number": lambda t: t[0, 0, 0].expand(4, 3, 6),
    "windows": lambda t: t.flatten().unfold(0, 5, 2),
    "broadcast in front": lambda t: t.expand(2, 4, 3, 6),
}
LAYOUTS = DENSE | SPARSE_IN_MEMORY | OVERLAPPING
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def values(dtype: Any, seed: int = 1, shape: tuple[int, ...] = (4, 3, 6)) -> Any:
    if np.dtype(dtype).kind in "iu":
        return np.random.default_rng(seed).integers(0, 100, shape, dtype)
    return finite_values(np.random.default_rng(seed), shape, dtype)


def laid_out(dtype: Any, layout: str) -> Any:
    return LAYOUTS[layout](to_torch(values(dtype)))


def strides(tensor: Any) -> list[int]:
    """Returns the strides of the axes along which there are several elements."""
    return [stride for stride, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]


def numpy_strides(array: Any) -> list[int]:
    pairs = zip(array.strides, array.shape, strict=True)
    return [stride // array.itemsize for stride, side in pairs if side > 1]


def assert_same_as_arrays(tensor: Any, dtype: np.dtype[Any]) -> None:
    """Checks every clip function: bits, memory order, a fresh output, and an input that is not changed."""
    array = from_torch(tensor)
    before = array.copy()
    for name, clip in clips_for(dtype):
        (result,), (expected,) = clip([tensor]), clip([array])
        assert type(result) is torch.Tensor, name
        assert result.dtype == tensor.dtype, name
        assert result.shape == tensor.shape, name
        assert oracle.same_bits(from_torch(result), expected), name
        if tensor.numel():
            assert strides(result) == numpy_strides(expected), name
        assert (
            result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not tensor.numel()
        )
        assert oracle.same_bits(from_torch(tensor), before), name


@EVERY_FLOAT
@EVERY_LAYOUT
def test_floats_and_complex_numbers(dtype: np.dtype[Any], layout: str) -> None:
    assert_same_as_arrays(laid_out(dtype, layout), dtype)


@EVERY_INTEGER
@EVERY_LAYOUT
def test_integers(dtype: np.dtype[Any], layout: str) -> None:
    assert_same_as_arrays(laid_out(dtype, layout), dtype)


@EVERY_FLOAT
@EVERY_NORM
def test_norms_of_every_layout(dtype: np.dtype[Any], norm: Callable[[Any], Any]) -> None:
    tensors = [laid_out(dtype, layout) for layout in LAYOUTS]
    arrays = [from_torch(tensor) for tensor in tensors]
    for tensor, array in zip(tensors, arrays, strict=True):
        assert oracle.same_bits(norm([tensor]), norm([array]))
    assert oracle.same_bits(norm(tensors), norm(arrays))


@EVERY_FLOAT
def test_list_of_every_layout(dtype: np.dtype[Any]) -> None:
    tensors = [laid_out(dtype, layout) for layout in LAYOUTS]
    clipped, norm = fastclip.clip_by_global_norm(tensors, 0.5)
    expected, expected_norm = fastclip.clip_by_global_norm([from_torch(t) for t in tensors], 0.5)
    assert oracle.same_bits(norm, expected_norm)
    for result, array in zip(clipped, expected, strict=True):
        assert oracle.same_bits(from_torch(result), array)


@pytest.mark.parametrize("layout", DENSE)
def test_dense_tensors_keep_their_strides(layout: str) -> None:
    tensor = laid_out(np.float32, layout)
    (result,), _ = fastclip.clip_by_global_norm([tensor], 0.5)
    if tensor.numel() > 1:
        assert strides(result) == strides(tensor)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=memory_format):
            assert result.is_contiguous(memory_format=memory_format)


@EVERY_FLOAT
@pytest.mark.parametrize("layout", DENSE | SPARSE_IN_MEMORY)
def test_in_place_in_every_layout(dtype: np.dtype[Any], layout: str) -> None:
    for name, clip in clips_for(dtype):
        memory = to_torch(np.concatenate([values(dtype), values(dtype, seed=2)]))
        tensor, rest = LAYOUTS[layout](memory[:4]), memory[4:].clone()
        whole = from_torch(memory).copy()
        array = from_torch(tensor).copy(order="K")
        (expected,) = clip([array], out=[array])
        (result,) = clip([tensor], out=[tensor])
        assert result is tensor, name
        assert oracle.same_bits(from_torch(tensor), expected), name
        assert torch.equal(memory[4:], rest), name
        if layout in SPARSE_IN_MEMORY:
            changed = from_torch(memory).reshape(-1).view(np.uint8) != whole.reshape(-1).view(np.uint8)
            assert changed.sum() <= tensor.numel() * dtype.itemsize, name


@pytest.mark.parametrize("layout", ["expanded", "expanded number", "windows", "broadcast in front"])
def test_outputs_whose_elements_share_memory_are_refused(layout: str) -> None:
    tensor = laid_out(np.float32, layout)
    before = tensor.clone()
    with pytest.raises(ValueError, match=r"out\[0\]"):
        fastclip.clip_by_global_norm([tensor], 0.5, out=[tensor])
    with pytest.raises(ValueError, match=r"out\[0\]"):
        fastclip.clip_by_global_norm([before], 0.5, out=[tensor])
    assert torch.equal(tensor, before)


def test_misaligned_tensor() -> None:
    memory = bytearray(4 * 50 + 1)
    array: Any = np.ndarray((50,), np.float32, memory, offset=1)
    array[:] = values(np.float32, shape=(50,))
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() % 4
    assert_same_as_arrays(tensor, np.dtype(np.float32))


@EVERY_FLOAT
def test_tensors_long_enough_for_several_threads(dtype: np.dtype[Any]) -> None:
    array = values(dtype, shape=(700, 1100))
    for tensor in (to_torch(array), to_torch(array).T, to_torch(array)[:, 1:]):
        clipped, norm = fastclip.clip_by_global_norm([tensor], 0.5)
        expected, expected_norm = fastclip.clip_by_global_norm([from_torch(tensor)], 0.5)
        assert oracle.same_bits(norm, expected_norm)
        assert oracle.same_bits(from_torch(clipped[0]), expected[0])


# --- leaves of a graph --------------------------------------------------------------------------


@EVERY_FLOAT
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "no axes", "empty"])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_values_of_tensors_that_require_grad(dtype: np.dtype[Any], layout: str, grad_mode: bool) -> None:
    leaf = to_torch(values(dtype)).requires_grad_()
    if grad_mode and dtype.kind == "c":
        for name, clip in clips_for(dtype):
            with pytest.raises(TypeError, match="complex tensors are not differentiated"):
                print(name, clip([LAYOUTS[layout](leaf)]))
        return
    with torch.set_grad_enabled(grad_mode):
        tensor = LAYOUTS[layout](leaf)
        array = from_torch(tensor)
        for name, clip in clips_for(dtype):
            (result,), (expected,) = clip([tensor]), clip([array])
            assert isinstance(result, torch.Tensor), name
            assert oracle.same_bits(from_torch(result), expected), name
            assert grad_mode or not result.requires_grad, name
        for norm in NORMS.values():
            assert oracle.same_bits(norm([tensor]), norm([array]))
            assert type(norm([tensor])) is type(norm([array]))


def test_inference_mode() -> None:
    array = values(np.float32)
    expected = fastclip.clip_by_norm(array, 0.5)
    with torch.inference_mode():
        tensor = to_torch(array.copy()).clone()
        assert oracle.same_bits(from_torch(fastclip.clip_by_norm(tensor, 0.5)), expected)
        assert fastclip.clip_by_norm(tensor, 0.5, out=tensor) is tensor
        assert oracle.same_bits(from_torch(tensor), expected)
    other = to_torch(array.copy())
    assert fastclip.clip_by_norm(other, 0.5, out=other) is other
    # Outside, too, a tensor that was made inside has no version counter to move.
    fastclip.clip_by_norm(tensor, 0.25, out=tensor)
    assert fastclip.global_norm([tensor]) == pytest.approx(0.25, rel=1e-6)


# --- lazy conjugation and negation --------------------------------------------------------------


def lazy_tensors(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Returns tensors whose memory holds the conjugates or the negatives of their elements."""
    z = to_torch(values(dtype))
    tensors = {
        "conjugate": z.conj(),
        "conjugate, transposed": z.conj().transpose(0, 1),
        "conjugate, sliced": z[:, ::2].conj(),
        "negative": z.conj().imag,
        "negative, sliced": z.conj().imag[1:, :, ::3],
        "negative, no axes": z.conj().imag[0, 0, 0],
        "negative, empty": z.conj().imag[:0],
        "negative of complex numbers": torch._neg_view(z),
        "conjugate and negative": torch._neg_view(z).conj(),
    }
    assert all(tensor.is_conj() or tensor.is_neg() for tensor in tensors.values())
    return tensors


EVERY_COMPLEX = pytest.mark.parametrize("dtype", COMPLEX_DTYPES, ids=str)
LAZY = sorted(lazy_tensors(np.dtype(np.complex64)))
EVERY_LAZY = pytest.mark.parametrize("name", LAZY)


@EVERY_COMPLEX
@EVERY_LAZY
def test_lazy_tensors_are_read_as_what_they_stand_for(dtype: np.dtype[Any], name: str) -> None:
    tensor = lazy_tensors(dtype)[name]
    array = from_torch(tensor)
    before = array.copy()
    for clip_name, clip in clips_for(array.dtype):
        (result,), (expected,) = clip([tensor]), clip([array])
        assert type(result) is torch.Tensor
        np.testing.assert_array_equal(from_torch(result), expected, err_msg=clip_name)
        assert oracle.same_bits(from_torch(result), expected), clip_name
        assert oracle.same_bits(from_torch(tensor), before), clip_name
    for norm in NORMS.values():
        assert oracle.same_bits(norm([tensor]), norm([array]))


@EVERY_COMPLEX
@EVERY_LAZY
def test_unclipped_lazy_tensors_have_the_same_bits(dtype: np.dtype[Any], name: str) -> None:
    tensor = lazy_tensors(dtype)[name]
    (result,), _ = fastclip.clip_by_global_norm([tensor], 1e300)
    assert oracle.same_bits(from_torch(result), from_torch(tensor))


@EVERY_COMPLEX
@EVERY_LAZY
def test_lazy_outputs_are_right_or_refused(dtype: np.dtype[Any], name: str) -> None:
    array = from_torch(lazy_tensors(dtype)[name]).copy()
    for in_place in (True, False):
        for clip_name, clip in clips_for(array.dtype):
            tensor = lazy_tensors(dtype)[name]
            before = from_torch(tensor).copy()
            (expected,) = clip([array])
            source = tensor if in_place else array.copy()
            returned, refusal = attempt(lambda: clip([source], out=[tensor]), TypeError)  # noqa: B023
            if refusal is not None:
                assert re.search(r"\b(t|t_list|grads|out)\b", refusal), clip_name
                assert oracle.same_bits(from_torch(tensor), before), clip_name
            else:
                assert returned[0] is tensor
                assert oracle.same_bits(from_torch(tensor), expected), clip_name


def test_lazy_bounds() -> None:
    z = to_torch(np.array([1 - 0.5j, 1 - 0.25j, 1 - 1j], np.complex64))
    array = np.array([[3, -3, 0.125], [0.5, 2, 0.75]], np.float32)
    expected = np.minimum(array, np.array([0.5, 0.25, 1], "f4"))
    np.testing.assert_array_equal(fastclip.clip_by_value(array, -9.0, z.conj().imag), expected)
