"""Training has the same bits for any number of threads and at any SIMD level."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from support import simd_levels
from support.dtypes import BFLOAT16, dtype_id
from support.strategies import finite_values, laid_out
from support.training_cases import EVERY_OPTIMIZER, VARIANTS, Training, assert_same_training

#: Optimizers whose rule depends on the number of the step.
COUNTING = ("Adam", "AdamW", "AdagradDA")

CLIPS: list[dict[str, float]] = [{}, {"global_clipnorm": 0.5}]


def trained(variant: str, dtype: Any, gradient_dtype: Any, clip: dict[str, float]) -> tuple[Training, bytes]:
    """Returns a training after two steps over arrays of several chunks and layouts, and a copy's bytes."""
    rng = np.random.default_rng(1)

    def values(shape: tuple[int, ...], values_dtype: Any) -> Any:
        return finite_values(rng, shape, values_dtype)

    variables = [
        values((50_003,), dtype),
        laid_out(values((201, 200), dtype), "F"),
        *(values((513,), dtype) for _ in range(20)),
        laid_out(values((40_001,), dtype), "stepped"),
        values((3000, 9), dtype),
    ]
    training = Training(variant, variables, **clip)
    copy = np.zeros(50_003, np.float16)
    training.optimizer.set_low_precision_copy(variables[0], copy)
    for _ in range(2):
        gradients: list[Any] = [values(variable.shape, gradient_dtype) for variable in variables[:-1]]
        rows = rng.integers(0, 3000, 4000)
        gradients.append(IndexedSlices(values((4000, 9), gradient_dtype), rows))
        training.step(gradients)
    return training, copy.tobytes()


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", BFLOAT16)], ids=lambda d: "-".join(map(str, d))
)
def test_any_number_of_threads(variant: str, dtypes: tuple[Any, Any]) -> None:
    for clip in CLIPS:
        with fastclip.threads(1):
            expected, expected_copy = trained(variant, *dtypes, clip)
        for count in (2, 3):
            with fastclip.threads(count):
                assert fastclip.get_num_threads() == count
                training, copy = trained(variant, *dtypes, clip)
                assert_same_training(training, expected)
                assert copy == expected_copy


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=dtype_id)
def test_any_address(dtype: Any) -> None:
    """Results do not depend on the addresses of the arrays."""
    rng = np.random.default_rng(3)
    value, gradient = (finite_values(rng, (10_007,), dtype) for _ in range(2))

    def shifted(array: Any, start: int) -> Any:
        moved = np.empty(array.size + 8, dtype)[start : start + array.size]
        moved[...] = array
        return moved

    for variant in VARIANTS:
        expected = Training(variant, [value.copy()], global_clipnorm=0.5)
        expected.step([gradient])
        for start in (1, 3, 5):
            training = Training(variant, [shifted(value, start)], global_clipnorm=0.5)
            training.step([shifted(gradient, start + 1)])
            assert_same_training(training, expected)


@EVERY_OPTIMIZER
def test_results_do_not_depend_on_other_variables(variant: str) -> None:
    """An element's update depends on that element alone, whichever chunk it is in."""
    rng = np.random.default_rng(4)
    values = [finite_values(rng, (n,), np.float32) for n in (100_000, 3, 70_000)]
    gradients = [finite_values(rng, value.shape, np.float32) for value in values]
    together = Training(variant, [value.copy() for value in values])
    together.step(gradients)
    for position, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        alone = Training(variant, [value.copy()])
        alone.step([gradient])
        assert alone.variables[0].tobytes() == together.variables[position].tobytes()
        for start in (0, 1, 7):
            tail = Training(variant, [value[start:].copy()])
            tail.step([gradient[start:]])
            assert tail.variables[0].tobytes() == together.variables[position][start:].tobytes()


# The rules of the others depend on the number of the step, which all variables of an optimizer share.
@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name][0] not in COUNTING])
def test_steps_of_one_optimizer_from_several_threads_are_all_taken(variant: str) -> None:
    """Each thread trains its own variable, which has the bits of training alone."""
    rng = np.random.default_rng(5)
    starts = [finite_values(rng, (3001,), np.float32) for _ in range(4)]
    gradients = [finite_values(rng, (3001,), np.float32) for _ in range(5)]
    together = Training(variant, [start.copy() for start in starts], global_clipnorm=0.5)

    def work(position: int) -> None:
        for gradient in gradients:
            together.optimizer.apply_gradients([(gradient, together.variables[position])])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for position, start in enumerate(starts):
        alone = Training(variant, [start.copy()], global_clipnorm=0.5)
        for gradient in gradients:
            alone.step([gradient])
        assert together.variables[position].tobytes() == alone.variables[0].tobytes()


# --- SIMD levels --------------------------------------------------------------------------------

DIGESTS = """
import hashlib, json, sys
import ml_dtypes, numpy as np, fastclip
from support.training_cases import VARIANTS, Training, slots_of

digests = {"isa": fastclip.config()["isa"], "detected": fastclip.config()["isa_detected"]}
shapes = ((1,), (7,), (33, 65), (140_003,), (40, 3), (130,))
clips = ({}, {"global_clipnorm": 0.5}, {"clipnorm": 0.5}, {"clipvalue": 0.5})
for variant in VARIANTS:
    for dtype in (np.float32, np.float64):
        for gradient_dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
            for clip in clips if gradient_dtype == dtype else clips[1:2]:
                rng = np.random.default_rng(4)
                training = Training(variant, [rng.standard_normal(s).astype(dtype) for s in shapes], **clip)
                copies = [np.zeros(shapes[0], np.float16), np.zeros(shapes[3], ml_dtypes.bfloat16)]
                for at, copy in zip((0, 3), copies):
                    training.optimizer.set_low_precision_copy(training.variables[at], copy)
                for size in (1.0, 1e-3):
                    gradients = [(size * rng.standard_normal(s)).astype(gradient_dtype) for s in shapes]
                    gradients[4] = fastclip.IndexedSlices(gradients[4], rng.integers(0, 40, 40))
                    gradients[5] = np.repeat(gradients[5], 2)[::2]
                    training.step(gradients)
                digest = hashlib.sha256()
                for variable in training.variables:
                    digest.update(variable.tobytes())
                    for slot in slots_of(training.optimizer, variable).values():
                        digest.update(slot.tobytes())
                for copy in copies:
                    digest.update(copy.tobytes())
                digest.update(repr(training.optimizer.last_norm).encode())
                name = f"{variant} {np.dtype(dtype)} {np.dtype(gradient_dtype)} {clip}"
                digests[name] = digest.hexdigest()
json.dump(digests, sys.stdout)
"""


@pytest.fixture(scope="module")
def expected_digests() -> dict[str, str]:
    digests = simd_levels.digests_at_the_detected_level(DIGESTS)
    assert len(set(digests.values())) == len(digests) > 150
    return digests


@simd_levels.EVERY_LEVEL
def test_any_simd_level(level: str, expected_digests: dict[str, str]) -> None:
    simd_levels.assert_same_digests(DIGESTS, expected_digests, level)


@pytest.mark.parametrize("count", ["1", "3"])
def test_simd_level_and_threads_together(count: str, expected_digests: dict[str, str]) -> None:
    simd_levels.assert_same_digests(DIGESTS, expected_digests, "scalar", threads=count)
