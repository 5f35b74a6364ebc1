"""Tensors of the frameworks that have no plain memory on the CPU are a TypeError that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.clip_calls import CLIPS, NORMS
from support.tensor_kinds import from_torch, to_torch

pytestmark = pytest.mark.filterwarnings("ignore")


def assert_readable(message: str, place: str) -> None:
    """Checks a message: it names the argument, is one short paragraph, and holds no trace of C++."""
    assert place in message
    assert len(message) < 600, message
    assert not re.search(
        r"\.cpp|\.h:\d|Exception raised from|frame #|0x[0-9a-f]{8}|C\+\+|Traceback", message
    ), message


def assert_refused(tensor: Any, match: str) -> None:
    """Checks that every function refuses a tensor as an input and as an output, and writes nothing."""
    good = np.ones((2, 3), np.float32)
    for name, clip in CLIPS.items():
        for tensors, out in (([tensor], None), ([good], [tensor]), ([tensor], [tensor])):
            with pytest.raises(TypeError, match=match) as caught:
                clip(tensors, out=out) if out else clip(tensors)
            place = "out" if tensors[0] is good else ("grads" if name == "adaptive_clip" else "t")
            assert_readable(str(caught.value), place if out is None or tensors[0] is good else "")
    for norm in NORMS.values():
        with pytest.raises(TypeError, match=match) as caught:
            norm([good, tensor])
        assert_readable(str(caught.value), "t_list[1]")
    with pytest.raises(TypeError, match=match) as caught:
        fastclip.clip_by_global_norm({"w": [good], "b": tensor}, 0.5, out={"w": [good], "b": np.ones(2)})
    assert_readable(str(caught.value), "t_list['b']")
    with pytest.raises(TypeError, match=match) as caught:
        fastclip.clip_by_global_norm([good, good * 2], 0.5, out=[good, tensor])
    assert_readable(str(caught.value), "out[1]")
    np.testing.assert_array_equal(good, np.ones((2, 3), np.float32))


# --- torch --------------------------------------------------------------------------------------


def _fake() -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return _torch().ones(2, 3)


def _freed() -> Any:
    tensor = _torch().ones(2, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


def _masked() -> Any:
    from torch.masked import masked_tensor

    tensor = _torch().ones(2, 3)
    return masked_tensor(tensor, tensor > 0)


def _wrapper_subclass() -> Any:
    """Returns a tensor without memory of its own, as DTensor is: a wrapper around another."""
    torch = _torch()

    class Wrapper(torch.Tensor):  # type: ignore[misc, name-defined]
        @staticmethod
        def __new__(cls: Any, inner: Any) -> Any:
            made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            made.inner = inner
            return made

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
            return func(*unwrapped, **(kwargs or {}))

    return Wrapper(torch.ones(2, 3))


def _torch() -> Any:
    import torch

    return torch


#: Each makes a tensor that has no plain memory; the pattern is what the message has to say.
WITHOUT_PLAIN_MEMORY: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: _torch().ones(2, 3, device="meta"), "meta"),
    "fake": (_fake, r"\b(t|t_list|grads|out)\b"),
    "freed storage": (_freed, r"\b(t|t_list|grads|out)\b"),
    "zero tensor": (lambda: _torch()._efficientzerotensor((2, 3)), r"\b(t|t_list|grads|out)\b"),
    "masked": (_masked, r"\b(t|t_list|grads|out)\b"),
    "wrapper": (_wrapper_subclass, r"\b(t|t_list|grads|out)\b"),
    "nested": (
        lambda: _torch().nested.nested_tensor([_torch().ones(2), _torch().ones(3)]),
        r"\b(t|t_list|grads|out)\b",
    ),
    "nested, jagged": (
        lambda: _torch().nested.nested_tensor([_torch().ones(2), _torch().ones(3)], layout=_torch().jagged),
        r"\b(t|t_list|grads|out)\b",
    ),
    "quantized": (
        lambda: _torch().quantize_per_tensor(_torch().ones(2, 3), 0.1, 0, _torch().qint8),
        "(?i)qint",
    ),
    "sparse rows": (lambda: _torch().ones(2, 3).to_sparse_csr(), "(?i)sparse_csr"),
    "sparse columns": (lambda: _torch().ones(2, 3).to_sparse_csc(), "(?i)sparse_csc"),
    "sparse blocks": (lambda: _torch().ones(2, 4).to_sparse_bsr((2, 2)), "(?i)sparse_bsr"),
    "mkldnn": (lambda: _torch().ones(2, 3).to_mkldnn(), "(?i)mkldnn"),
    "bool": (lambda: _torch().ones(2, 3, dtype=_torch().bool), "bool"),
    "float8": (lambda: _torch().ones(2, 3).to(_torch().float8_e4m3fn), "(?i)float8|dtype"),
}


@pytest.mark.interop("torch")
@pytest.mark.parametrize("name", WITHOUT_PLAIN_MEMORY)
def test_torch_tensors_without_plain_memory(name: str) -> None:
    pytest.importorskip("torch")
    make, match = WITHOUT_PLAIN_MEMORY[name]
    if name in ("bool", "float8"):
        # As outputs their dtype is not the input's, which is a ValueError.
        for clip in CLIPS.values():
            with pytest.raises(TypeError, match=match) as caught:
                clip([make()])
            assert_readable(str(caught.value), "")
            with pytest.raises((TypeError, ValueError), match="out"):
                clip([np.ones((2, 3), np.float32)], out=[make()])
        return
    assert_refused(make(), match)


@pytest.mark.interop("torch")
@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_torch_tensors_inside_a_transform(transform: str) -> None:
    torch = pytest.importorskip("torch")
    seen = []

    def function(x: Any) -> Any:
        assert_refused(x, r"\b(t|t_list|grads|out)\b")
        seen.append(x)
        return (x * 2).sum()

    x = torch.ones(4, 2, 3)
    if transform == "vmap":
        torch.func.vmap(function)(x)
    else:
        torch.func.grad(function)(x[0])
    assert seen


@pytest.mark.interop("torch")
def test_torch_tensors_with_a_tangent() -> None:
    torch = pytest.importorskip("torch")
    seen = []

    def function(x: Any) -> Any:
        for clip in CLIPS.values():
            for out in (None, [x]):
                with pytest.raises(TypeError, match=r"tangent|cannot be read") as caught:
                    clip([x], out=out)
                assert_readable(str(caught.value), "")
        seen.append(x)
        return (x * 2).sum()

    torch.func.jvp(function, (torch.ones(2, 3),), (torch.ones(2, 3),))
    assert seen


@pytest.mark.interop("torch")
def test_constants_inside_a_transform_are_read() -> None:
    torch = pytest.importorskip("torch")
    array = np.ones((2, 3), np.float32)
    results = []

    def function(x: Any) -> Any:
        results.append(fastclip.clip_by_norm(array, 0.5))
        return x * 2

    torch.func.vmap(function)(torch.ones(4))
    assert oracle.same_bits(results[0], fastclip.clip_by_norm(array, 0.5))


@pytest.mark.interop("torch")
def test_empty_torch_tensors_with_a_freed_storage_are_read() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.ones(0, 3), torch.ones(2, 3)[:, :0], torch.ones(3)[3:]):
        tensor.untyped_storage().resize_(0)
        clipped, norm = fastclip.clip_by_global_norm([tensor, torch.tensor([3.0, 4.0])], 1.0)
        assert norm == 5
        assert clipped[0].shape == tensor.shape


@pytest.mark.interop("torch")
def test_subclass_whose_methods_fail_or_lie_is_read_or_refused() -> None:
    torch = pytest.importorskip("torch")

    class Raising(torch.Tensor):  # type: ignore[misc, name-defined]
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise RuntimeError("no function of this class is called")

    class Lying(torch.Tensor):  # type: ignore[misc, name-defined]
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return 10**9

    class Shaped(torch.Tensor):  # type: ignore[misc, name-defined]
        shape = property(lambda self: (1000, 1000))
        dtype = property(lambda self: torch.float64)
        device = property(lambda self: torch.device("cuda"))
        is_neg = is_conj = lambda self: True
        data_ptr = lambda self: 8  # noqa: E731
        __dlpack__ = property(lambda self: 1 / 0)
        __dlpack_device__ = property(lambda self: 1 / 0)

    array = np.array([[3, 4], [0, 0]], np.float32)
    for kind in (Raising, Lying, Shaped):
        tensor = to_torch(array.copy()).as_subclass(kind)
        for clip in CLIPS.values():
            try:
                (result,) = clip([tensor])
            except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
                assert_readable(str(error), "")
            else:
                assert oracle.same_bits(from_torch(result), clip([array])[0])


# --- JAX and TensorFlow -------------------------------------------------------------------------


@pytest.mark.interop("jax")
def test_jax_tracers_and_deleted_arrays_are_refused() -> None:
    jax = pytest.importorskip("jax")
    seen = []

    def function(x: Any) -> Any:
        for clip in CLIPS.values():
            with pytest.raises(TypeError, match=r"\b(t|t_list|grads)\b") as caught:
                clip([x])
            assert_readable(str(caught.value), "")
        with pytest.raises(TypeError, match=r"t_list\[1\]"):
            fastclip.global_norm([np.ones(2), x])
        seen.append(x)
        return (x * 2).sum()

    jax.jit(function)(jax.numpy.ones(3))
    jax.grad(function)(jax.numpy.ones(3))
    jax.vmap(function)(jax.numpy.ones((2, 3)))
    assert len(seen) == 3
    deleted = jax.numpy.ones(3)
    deleted.delete()
    for clip in CLIPS.values():
        with pytest.raises(TypeError, match=r"\b(t|t_list|grads)\b"):
            clip([deleted])
    with pytest.raises(TypeError, match=r"t_list\[0\]"):
        fastclip.global_norm([deleted])


@pytest.mark.interop("jax")
def test_jax_keys_and_shapes_are_refused() -> None:
    jax = pytest.importorskip("jax")
    for value in (jax.random.key(0), jax.ShapeDtypeStruct((2, 3), np.float32)):
        with pytest.raises(TypeError, match=r"\bt\b"):
            fastclip.clip_by_norm(value, 1.0)
        with pytest.raises(TypeError, match=r"t_list"):
            fastclip.global_norm([value])


@pytest.mark.interop("tensorflow")
@pytest.mark.timeout(600)
def test_tensors_of_tensorflow_without_values_are_refused() -> None:
    tf = pytest.importorskip("tensorflow")
    seen = []

    def check(value: Any) -> None:
        for clip in CLIPS.values():
            with pytest.raises(TypeError, match=r"\b(t|t_list|grads)\b") as caught:
                clip([value])
            assert_readable(str(caught.value), "")
        with pytest.raises(TypeError, match=r"t_list\[1\]"):
            fastclip.global_norm([np.ones(2), value])
        seen.append(value)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def function(x: Any) -> Any:
        check(x)
        return x * 2

    function(tf.ones((2, 3)))
    check(tf.ragged.constant([[1.0], [2.0, 3.0]]))
    check(tf.sparse.from_dense(tf.ones((2, 3))))
    check(tf.constant(["a", "b"]))
    check(tf.constant([True, False]))
    assert len(seen) == 5
