"""NaNs have the same bits at every SIMD level and for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

import fastclip
from support import simd_levels

#: Prints digests of results for random bit patterns, many of which are NaNs.
DIGESTS = """
import hashlib, json, warnings
import ml_dtypes
import numpy as np
import fastclip
from fastclip.train import AdadeltaOptimizer, AdamOptimizer, FtrlOptimizer
from fastclip.train import MomentumOptimizer, RMSPropOptimizer

warnings.simplefilter("ignore")
digests = {"isa": fastclip.config()["isa"], "detected": fastclip.config()["isa_detected"]}


def store(name, *arrays):
    digests[name] = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()


def any_bits(seed, count, dtype):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)


def with_every_nan(seed, count, dtype):
    x = any_bits(seed, count, dtype)
    unsigned = x.view(f"u{x.itemsize}")
    unsigned[::5] |= np.array(np.inf, dtype).view(unsigned.dtype)
    return x


for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    x = with_every_nan(1, 100_003, dtype)
    for use_norm in (0.0, 1.0, 3.0, 1e300, np.inf, np.nan):
        for bound in (0.0, 0.5):
            (clipped,), _ = fastclip.clip_by_global_norm([x], bound, use_norm=use_norm)
            store(f"use_norm {use_norm} {bound} {np.dtype(dtype)}", clipped)
    (clipped,), norm = fastclip.clip_by_global_norm([x], 1.0)
    store(f"global norm {np.dtype(dtype)}", clipped, norm)
    store(f"by value {np.dtype(dtype)}", fastclip.clip_by_value(x, -1.0, 1.0))
    matrix = x[:100_000].reshape(250, 400)
    for axis in (0, 1):
        store(f"axis {axis} {np.dtype(dtype)}", fastclip.clip_by_norm(matrix, 1.0, axes=[axis]))
    for ord in (1, 2, 3, np.inf):
        store(f"norms {ord} {np.dtype(dtype)}", fastclip.tensor_norms([x[:5], x[5:9], x[:0]], ord=ord))

for dtype in (np.float32, np.float64):
    for gradient in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for optimizer in (
            AdamOptimizer(0.1),
            MomentumOptimizer(0.1, 0.9),
            FtrlOptimizer(0.1),
            RMSPropOptimizer(0.1, centered=True),
            AdadeltaOptimizer(0.1),
        ):
            w, g = any_bits(2, 5003, dtype), with_every_nan(3, 5003, gradient)
            for _ in range(2):
                optimizer.apply_gradients([(g, w)])
            store(f"{type(optimizer).__name__} {np.dtype(dtype)} {np.dtype(gradient)}", w)

print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def expected_digests() -> dict[str, str]:
    return simd_levels.digests_at_the_detected_level(DIGESTS)


@pytest.mark.parametrize("threads", ["1", "3"])
@simd_levels.EVERY_LEVEL
def test_nans_have_the_same_bits(level: str, threads: str, expected_digests: dict[str, str]) -> None:
    simd_levels.assert_same_digests(DIGESTS, expected_digests, level, threads)


def test_computed_nans_are_quiet_positive_and_without_payload() -> None:
    x = np.array([1.0, -np.nan, np.inf], np.float32)
    (clipped,), norm = fastclip.clip_by_global_norm([x], 1.0)
    assert clipped.view(np.uint32).tolist() == [0x7FC00000] * 3
    assert np.asarray(norm, np.float32).view(np.uint32) == 0x7FC00000


def test_clip_by_value_keeps_the_bits_of_nans() -> None:
    bits = np.array([0x7E01, 0xFE02, 0x7C03, 0xFC04, 0x3C00], np.uint16)
    clamped = fastclip.clip_by_value(bits.view(np.float16), -0.5, 0.5)
    assert clamped.view(np.uint16).tolist() == [0x7E01, 0xFE02, 0x7C03, 0xFC04, 0x3800]
