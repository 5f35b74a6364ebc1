"""What happened in a step: `last_scale`, steps skipped by `skip_above`, and the norms of a NonFiniteError."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from fastclip.train import AdamOptimizer, GradientDescentOptimizer
from support import simd_levels
from support.dtypes import REAL_DTYPES, dtype_id
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    normal,
    some_gradients,
    some_variables,
)

CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")
EVERY_CLIP = pytest.mark.parametrize("clip", [None, *CLIPS])
BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])


def three_and_four(dtype: Any = np.float64) -> list[Any]:
    """Returns gradients of the norms 3 and 4, and so of the global norm 5, with None between them."""
    return [np.array([3.0, 0.0], dtype), None, np.array([[4.0]], dtype)]


def stepped(gradients: list[Any], **options: Any) -> Any:
    """Returns the optimizer after a step with these gradients."""
    optimizer = GradientDescentOptimizer(1.0, **options)
    variables = [np.zeros(1 if g is None else np.shape(g), np.float64) for g in gradients]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return optimizer


# --- last_scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0),
        ({"on_nonfinite": "raise"}, 1.0),
        ({"clipvalue": 1.0}, None),
        ({"clipvalue": 1.0, "on_nonfinite": "skip"}, None),
        ({"skip_above": 100.0}, 1.0),
        ({"global_clipnorm": 1.0}, 0.2),
        ({"global_clipnorm": 5.0}, 1.0),
        ({"global_clipnorm": math.inf}, 1.0),
        ({"global_clipnorm": 0.0}, 0.0),
        ({"global_clipnorm": 1.0, "loss_scale": 2.0}, 0.4),
        ({"global_clipnorm": 1.0, "loss_scale": 8.0}, 1.0),
        ({"global_clipnorm": 1.0, "loss_scale": 1e-300}, 2e-301),
        ({"clipnorm": 1.0}, 0.25),
        ({"clipnorm": 3.0}, 0.75),
        ({"clipnorm": 4.0}, 1.0),
        ({"clipnorm": 1.0, "loss_scale": 2.0}, 0.5),
    ],
)
@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
def test_last_scale_is_the_factor_of_clipping(
    options: dict[str, Any], expected: float | None, dtype: Any
) -> None:
    scale = stepped(three_and_four(dtype), **options).last_scale
    if expected is None:
        assert scale is None
    else:
        assert type(scale) is float
        assert scale == pytest.approx(expected, rel=1e-15)


def test_last_scale_is_none_before_the_first_step() -> None:
    assert AdamOptimizer(global_clipnorm=1.0).last_scale is None


def test_last_scale_tells_whether_a_norm_above_the_bound_was_clipped() -> None:
    optimizer = stepped(three_and_four(), global_clipnorm=2.5)
    assert (float(optimizer.last_norm), optimizer.last_scale) == (5.0, 0.5)
    optimizer = stepped(three_and_four(), clipnorm=2.5)
    assert optimizer.last_scale == 2.5 / 4.0


@pytest.mark.parametrize("loss_scale", [None, 3.0, 1e-3, 7e5])
@pytest.mark.parametrize("bound", [1e-3, 0.5, 0.999, 1.0, 1.001, 30.0])
def test_last_scale_times_last_norm_is_the_bound_where_it_clips(
    bound: float, loss_scale: float | None
) -> None:
    for seed in range(20):
        gradients = [normal(seed, 40, dtype=np.float64), normal(seed + 1, 3, 5, dtype=np.float64)]
        optimizer = stepped(gradients, global_clipnorm=bound, loss_scale=loss_scale)
        norm, scale = float(optimizer.last_norm), optimizer.last_scale
        assert 0.0 < scale <= 1.0
        assert norm * scale == pytest.approx(min(norm, bound), rel=1e-14)


@BAD
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_last_scale_is_nan_where_gradients_become_nan(clip: str, bad: float) -> None:
    for at in (0, 2):
        gradients = three_and_four()
        gradients[at].flat[0] = bad
        optimizer = stepped(gradients, **{clip: 1.0})
        assert type(optimizer.last_scale) is float
        assert math.isnan(optimizer.last_scale)


@BAD
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_last_scale_of_a_skipped_step_is_none(clip: str, bad: float) -> None:
    w = np.zeros(2)
    for options in ({"on_nonfinite": "skip"}, {"skip_above": 4.0}):
        optimizer = GradientDescentOptimizer(1.0, **{clip: 1.0}, **options)  # type: ignore[arg-type]
        optimizer.apply_gradients([(np.array([0.0, 2.0]), w)])
        assert optimizer.last_scale == 0.5
        skipped = np.array([bad if "on_nonfinite" in options else 5.0, 0.0])
        optimizer.apply_gradients([(skipped, w)])
        assert (optimizer.last_scale, optimizer.skipped_steps) == (None, 1)


@A_FEW_OPTIMIZERS
def test_step_that_raises_keeps_last_scale(variant: str) -> None:
    training = Training(variant, some_variables(), global_clipnorm=0.5, on_nonfinite="raise")
    training.step(some_gradients())
    before = training.optimizer.last_scale
    assert 0.0 < before < 1.0
    gradients = some_gradients(60)
    gradients[0][1] = np.nan
    with pytest.raises(fastclip.NonFiniteError):
        training.step(gradients)
    assert training.optimizer.last_scale == before


@pytest.mark.parametrize("size", [1e308, 1e-310])
def test_last_scale_near_the_ends_of_the_range(size: float) -> None:
    optimizer = stepped([np.array([0.75 * size, size])], global_clipnorm=size / 2)
    assert optimizer.last_scale == pytest.approx(0.4, rel=1e-9)
    optimizer = stepped([np.array([0.75 * size, size])], global_clipnorm=size / 2, loss_scale=0.5)
    assert optimizer.last_scale == pytest.approx(0.2, rel=1e-9)


# --- skip_above ----------------------------------------------------------------------------------


@EVERY_OPTIMIZER
@EVERY_CLIP
def test_step_above_the_limit_updates_nothing_and_counts(variant: str, clip: str | None) -> None:
    bound = {} if clip is None else {clip: 0.5}
    limit = 1000.0
    training = Training(variant, some_variables(), skip_above=limit, **bound)
    other = Training(variant, some_variables(), skip_above=limit, **bound)
    for skipped in (1, 2):
        large = some_gradients(60)
        large[0] *= np.float32(1e4)
        before = training.state()
        training.step(large)
        # The number of skipped steps and the last norm are parts of the state.
        assert training.optimizer.skipped_steps == skipped
        assert training.optimizer.last_norm == fastclip.global_norm(large) > limit
        training.optimizer.skipped_steps -= 1
        assert training.state()[:-1] == before[:-1]
        training.optimizer.skipped_steps += 1
        assert training.global_step == skipped - 1
        for each in (training, other):
            each.step(some_gradients(70 + skipped))
        assert_same_training(training, other)
    assert other.optimizer.skipped_steps == 0


@A_FEW_OPTIMIZERS
@EVERY_CLIP
def test_limit_that_no_step_exceeds_changes_no_bit(variant: str, clip: str | None) -> None:
    bound = {} if clip is None else {clip: 0.5}
    limited = Training(variant, some_variables(), skip_above=1e6, **bound)
    plain = Training(variant, some_variables(), **bound)
    for seed in (50, 60):
        for training in (limited, plain):
            training.step(some_gradients(seed))
        assert_same_training(limited, plain)
        assert limited.optimizer.last_norm == fastclip.global_norm(some_gradients(seed))


@pytest.mark.parametrize(
    ("limit", "loss_scale", "is_skipped"),
    [
        (5.0, None, False),
        (math.nextafter(5.0, 0.0), None, True),
        (0.0, None, True),
        (math.inf, None, False),
        (2.5, 2.0, False),
        (math.nextafter(2.5, 0.0), 2.0, True),
        (5.0, 0.5, True),
        (10.0, 0.5, False),
    ],
)
def test_norm_after_the_division_by_the_loss_scale_is_compared(
    limit: float, loss_scale: float | None, is_skipped: bool
) -> None:
    optimizer = stepped(three_and_four(), skip_above=limit, loss_scale=loss_scale)
    assert optimizer.skipped_steps == int(is_skipped)


def test_norm_is_compared_in_float64() -> None:
    """As float32, the norm would be the limit."""
    gradient = np.array([1.0, 2.0**-13], np.float32)
    assert np.float32(math.sqrt(1.0 + 2.0**-26)) == 1.0
    assert stepped([gradient], skip_above=1.0).skipped_steps == 1


def test_zero_gradients_are_not_above_a_limit_of_zero() -> None:
    assert stepped([np.zeros(3)], skip_above=0.0).skipped_steps == 0


def test_finite_gradients_whose_norm_is_beyond_float64_are_above_any_limit() -> None:
    gradient = np.full(4, 1.7e308)
    assert stepped([gradient], skip_above=1.7e308).skipped_steps == 1
    assert stepped([gradient], skip_above=1.0, on_nonfinite="raise").skipped_steps == 1
    assert stepped([gradient], skip_above=math.inf).skipped_steps == 0


@BAD
@pytest.mark.parametrize("limit", [0.0, 1.0, math.inf])
def test_policy_decides_about_nonfinite_gradients(bad: float, limit: float) -> None:
    gradients = [np.array([1.0, bad]), np.array([0.5])]
    assert stepped(gradients, skip_above=limit).skipped_steps == 0
    assert stepped(gradients, skip_above=limit, on_nonfinite="skip").skipped_steps == 1
    with pytest.raises(fastclip.NonFiniteError):
        stepped(gradients, skip_above=limit, on_nonfinite="raise")


def test_rows_count_as_they_were_passed() -> None:
    """As for `last_norm`, repeated rows are not summed first."""
    gradient = IndexedSlices(np.array([[3.0], [4.0]]), [0, 0], (2, 1))
    for limit, skipped in ((5.0, 0), (4.9, 1)):
        w, optimizer = np.zeros((2, 1)), GradientDescentOptimizer(1.0, skip_above=limit)
        optimizer.apply_gradients([(gradient, w)])
        assert optimizer.skipped_steps == skipped
        assert w.any() == (not skipped)


def test_constraint_and_low_precision_copy_are_not_written_by_a_skipped_step() -> None:
    calls: list[Any] = []

    def constraint(variable: Any) -> Any:
        calls.append(variable)
        return variable

    variable = fastclip.Variable(np.ones(2, np.float32), constraint=constraint)
    optimizer, copy = AdamOptimizer(skip_above=1.0), np.zeros(2, np.float16)
    optimizer.set_low_precision_copy(variable, copy)
    optimizer.apply_gradients([(np.full(2, 9.0, np.float32), variable)])
    np.testing.assert_array_equal(copy, np.ones(2))
    assert (calls, optimizer.skipped_steps, optimizer.get_slot_names()) == ([], 1, [])


# --- norms of NonFiniteError ---------------------------------------------------------------------


@EVERY_OPTIMIZER
@EVERY_CLIP
@BAD
def test_error_of_a_step_has_the_norm_of_every_gradient(variant: str, clip: str | None, bad: float) -> None:
    bound = {} if clip is None else {clip: 0.5}
    training = Training(variant, some_variables(), on_nonfinite="raise", **bound)
    gradients = some_gradients()
    gradients[2] = None
    gradients[4][3] = bad
    with pytest.raises(fastclip.NonFiniteError, match=r"grads_and_vars\[4\]") as raised:
        training.step(gradients)
    norms = raised.value.norms
    assert norms is not None
    assert type(norms) is np.ndarray
    assert norms.dtype == np.float64
    expected = [
        fastclip.global_norm([np.float64(getattr(g, "values", g))]) for g in gradients if g is not None
    ]
    np.testing.assert_array_equal(norms, expected)
    assert np.isfinite(norms).tolist() == [True, True, True, False]


def test_norms_of_a_step_are_divided_by_the_loss_scale() -> None:
    gradients = [*three_and_four(), np.array([np.nan])]
    with pytest.raises(fastclip.NonFiniteError) as raised:
        stepped(gradients, on_nonfinite="raise", loss_scale=2.0)
    np.testing.assert_array_equal(raised.value.norms, [1.5, 2.0, np.nan])


def test_error_keeps_its_norms_when_it_is_pickled() -> None:
    with pytest.raises(fastclip.NonFiniteError) as raised:
        stepped([np.array([np.inf]), np.ones(1)], on_nonfinite="raise")
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == str(raised.value)
    np.testing.assert_array_equal(again.norms, [np.inf, 1.0])


# --- reproducibility -----------------------------------------------------------------------------

#: Prints the bits of `last_scale` and of the norms of an error, for gradients of several chunks.
PROGRAM = """
import json
import numpy as np
import fastclip
from fastclip import _core
from fastclip.train import GradientDescentOptimizer

rng = np.random.default_rng(5)
results = {"isa": _core.isa_in_use(), "detected": _core.isa_detected()}
gradients = [rng.standard_normal(n).astype(np.float32) for n in (200_003, 7, 65_536, 65_537)]
pairs = [(g, np.zeros(g.shape, np.float32)) for g in gradients]
for clip in ("clipnorm", "global_clipnorm"):
    optimizer = GradientDescentOptimizer(1.0, **{clip: 0.3}, loss_scale=3.0, skip_above=1e9)
    optimizer.apply_gradients(pairs)
    results[clip] = optimizer.last_scale.hex()
optimizer = GradientDescentOptimizer(1.0, on_nonfinite="raise")
try:
    optimizer.apply_gradients([*pairs, (np.array([np.nan]), np.zeros(1))])
except fastclip.NonFiniteError as error:
    results["norms"] = error.norms.tobytes().hex()
try:
    fastclip.clip_by_global_norm([*gradients, np.array([np.nan])], 1.0, on_nonfinite="raise")
except fastclip.NonFiniteError as error:
    results["norms of a list"] = error.norms.tobytes().hex()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return simd_levels.digests_at_the_detected_level(PROGRAM)


@pytest.mark.parametrize("threads", ["1", "3"])
@simd_levels.EVERY_LEVEL
def test_outcomes_have_the_same_bits_at_every_level_for_any_number_of_threads(
    level: str, threads: str, digests: dict[str, str]
) -> None:
    assert len(digests) == 5
    simd_levels.assert_same_digests(PROGRAM, digests, level, threads)
