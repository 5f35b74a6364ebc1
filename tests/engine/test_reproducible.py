"""Results have the same bits for any number of threads, and for narrow dtypes at any SIMD level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastclip
from support import oracle, simd_levels
from support.dtypes import EVERY_FLOAT
from support.strategies import finite_values, laid_out

ORDERS = (1, 2, 2.5, np.inf)


def everything(arrays: list[Any]) -> list[Any]:
    """Returns the results of all functions that reduce, for arrays of at least one dimension."""
    results: list[Any] = []
    for ord in ORDERS:
        results.append(fastclip.global_norm(arrays, ord=ord))
        results.append(fastclip.tensor_norms(arrays, ord=ord))
        clipped, norm = fastclip.clip_by_global_norm(arrays, 0.7, ord=ord)
        results += [*clipped, norm]
    results += [fastclip.clip_by_norm(array, 0.7) for array in arrays]
    results += [fastclip.clip_by_norm(array, 0.7, axes=0) for array in arrays]
    results += [fastclip.clip_by_norm(array, 0.7, axes=-1) for array in arrays]
    results += [fastclip.clip_by_average_norm(array, 1e-6) for array in arrays]
    results += fastclip.clip_by_block_rms(arrays, 0.5)
    results += fastclip.adaptive_clip(arrays, arrays)
    return results


def assert_all_same_bits(got: list[Any], expected: list[Any]) -> None:
    assert len(got) == len(expected) > 0
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert oracle.same_bits(a, b), f"result {i} differs: {a} and {b}"


@EVERY_FLOAT
def test_any_number_of_threads(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(1)
    arrays = [
        finite_values(rng, shape, dtype, kind)
        for shape, kind in [
            ((400_003,), "normal"),
            ((300, 701), "wide"),
            ((5,), "normal"),
            ((0,), "normal"),
            ((3, 50_000), "sparse"),
            ((90_000, 3), "normal"),
        ]
    ]
    with fastclip.threads(1):
        assert fastclip.get_num_threads() == 1
        expected = everything(arrays)
    for count in (2, 3, 4):
        with fastclip.threads(count):
            assert fastclip.get_num_threads() == count
            assert_all_same_bits(everything(arrays), expected)


@EVERY_FLOAT
def test_any_number_of_threads_for_strided_memory(dtype: np.dtype[Any]) -> None:
    values = finite_values(np.random.default_rng(2), (120, 41, 43), dtype)
    for layout in ("F", "permuted", "stepped", "reversed", "misaligned"):
        arrays = [laid_out(values, layout)]
        with fastclip.threads(1):
            expected = everything(arrays)
        for count in (2, 4):
            with fastclip.threads(count):
                assert_all_same_bits(everything(arrays), expected)


@EVERY_FLOAT
def test_any_address(dtype: np.dtype[Any]) -> None:
    """Results do not depend on the addresses of the arrays."""
    values = finite_values(np.random.default_rng(3), (100_003,), dtype)
    expected = everything([values])
    for start in (1, 2, 3, 5, 8):
        buffer = np.empty(values.size + 8, dtype)
        shifted = buffer[start : start + values.size]
        shifted[...] = values
        assert_all_same_bits(everything([shifted]), expected)
    assert_all_same_bits(everything([laid_out(values, "misaligned")]), expected)


@EVERY_FLOAT
def test_many_calls(dtype: np.dtype[Any]) -> None:
    arrays = [finite_values(np.random.default_rng(n), (40_000,), dtype) for n in range(8)]
    expected = everything(arrays)
    for _ in range(5):
        assert_all_same_bits(everything(arrays), expected)


# --- SIMD levels --------------------------------------------------------------------------------

DIGESTS = """
import hashlib, json, sys
import ml_dtypes, numpy as np, fastclip
rng = np.random.default_rng(4)
digests = {"isa": fastclip.config()["isa"], "detected": fastclip.config()["isa_detected"]}

def note(name, *results):
    for i, result in enumerate(results):
        array = np.ascontiguousarray(result)
        digests[f"{name} {i}"] = hashlib.sha256(array.tobytes()).hexdigest() + str(array.dtype)

def values(shape, dtype, kind):
    x = rng.standard_normal(shape)
    if kind == "wide":
        x = np.sign(x) * np.exp2(rng.uniform(-130, 14 if dtype == np.float16 else 120, shape))
    if dtype == np.complex64:
        return (x + 1j * rng.standard_normal(shape)).astype(dtype)
    return x.astype(dtype)

for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.complex64):
    for kind in ("normal", "wide"):
        for shape in ((7,), (64,), (1003,), (33, 65), (200_003,), (40, 3), (3, 5000)):
            a = values(shape, dtype, kind)
            strided = np.repeat(a, 2, axis=-1)[..., ::2]
            tag = f"{np.dtype(dtype)} {kind} {shape}"
            for ord in (1, 2, 2.5, np.inf):
                note(tag + f" norms {ord}", fastclip.global_norm([a, strided], ord=ord))
                note(tag + f" tensors {ord}", fastclip.tensor_norms([a, strided], ord=ord))
                clipped, norm = fastclip.clip_by_global_norm([a, strided], 0.7, ord=ord)
                note(tag + f" global {ord}", norm, *clipped)
            for axes in (None, 0, -1):
                note(tag + f" norm {axes}", fastclip.clip_by_norm(a, 0.7, axes))
            note(tag + " average", fastclip.clip_by_average_norm(a, 1e-6))
            note(tag + " rms", *fastclip.clip_by_block_rms([a], 0.5))
            note(tag + " adaptive", *fastclip.adaptive_clip([a], [a]))
            if dtype != np.complex64:
                note(tag + " value", fastclip.clip_by_value(a, -0.5, 0.25))
for dtype in ("i1", "u2", "i4", "u8"):
    a = rng.integers(0, 120, 1003).astype(dtype)
    note(dtype, fastclip.clip_by_value(a, 7, 99))
a = np.array([1, np.nan, np.inf] * 50, np.float32)
note("nonfinite", np.isnan(fastclip.clip_by_norm(a, 1.0)), fastclip.clip_by_value(a, -2, 2) > 1)
json.dump(digests, sys.stdout)
"""


@pytest.fixture(scope="module")
def expected_digests() -> dict[str, str]:
    digests = simd_levels.digests_at_the_detected_level(DIGESTS)
    assert len(digests) > 500
    return digests


@simd_levels.EVERY_LEVEL
def test_any_simd_level(level: str, expected_digests: dict[str, str]) -> None:
    simd_levels.assert_same_digests(DIGESTS, expected_digests, level)


@pytest.mark.parametrize("count", ["1", "3"])
def test_simd_level_and_threads_together(count: str, expected_digests: dict[str, str]) -> None:
    simd_levels.assert_same_digests(DIGESTS, expected_digests, "scalar", threads=count)


@pytest.mark.parametrize("seed", range(40))
def test_norms_along_axes_do_not_depend_on_the_layout_of_outputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 3)
    array = rng.standard_normal(shape).transpose(rng.permutation(3))
    array = array[tuple(slice(None, None, int(rng.choice([1, -1]))) for _ in range(3))]
    axis = int(rng.integers(3))
    fresh = fastclip.clip_by_norm(array, 0.7, axes=[axis])
    other = np.empty(array.shape, order=rng.choice(["C", "F"]))
    fastclip.clip_by_norm(array, 0.7, axes=[axis], out=other)
    fastclip.clip_by_norm(array, 0.7, axes=[axis], out=array)
    assert fresh.tobytes() == other.tobytes() == array.tobytes()
