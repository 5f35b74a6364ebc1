"""The clip functions over arrays on a device, compared with those over host arrays."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support.devices import require_device
from support.strategies import PROPERTY

require_device()

FLOATS = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]
EVERY_FLOAT = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def values(shape: Any, dtype: Any = np.float32, seed: int = 1, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def on_device(arrays: Any) -> Any:
    return [None if array is None else fastclip.gpu.asarray(array) for array in arrays]


def is_finite(array: Any) -> Any:
    # Conversions of bfloat16 warn of signalling NaN.
    with np.errstate(invalid="ignore"):
        return np.isfinite(array)


def exact_norm(arrays: Any) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for array in arrays for x in array.astype(np.float64).ravel()))


def same(result: Any, expected: Any) -> None:
    result, expected = np.asarray(result.numpy()), np.asarray(expected)
    unsigned = f"u{expected.itemsize}"
    np.testing.assert_array_equal(result.view(unsigned), expected.view(unsigned))


@EVERY_FLOAT
@pytest.mark.parametrize("sizes", [[1], [5, 4096, 4097], [100_000], [0, 3], [512] * 50])
def test_norms_are_within_an_ulp(dtype: Any, sizes: list[int]) -> None:
    arrays = [values(size, dtype, seed) for seed, size in enumerate(sizes)]
    norm = fastclip.global_norm(on_device(arrays))
    assert float(norm) == pytest.approx(exact_norm(arrays), rel=1.2e-7)
    norms = fastclip.tensor_norms(on_device(arrays))
    assert [float(n) for n in norms] == pytest.approx([exact_norm([a]) for a in arrays], rel=1.2e-7)
    largest = fastclip.tensor_norms(on_device(arrays), ord=np.inf)
    assert [float(n) for n in largest] == [float(np.abs(a).max(initial=0)) for a in arrays]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e36])
def test_norms_of_any_scale(scale: float) -> None:
    arrays = [values(1000, np.float32, 2, scale)]
    assert float(fastclip.global_norm(on_device(arrays))) == pytest.approx(exact_norm(arrays), rel=1.2e-7)


def test_norm_beyond_float32_is_a_float64() -> None:
    norm = fastclip.global_norm(on_device([np.full(100, 3e38, np.float32)]))
    assert norm.dtype == np.float64
    assert float(norm) == pytest.approx(10 * float(np.float32(3e38)), rel=1e-9)


@EVERY_FLOAT
@given(data=st.data())
@PROPERTY
def test_results_with_a_known_norm_have_the_bits_of_the_host(dtype: Any, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    bits = data.draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(bits).integers(0, 2 ** (8 * dtype.itemsize), size, dtype=f"u{dtype.itemsize}")
    array = raw.view(dtype)
    array[~is_finite(array)] = 1
    bound, norm = data.draw(st.floats(1e-3, 1e3)), data.draw(st.floats(1e-3, 1e3))
    expected, _ = fastclip.clip_by_global_norm([array], bound, use_norm=norm)
    result, given_norm = fastclip.clip_by_global_norm(on_device([array]), bound, use_norm=norm)
    assert given_norm == norm
    same(result[0], expected[0])


@EVERY_FLOAT
def test_clipping_agrees_with_the_host(dtype: Any) -> None:
    arrays = [values(shape, dtype, seed) for seed, shape in enumerate([(3, 4), (5000,), (), (0,)])]
    expected, norm = fastclip.clip_by_global_norm(arrays, 2.0)
    results, found = fastclip.clip_by_global_norm(on_device(arrays), 2.0)
    assert float(found) == pytest.approx(float(norm), rel=2.4e-7)
    for result, array in zip(results, expected, strict=True):
        tolerance = 2 * float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(result.numpy().astype(float), array.astype(float), rtol=tolerance)


def test_in_place_and_structures() -> None:
    arrays = {"w": values((3, 4)), "b": [None, values(7, seed=2)]}
    devices = {"w": fastclip.gpu.asarray(arrays["w"]), "b": [None, fastclip.gpu.asarray(arrays["b"][1])]}
    expected, _ = fastclip.clip_by_global_norm(arrays, 1.0)
    results, _ = fastclip.clip_by_global_norm(devices, 1.0)
    assert results["b"][0] is None
    np.testing.assert_allclose(results["w"].numpy(), expected["w"], rtol=3e-7)
    same(devices["w"], arrays["w"])
    written, _ = fastclip.clip_by_global_norm(devices, 1.0, out=devices)
    assert written is devices
    np.testing.assert_allclose(devices["b"][1].numpy(), expected["b"][1], rtol=3e-7)


@EVERY_FLOAT
def test_within_the_bound_nothing_changes(dtype: Any) -> None:
    raw = (
        np.arange(2**16, dtype=np.uint16)
        if dtype.itemsize == 2
        else np.arange(10**5, dtype=np.uint32) * 40_000
    )
    array = raw.view(dtype)
    array = array[is_finite(array)]
    for out in (None, "in place"):
        device = on_device([array])
        results, _ = fastclip.clip_by_global_norm(device, np.inf, out=device if out else None)
        same(results[0], array)


@EVERY_FLOAT
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite(dtype: Any, bad: float) -> None:
    arrays = [values(10, dtype), values(5, dtype, 2)]
    arrays[1][3] = bad
    results, norm = fastclip.clip_by_global_norm(on_device(arrays), 1.0)
    assert not math.isfinite(float(norm))
    assert all(np.isnan(result.numpy().astype(float)).all() for result in results)
    results, _ = fastclip.clip_by_global_norm(on_device(arrays), 1.0, on_nonfinite="zero")
    assert all((result.numpy() == 0).all() for result in results)
    device = {"a": fastclip.gpu.asarray(arrays[0]), "b": fastclip.gpu.asarray(arrays[1])}
    with pytest.raises(fastclip.NonFiniteError, match=r"\['b'\]") as caught:
        fastclip.clip_by_global_norm(device, 1.0, out=device, on_nonfinite="raise")
    assert caught.value.norms is not None
    assert [math.isfinite(norm) for norm in caught.value.norms] == [True, False]
    same(device["a"], arrays[0])


@EVERY_FLOAT
def test_bound_zero(dtype: Any) -> None:
    array = values(10, dtype)
    results, _ = fastclip.clip_by_global_norm(on_device([array]), 0.0)
    expected, _ = fastclip.clip_by_global_norm([array], 0.0)
    same(results[0], expected[0])


@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int32)], ids=str)
def test_clip_by_value(dtype: Any) -> None:
    array = values((40, 50), dtype, scale=10)
    if dtype.kind != "i":
        array[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    for low, high in ((-3, 4), (4, -3), (0, 0), (-(2**30), 2**30)):
        if dtype != np.float16 or abs(low) < 60000:
            same(
                fastclip.clip_by_value(fastclip.gpu.asarray(array), low, high),
                fastclip.clip_by_value(array, low, high),
            )


def test_clip_by_norm_and_average_norm() -> None:
    array = values((30, 4))
    device = fastclip.gpu.asarray(array)
    np.testing.assert_allclose(
        fastclip.clip_by_norm(device, 1.0).numpy(), fastclip.clip_by_norm(array, 1.0), rtol=3e-7
    )
    np.testing.assert_allclose(
        fastclip.clip_by_average_norm(device, 1e-3).numpy(),
        fastclip.clip_by_average_norm(array, 1e-3),
        rtol=3e-7,
    )
    np.testing.assert_allclose(
        fastclip.clip_by_norm(device, 0.5, ord=np.inf).numpy(),
        fastclip.clip_by_norm(array, 0.5, ord=np.inf),
        rtol=3e-7,
    )


def test_one_submission_a_call_and_nothing_is_downloaded() -> None:
    device = on_device([values(512, seed=seed) for seed in range(100)])
    fastclip.clip_by_global_norm(device, 1.0, out=device)
    before = fastclip.gpu.statistics()
    _, norm = fastclip.clip_by_global_norm(device, 1.0, out=device)
    after = fastclip.gpu.statistics()
    assert after["submissions"] - before["submissions"] == 1
    assert after["downloaded_bytes"] == before["downloaded_bytes"]
    assert after["uploaded_bytes"] - before["uploaded_bytes"] <= 64
    float(norm)
    assert fastclip.gpu.statistics()["downloaded_bytes"] > after["downloaded_bytes"]


def test_bits_are_the_same_on_every_run() -> None:
    arrays = [values(10_000, seed=3), values(77, seed=4)]
    first, norm = fastclip.clip_by_global_norm(on_device(arrays), 1.0)
    for _ in range(5):
        again, other = fastclip.clip_by_global_norm(on_device(arrays), 1.0)
        assert float(norm) == float(other)
        for one, two in zip(first, again, strict=True):
            same(one, two.numpy())


def test_what_is_refused() -> None:
    array = values(3)
    device = fastclip.gpu.asarray(array)
    for mixed in ([device, array], [array, device]):
        with pytest.raises(TypeError, match="host memory"):
            fastclip.clip_by_global_norm(mixed, 1.0)
    with pytest.raises(TypeError, match="ord is 3"):
        fastclip.global_norm([device], ord=3)
    with pytest.raises(TypeError, match="norms="):
        fastclip.clip_by_global_norm([device], 1.0, norms=np.empty(1))
    with pytest.raises(TypeError, match="device"):
        fastclip.clip_by_block_rms([device], 1.0)
    with pytest.raises(TypeError, match="int32"):
        fastclip.global_norm([fastclip.gpu.asarray(np.ones(3, np.int32))])
    with pytest.raises(ValueError, match="shares memory"):
        fastclip.clip_by_global_norm([device, fastclip.gpu.asarray(array)], 1.0, out=[device, device])
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        fastclip.clip_by_value(device, 0, 1, out=fastclip.gpu.asarray(values(4)))
    same(device, array)


def test_run_a_shader() -> None:
    device = fastclip.gpu.asarray(np.zeros(100, np.float32))
    source = """
        @group(0) @binding(0) var<storage, read_write> a: array<f32>;
        @compute @workgroup_size(64) fn fill(@builtin(global_invocation_id) i: vec3<u32>) {
            if (i.x < arrayLength(&a)) { a[i.x] = f32(arrayLength(&a)) + f32(i.x); }
        }
    """
    fastclip.gpu.run(source, [device], 2, entry_point="fill")
    np.testing.assert_array_equal(device.numpy(), 100 + np.arange(100, dtype=np.float32))
    with pytest.raises(ValueError, match="assignment"):
        fastclip.gpu.run(source.replace("a[i.x] =", "a[i.x] +"), [device], 2, entry_point="fill")
    with pytest.raises(ValueError, match="twice"):
        fastclip.gpu.run(source, [device, device], 2, entry_point="fill")
    with pytest.raises(ValueError, match="other"):
        fastclip.gpu.run(source, [device], 2, entry_point="other")
    np.testing.assert_array_equal(device.numpy(), 100 + np.arange(100, dtype=np.float32))


@EVERY_FLOAT
@given(data=st.data())
@PROPERTY
def test_slices_along_axes(dtype: Any, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4)))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    array = values(shape, dtype, data.draw(st.integers(0, 99)))
    order = data.draw(st.sampled_from([2, np.inf]))
    expected = fastclip.clip_by_norm(array, 0.7, axes=axes, ord=order)
    device = fastclip.gpu.asarray(array)
    result = fastclip.clip_by_norm(device, 0.7, axes=axes, ord=order)
    tolerance = 2 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(result.numpy().astype(float), expected.astype(float), rtol=tolerance)
    same(device, array)
    assert fastclip.clip_by_norm(device, 0.7, axes=axes, ord=order, out=device) is device
    same(device, result.numpy())


@EVERY_FLOAT
@pytest.mark.parametrize(("shape", "axes"), [((3, 10_001), 1), ((10_001, 3), 0), ((5, 4097, 2), (0, 1))])
def test_long_slices(dtype: Any, shape: Any, axes: Any) -> None:
    array = values(shape, dtype)
    array[..., 0] *= 0.01
    expected = fastclip.clip_by_norm(array, 5.0, axes=axes)
    result = fastclip.clip_by_norm(fastclip.gpu.asarray(array), 5.0, axes=axes)
    tolerance = 2 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(result.numpy().astype(float), expected.astype(float), rtol=tolerance)


def test_slices_that_are_not_finite() -> None:
    array = values((4, 5))
    array[1, 2], array[3, 0] = np.nan, np.inf
    expected = fastclip.clip_by_norm(array, 1.0, axes=1)
    result = fastclip.clip_by_norm(fastclip.gpu.asarray(array), 1.0, axes=1).numpy()
    np.testing.assert_allclose(result, expected, rtol=3e-7)


def test_norms_behave_as_numbers() -> None:
    norm = fastclip.global_norm(on_device([np.ones(4, np.float32)]))
    assert norm == 2
    assert norm > 1
    assert norm * 2 == 4
    assert 1 / norm == 0.5
    assert f"{norm:.3f}" == "2.000"
    assert np.sqrt(norm * 2) == 2
    assert pickle.loads(pickle.dumps(norm)) == 2


def test_bound_zero_with_a_known_norm_keeps_nan() -> None:
    array = np.float32([np.inf, np.nan, -1, 0])
    for dtype in FLOATS:
        expected, _ = fastclip.clip_by_global_norm([array.astype(dtype)], 0.0, use_norm=2.0)
        results, _ = fastclip.clip_by_global_norm(on_device([array.astype(dtype)]), 0.0, use_norm=2.0)
        np.testing.assert_array_equal(results[0].numpy().astype(float), expected[0].astype(float))


def test_bounds_of_values_are_those_of_the_host() -> None:
    with pytest.raises(OverflowError, match="clip_value_min"):
        fastclip.clip_by_value(fastclip.gpu.asarray(np.int32([1])), 2**31, 2**40)
    half = np.float16([1, -1e4])
    same(fastclip.clip_by_value(fastclip.gpu.asarray(half), -1e30, 1e30), half)
    assert np.isnan(fastclip.clip_by_value(fastclip.gpu.asarray(half), np.nan, 1.0).numpy()).all()
    with pytest.raises(TypeError, match="clip_value_max"):
        fastclip.clip_by_value(fastclip.gpu.asarray(half), 0, [1, 2])


def test_errors_name_the_output_and_the_arguments_of_shaders() -> None:
    host = values(3)
    device = fastclip.gpu.asarray(host)
    with pytest.raises(TypeError, match=r"out\[0\] is a ndarray in host memory"):
        fastclip.clip_by_global_norm([device], 1.0, out=[host])
    with pytest.raises(TypeError, match="device"):
        fastclip.clip_by_global_norm([host], 1.0, out=[device])
    with pytest.raises(ValueError, match="None"):
        fastclip.clip_by_global_norm([None, device], 1.0, out=[device, None])
    for workgroups in (1.5, None, (1.5,), "12", 0, (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="workgroups is"):
            fastclip.gpu.run("", [device], workgroups)
    for arrays in (device, None, []):
        with pytest.raises(TypeError, match="arrays is"):
            fastclip.gpu.run("", arrays, 1)
    with pytest.raises(TypeError, match=r"arrays\[0\]"):
        fastclip.gpu.run("", [host], 1)
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        copy.deepcopy(device)


def test_more_slices_than_a_device_takes() -> None:
    with pytest.raises(ValueError, match="norms"):
        fastclip.clip_by_norm(fastclip.gpu.asarray(np.ones((5_000_000, 1), np.float32)), 1.0, axes=[1])


def test_lists_that_hold_the_same_arrays_as_inputs_and_as_outputs_are_told_apart() -> None:
    one, two = on_device([values(3), values(3, seed=2)])
    fastclip.clip_by_global_norm([one], 1e-3, out=[two])
    same(two, fastclip.clip_by_global_norm([values(3)], 1e-3)[0][0])
    same(one, values(3))
    two.copy_from(values(3, seed=2))
    expected, norm = fastclip.clip_by_global_norm([values(3), values(3, seed=2)], 1e-3)
    _, found = fastclip.clip_by_global_norm([one, two], 1e-3, out=[one, two])
    assert float(found) == norm
    for result, array in zip([one, two], expected, strict=True):
        same(result, array)


def test_a_repeated_call_with_the_same_outputs_uploads_its_bounds_alone() -> None:
    arrays, outputs = on_device([values(512)] * 50), on_device([values(512)] * 50)
    fastclip.clip_by_global_norm(arrays, 1.0, out=outputs)
    before = fastclip.gpu.statistics()["uploaded_bytes"]
    fastclip.clip_by_global_norm(arrays, 1.0, out=outputs)
    assert fastclip.gpu.statistics()["uploaded_bytes"] - before < 100
