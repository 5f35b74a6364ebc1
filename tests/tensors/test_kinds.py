"""Results are of the kind that went in, entry by entry; norms are NumPy scalars."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle
from support.clip_calls import CLIPS, EVERY_CLIP, EVERY_NORM, Clip, clips_for
from support.tensor_kinds import (
    EVERY_FRAMEWORK,
    EVERY_KIND,
    EVERY_SHAPED_KIND,
    KINDS,
    Kind,
    from_torch,
    shape_of,
    to_torch,
    values,
    x64,
)

# --- one kind -----------------------------------------------------------------------------------


@EVERY_KIND
def test_results_have_the_kind_and_the_bits_of_the_call_on_arrays(kind: Kind) -> None:
    for dtype in kind.dtypes:
        array = values(shape_of(kind), dtype)
        for name, clip in clips_for(dtype):
            tensor = kind.make(array)
            (result,), (expected,) = clip([tensor]), clip([array])
            assert kind.is_result(result), (name, dtype, type(result))
            got = np.asarray(result) if type(result) is np.ndarray else kind.read(result)
            assert oracle.same_bits(got, expected), (name, dtype)
            assert oracle.same_bits(kind.read(tensor), array), (name, dtype)


@EVERY_KIND
@EVERY_NORM
def test_norms_are_those_of_arrays(kind: Kind, norm: Callable[[Any], Any]) -> None:
    for dtype in kind.dtypes:
        if dtype.kind in "iu":
            continue
        arrays = [values(shape_of(kind), dtype), values((3,), dtype, seed=2)]
        got, expected = norm([kind.make(array) for array in arrays]), norm(arrays)
        assert type(got) is type(expected), dtype
        assert oracle.same_bits(got, expected), dtype


@EVERY_KIND
def test_norms_of_one_tensor_are_numpy_scalars(kind: Kind) -> None:
    tensor = kind.make(np.array([3, 4], np.float32))
    assert type(fastclip.global_norm([tensor])) is np.float32
    assert type(fastclip.clip_by_global_norm([tensor], 1.0)[1]) is np.float32
    assert type(fastclip.tensor_norms([tensor])) is np.ndarray
    wide = kind.make(np.array([3, 4], np.float64))
    assert type(fastclip.global_norm([tensor, wide])) is np.float64


@EVERY_SHAPED_KIND
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 2, 2, 4)], ids=str)
def test_every_shape(kind: Kind, shape: tuple[int, ...]) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        array = values(shape, dtype)
        for name, clip in clips_for(dtype):
            (result,), (expected,) = clip([kind.make(array)]), clip([array])
            assert kind.is_result(result), name
            got = np.asarray(result) if type(result) is np.ndarray else kind.read(result)
            assert got.shape == shape, name
            assert oracle.same_bits(got, expected), name
        assert fastclip.global_norm([kind.make(array)]) == fastclip.global_norm([array])


@EVERY_KIND
def test_results_are_fresh_and_writable(kind: Kind) -> None:
    tensor = kind.make(np.array([0.25, -0.125], np.float32))
    for name, clip in CLIPS.items():
        (result,) = clip([tensor])
        assert result is not tensor, name
        if kind.is_immutable:
            continue
        result[...] = 7
        np.testing.assert_array_equal(kind.read(tensor), np.array([0.25, -0.125], "f4"), err_msg=name)


@EVERY_KIND
def test_kind_of_an_unclipped_result(kind: Kind) -> None:
    array = values(shape_of(kind))
    (result,), _ = fastclip.clip_by_global_norm([kind.make(array)], 1e9)
    assert kind.is_result(result)
    got = np.asarray(result) if type(result) is np.ndarray else kind.read(result)
    assert oracle.same_bits(got, array)


@EVERY_FRAMEWORK
def test_nonfinite_tensors(kind: Kind) -> None:
    array = np.array([1, np.nan, np.inf], np.float32)
    tensors = [kind.make(array), kind.make(np.ones(2, np.float64))]
    for policy in ("propagate", "zero"):
        clipped, norm = fastclip.clip_by_global_norm(tensors, 1.0, on_nonfinite=policy)
        assert not np.isfinite(norm)
        for result in clipped:
            assert kind.is_result(result)
            assert np.isnan(kind.read(result)).all() if policy == "propagate" else not kind.read(result).any()
    with pytest.raises(fastclip.NonFiniteError, match=r"t_list\[0\]"):
        fastclip.clip_by_global_norm(tensors, 1.0, on_nonfinite="raise")


# --- mixed lists and containers -----------------------------------------------------------------


def mixed(names: list[str]) -> tuple[list[Any], list[Any], list[Kind | None]]:
    """Returns tensors of several kinds, the arrays they were made of, and the kinds; None among them."""
    kinds: list[Kind | None] = []
    arrays: list[Any] = []
    for i, name in enumerate(names * 2):
        kind = KINDS[name]
        dtype = kind.dtypes[i % len(kind.dtypes)]
        if dtype.kind in "iuc":
            dtype = np.dtype(np.float32)
        kinds += [kind, None]
        arrays += [values((7,) if name == "array" else (3, i + 1), dtype, seed=i), None]
    tensors = [None if kind is None else kind.make(array) for kind, array in zip(kinds, arrays, strict=True)]
    return tensors, arrays, kinds


def assert_mixed(names: list[str], clip: Clip) -> None:
    tensors, arrays, kinds = mixed(names)
    for result, expected, kind in zip(clip(tensors), clip(arrays), kinds, strict=True):
        if kind is None:
            assert result is None
            continue
        assert kind.is_result(result), (kind.name, type(result))
        got = np.asarray(result) if type(result) is np.ndarray else kind.read(result)
        assert oracle.same_bits(got, expected), kind.name


LISTED = {
    name: CLIPS[name]
    for name in ("clip_by_global_norm", "clip_by_global_norm(use_norm)", "clip_by_block_rms")
}
EVERY_LISTED = pytest.mark.parametrize("clip", LISTED.values(), ids=LISTED.keys())


@EVERY_LISTED
def test_list_of_arrays_exporters_and_buffers(clip: Clip) -> None:
    assert_mixed(["ndarray", "exporter", "memoryview", "mmap", "ctypes", "array"], clip)


@pytest.mark.interop("torch", "jax", "tensorflow")
@pytest.mark.filterwarnings("ignore")
@EVERY_LISTED
def test_list_of_every_kind(clip: Clip) -> None:
    assert_mixed(list(KINDS), clip)


@pytest.mark.interop("torch", "jax", "tensorflow")
@pytest.mark.filterwarnings("ignore")
@EVERY_NORM
def test_norms_of_a_list_of_every_kind(norm: Callable[[Any], Any]) -> None:
    tensors, arrays, _ = mixed(list(KINDS))
    got, expected = norm(tensors), norm(arrays)
    assert type(got) is type(expected)
    assert oracle.same_bits(got, expected)


@EVERY_FRAMEWORK
def test_parameters_and_gradients_of_different_kinds(kind: Kind) -> None:
    parameter, gradient = values((4, 3)), values((4, 3), seed=2)
    (expected,) = fastclip.adaptive_clip([parameter], [gradient])
    (result,) = fastclip.adaptive_clip([parameter], [kind.make(gradient)])
    assert kind.is_result(result)
    assert oracle.same_bits(kind.read(result), expected)
    (result,) = fastclip.adaptive_clip([kind.make(parameter)], [gradient])
    assert type(result) is np.ndarray
    assert oracle.same_bits(result, expected)


@EVERY_FRAMEWORK
def test_structures_are_kept(kind: Kind) -> None:
    Layer = namedtuple("Layer", ["weight", "bias"])
    arrays = [values(n, seed=n) for n in (2, 3, 4, 5)]
    a, b, c, d = (kind.make(array) for array in arrays)
    grads = {"layer": Layer(a, b), "rest": [c, (d, None)]}
    clipped, norm = fastclip.clip_by_global_norm(grads, 0.5)
    expected, expected_norm = fastclip.clip_by_global_norm(arrays, 0.5)
    assert oracle.same_bits(norm, expected_norm)
    assert type(clipped) is dict
    assert type(clipped["layer"]) is Layer
    assert clipped["rest"][1][1] is None
    got = [*clipped["layer"], clipped["rest"][0], clipped["rest"][1][0]]
    for result, array in zip(got, expected, strict=True):
        assert kind.is_result(result)
        assert oracle.same_bits(kind.read(result), array)


@EVERY_FRAMEWORK
def test_tensor_where_a_list_belongs_is_a_type_error(kind: Kind) -> None:
    tensor = kind.make(values((3, 4)))
    for call in (
        lambda: fastclip.clip_by_global_norm(tensor, 1.0),
        lambda: fastclip.global_norm(tensor),
        lambda: fastclip.tensor_norms(tensor),
        lambda: fastclip.clip_by_block_rms(tensor, 1.0),
    ):
        with pytest.raises(TypeError, match="t_list"):
            call()


@EVERY_FRAMEWORK
def test_integers_have_no_norm(kind: Kind) -> None:
    tensor = kind.make(np.ones((1, 2), np.int32))
    with pytest.raises(TypeError, match=r"\bt\b.*int32"):
        fastclip.clip_by_norm(tensor, 1.0)
    with pytest.raises(TypeError, match=r"t_list\[1\].*int32") as caught:
        fastclip.global_norm([None, tensor])
    assert "(1, 2)" in str(caught.value)


@EVERY_FRAMEWORK
def test_booleans_and_complex_bounds_are_refused(kind: Kind) -> None:
    with pytest.raises(TypeError, match=r"\bt\b.*bool"):
        fastclip.clip_by_value(kind.make(np.array([True, False])), 0, 1)
    with pytest.raises(TypeError, match=r"\bt\b.*complex64"):
        fastclip.clip_by_value(kind.make(np.ones(2, np.complex64)), 0, 1)


@EVERY_FRAMEWORK
def test_bounds_may_be_tensors(kind: Kind) -> None:
    array, low, high = values((4, 3)), np.array([-0.5, -0.25, 0.0], "f4"), np.array(0.5, "f4")
    expected = fastclip.clip_by_value(array, low, high)
    assert oracle.same_bits(fastclip.clip_by_value(array, kind.make(low), kind.make(high)), expected)
    result = fastclip.clip_by_value(kind.make(array), kind.make(low), kind.make(high))
    assert kind.is_result(result)
    assert oracle.same_bits(kind.read(result), expected)
    bound = np.array([[0.5], [0.25], [0.125], [1.0]], "f4")
    expected = fastclip.clip_by_norm(array, bound, axes=1)
    assert oracle.same_bits(fastclip.clip_by_norm(array, kind.make(bound), axes=1), expected)


@EVERY_FRAMEWORK
def test_numbers_may_be_tensors_without_dimensions(kind: Kind) -> None:
    array, bound = values((4, 3)), kind.make(np.array(0.5, "f4"))
    expected, _ = fastclip.clip_by_global_norm([array], 0.5, use_norm=3.0)
    use_norm = kind.make(np.array(3.0, "f4"))
    clipped, norm = fastclip.clip_by_global_norm([array], bound, use_norm=use_norm)
    assert norm is use_norm
    assert oracle.same_bits(clipped[0], expected[0])
    assert oracle.same_bits(fastclip.clip_by_norm(array, bound), fastclip.clip_by_norm(array, 0.5))


# --- types of torch -----------------------------------------------------------------------------


@pytest.mark.interop("torch")
@EVERY_CLIP
def test_parameters_and_subclasses_give_plain_tensors(clip: Clip) -> None:
    torch = pytest.importorskip("torch")

    class Tagged(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    array = values((4, 3))
    with torch.no_grad():
        for tensor in (
            torch.nn.Parameter(to_torch(array.copy())),
            torch.nn.Buffer(to_torch(array.copy())),
            to_torch(array.copy()).as_subclass(Tagged),
        ):
            (result,) = clip([tensor])
            assert type(result) is torch.Tensor
            assert not result.requires_grad
            assert oracle.same_bits(from_torch(result), clip([array])[0])


@pytest.mark.interop("torch")
def test_subclass_with_a_torch_function_gives_a_plain_tensor() -> None:
    torch = pytest.importorskip("torch")

    class Traced(torch.Tensor):  # type: ignore[misc, name-defined]
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return super().__torch_function__(func, types, args, kwargs or {})

    array = values((4, 3))
    tensor = to_torch(array.copy()).as_subclass(Traced)
    result = fastclip.clip_by_norm(tensor, 0.5)
    assert type(result) is torch.Tensor
    assert oracle.same_bits(from_torch(result), fastclip.clip_by_norm(array, 0.5))


@pytest.mark.interop("jax")
@pytest.mark.filterwarnings("ignore")
def test_jax_results_keep_64_bits_wherever_the_input_has_them() -> None:
    pytest.importorskip("jax")
    array = values((4, 3), np.float64)
    tensor = KINDS["jax"].make(array)
    result = fastclip.clip_by_norm(tensor, 0.5)
    assert result.dtype == np.float64
    with x64():
        assert fastclip.clip_by_norm(tensor, 0.5).dtype == np.float64
