"""Clipping inside a step has the results of clipping before it; policies for NaN and infinite gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import IndexedSlices
from support import oracle
from support.dtypes import REAL_DTYPES, dtype_id
from support.recorders.training import required_arguments
from support.strategies import FINITE_KINDS, PROPERTY, finite_values
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    assert_same_training,
    build,
    slots_of,
)

SHAPES: list[tuple[int, ...]] = [(7,), (3, 5), (), (0, 4), (6, 2)]

CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")


def variables_of(dtype: Any = np.float32) -> list[Any]:
    return [finite_values(np.random.default_rng(seed), shape, dtype) for seed, shape in enumerate(SHAPES)]


def gradients_of(
    seed: int, dtype: Any = np.float32, kind: str = "normal", rows: Sequence[int] = (5, 1, 2)
) -> list[Any]:
    """Returns four dense gradients and slices of `rows`."""
    rng = np.random.default_rng([seed, 7])
    dense: list[Any] = [finite_values(rng, shape, dtype, kind) for shape in SHAPES[:4]]
    return [*dense, IndexedSlices(finite_values(rng, (3, 2), dtype, kind), list(rows), (6, 2))]


def values_of(gradients: Sequence[Any]) -> list[Any]:
    """Returns the arrays of the gradients, of slices their values, without None."""
    return [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]


def clipped_before(gradients: Sequence[Any], **clip: float) -> list[Any]:
    """Clips gradients with fastclip's functions."""
    ((kind, bound),) = clip.items()
    if kind == "global_clipnorm":
        return list(fastclip.clip_by_global_norm(list(gradients), bound)[0])
    if kind == "clipnorm":
        return [g if g is None else fastclip.clip_by_norm(g, bound) for g in gradients]
    return [g if g is None else fastclip.clip_by_value(g, -bound, bound) for g in gradients]


def assert_close_training(actual: Training, expected: Training, relative: float) -> None:
    """Checks that variables and slots agree to a rounding error of the gradients."""
    for a, b in zip(actual.variables, expected.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=relative, atol=relative)
        for name, slot in slots_of(actual.optimizer, a).items():
            np.testing.assert_allclose(
                slot, expected.optimizer.get_slot(b, name), rtol=relative, atol=relative
            )


# --- clipping in the step and before it ---------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    ("clip", "bound"),
    [
        *(("global_clipnorm", bound) for bound in (0.05, 3.0, 1e9, 0.0, np.inf)),
        *(("clipvalue", bound) for bound in (0.05, 0.5, 1e9, 0.0, np.inf)),
        *(("clipnorm", bound) for bound in (0.05, 1.0, 1e9, 0.0, np.inf)),
    ],
)
def test_fused_clipping_has_the_bits_of_separate_clipping(variant: str, clip: str, bound: float) -> None:
    fused, separate = Training(variant, variables_of(), **{clip: bound}), Training(variant, variables_of())
    for seed in (1, 2, 3):
        gradients = gradients_of(seed)
        if clip == "global_clipnorm":
            gradients[seed] = None
        fused.step(gradients)
        separate.step(clipped_before(gradients, **{clip: bound}))
        assert_same_training(fused, separate)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("bound", [0.3, 1e9])
def test_repeated_rows_are_clipped_before_they_are_summed(variant: str, clip: str, bound: float) -> None:
    """Both the functions and the step clip the `values` of slices before repeated rows are summed."""
    fused, separate = Training(variant, variables_of(), **{clip: bound}), Training(variant, variables_of())
    for seed in (1, 2, 3):
        gradients = gradients_of(seed, rows=(5, 1, 5))
        fused.step(gradients)
        separate.step(clipped_before(gradients, **{clip: bound}))
        # Scaling a sum and summing scaled terms differ in rounding.
        assert_close_training(fused, separate, 2e-6)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0, 2, 1]], ids=["in order", "in another order"])
@pytest.mark.parametrize("loss_scale", [None, 3.0])
@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("variable_dtype", [np.float32, np.float64])
def test_clipvalue_gives_rows_the_bits_of_a_dense_gradient(
    variant: str, rows: list[int], loss_scale: float | None, dtype: Any, variable_dtype: Any
) -> None:
    start = finite_values(np.random.default_rng(0), (4, 3), variable_dtype)
    by_rows, dense = (
        Training(variant, [start.copy()], clipvalue=0.1, loss_scale=loss_scale) for _ in range(2)
    )
    for seed in (1, 2):
        gradient = finite_values(np.random.default_rng(seed), (4, 3), dtype)
        by_rows.step([IndexedSlices(gradient[rows], rows)])
        dense.step([gradient])
        assert_same_training(by_rows, dense)


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("variable_dtype", [np.float32, np.float64])
def test_clipvalue_clamps_repeated_rows_in_the_type_of_the_variable(dtype: Any, variable_dtype: Any) -> None:
    gradient = np.array([[5.0, -5.0], [0.0625, 5.0], [5.0, 0.0625]]).astype(dtype)
    bound = variable_dtype(0.1)
    sixteenth = variable_dtype(0.0625)
    w = np.zeros((2, 2), variable_dtype)
    optimizer = fastclip.train.GradientDescentOptimizer(1.0, clipvalue=0.1)
    optimizer.apply_gradients([(IndexedSlices(gradient[[0, 2, 1]], [0, 0, 1]), w)])
    expected = np.array([[bound + bound, sixteenth - bound], [sixteenth, bound]], variable_dtype)
    if np.dtype(dtype) == np.float64 and variable_dtype is np.float32:
        # A gradient wider than the variable is clamped and summed in its own dtype, and rounded once.
        expected = np.array([[0.2, 0.0625 - 0.1], [0.0625, 0.1]]).astype(np.float32)
    assert oracle.same_bits(-w, expected)


@A_FEW_OPTIMIZERS
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("variable_dtype", [np.float32, np.float64])
def test_clipping_gradients_of_any_dtype_agrees_with_clipping_before(
    variant: str, clip: str, dtype: np.dtype[Any], variable_dtype: Any
) -> None:
    fused = Training(variant, variables_of(variable_dtype), **{clip: 0.3})
    separate = Training(variant, variables_of(variable_dtype))
    for seed in (1, 2):
        gradients = gradients_of(seed, dtype)
        fused.step(gradients)
        # The functions round a clipped gradient to its dtype, which the step does not do.
        wide = np.result_type(np.float32, dtype) if dtype.itemsize > 2 else np.dtype(np.float32)
        separate.step(clipped_before([as_dtype(g, wide) for g in gradients], **{clip: 0.3}))
    relative = 1e-12 if variable_dtype == np.float64 and dtype == np.float64 else 2e-5
    assert_close_training(fused, separate, relative)


def as_dtype(gradient: Any, dtype: Any) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.astype(dtype), gradient.indices, gradient.dense_shape)
    return gradient.astype(dtype)


@PROPERTY
@given(
    st.sampled_from(list(VARIANTS)),
    st.sampled_from(CLIPS),
    st.sampled_from(FINITE_KINDS),
    st.sampled_from([1e-30, 1e-3, 0.7, 1.0, 1e3, 1e30]),
    st.integers(0, 2**32 - 1),
)
def test_any_finite_gradients_are_clipped_with_the_bits_of_separate_clipping(
    variant: str, clip: str, kind: str, bound: float, seed: int
) -> None:
    fused, separate = Training(variant, variables_of(), **{clip: bound}), Training(variant, variables_of())
    gradients = gradients_of(seed, np.float32, kind)
    fused.step(gradients)
    separate.step(clipped_before(gradients, **{clip: bound}))
    assert_same_training(fused, separate)


@A_FEW_OPTIMIZERS
@pytest.mark.parametrize("size", [1e308, 1e160, 1e-160, 1e-300, 1e-320])
@pytest.mark.parametrize("bound", [1.0, 1e-310, 1e300])
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_float64_gradients_near_the_ends_of_the_range(
    variant: str, size: float, bound: float, clip: str
) -> None:
    """The squares overflow or underflow, and the factor may be subnormal."""
    variables = [np.array([0.5, -2.0, 3.0]), np.array(1.5)]
    gradients = [np.array([0.75, -1.0, 0.0]) * size, np.array(-0.5 * size)]
    fused = Training(variant, [v.copy() for v in variables], **{clip: bound})
    separate = Training(variant, [v.copy() for v in variables])
    # A gradient that is still large after clipping overflows in the update rule, with both kinds of clipping.
    fused.step(gradients)
    separate.step(clipped_before(gradients, **{clip: bound}))
    for a, b in zip(fused.variables, separate.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-300)
    assert np.isfinite(float(fused.optimizer.last_norm)) or clip == "clipnorm"


@pytest.mark.parametrize("bound", [1e-3, 1e-7, 1e-20])
def test_float32_gradients_with_a_subnormal_scale(bound: float) -> None:
    """The factor is 1e-41 or smaller, where float32 has few significant bits."""
    gradient = np.array([1e38, -2e38, 3.0, 0.0], np.float32)
    variable = np.zeros(4, np.float32)
    optimizer = build("GradientDescent", learning_rate=1.0, global_clipnorm=bound)
    optimizer.apply_gradients([(gradient, variable)])
    expected, _ = fastclip.clip_by_global_norm([gradient], bound)
    np.testing.assert_array_equal(variable, -expected[0])
    np.testing.assert_allclose(variable[:2], [-bound / 5**0.5, 2 * bound / 5**0.5], rtol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
@EVERY_OPTIMIZER
def test_clipping_does_not_write_gradients(variant: str, clip: str) -> None:
    training = Training(variant, variables_of(), **{clip: 1e-3})
    gradients = gradients_of(1)
    before = [array.tobytes() for array in values_of(gradients)]
    indices = gradients[4].indices.copy()
    for array in values_of(gradients):
        array.flags.writeable = False
    training.step(gradients)
    assert [array.tobytes() for array in values_of(gradients)] == before
    np.testing.assert_array_equal(gradients[4].indices, indices)


def test_clipping_a_long_list_of_gradients() -> None:
    """More tensors than a batch has, some of them longer than a chunk."""
    rng = np.random.default_rng(1)
    shapes: list[tuple[int, ...]] = [*[(17,)] * 300, (200_003,), (1,), (500, 501)]
    variables = [finite_values(rng, shape, np.float32) for shape in shapes]
    gradients = [finite_values(rng, shape, np.float32) for shape in shapes]
    fused = Training("Adam", [v.copy() for v in variables], global_clipnorm=1.0)
    separate = Training("Adam", [v.copy() for v in variables])
    for _ in range(2):
        fused.step(gradients)
        separate.step(clipped_before(gradients, global_clipnorm=1.0))
    assert_same_training(fused, separate)


# --- arguments -------------------------------------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "clips", [CLIPS[:2], CLIPS[1:], CLIPS[::2], CLIPS], ids=lambda clips: "-and-".join(clips)
)
def test_more_than_one_clip_is_refused(variant: str, clips: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"{clips[0]}.*{clips[1]}|{clips[1]}.*{clips[0]}"):
        build(variant, **dict.fromkeys(clips, 1.0))


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("bound", [-1.0, -1e-300, -np.inf, np.nan])
def test_negative_or_nan_bound_is_refused(variant: str, clip: str, bound: float) -> None:
    with pytest.raises(ValueError, match=rf"\b{clip}\b"):
        build(variant, **{clip: bound})


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("bound", ["1", [1.0], 1j, True], ids=repr)
def test_bound_that_is_no_number_is_refused(variant: str, clip: str, bound: Any) -> None:
    with pytest.raises(TypeError, match=rf"\b{clip}\b"):
        build(variant, **{clip: bound})


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    "bound", [2, np.float32(2), np.float64(2), np.array(2.0)], ids=lambda b: type(b).__name__
)
def test_bound_may_be_any_real_number(clip: str, bound: Any) -> None:
    actual, expected = (
        Training("Adam", variables_of(), **{clip: bound}),
        Training("Adam", variables_of(), **{clip: 2.0}),
    )
    actual.step(gradients_of(1))
    expected.step(gradients_of(1))
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
def test_arguments_that_tensorflow_does_not_have_are_keyword_only(variant: str) -> None:
    kind = type(build(variant))
    parameters = inspect.signature(kind).parameters.values()
    positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert not {p.name for p in positional} & {*CLIPS, "on_nonfinite", "loss_scale"}
    required = required_arguments(VARIANTS[variant][0])
    values = [required.get(p.name, p.default) for p in positional]
    kind(*values)
    with pytest.raises(TypeError, match="positional"):
        kind(*values, 1.0)


@EVERY_OPTIMIZER
def test_unknown_argument_is_refused(variant: str) -> None:
    with pytest.raises(TypeError, match="clip_norm"):
        build(variant, clip_norm=1.0)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("policy", ["ignore", "zero", "", None, 1])
def test_unknown_policy_is_refused(variant: str, policy: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"on_nonfinite.*propagate.*raise.*skip"):
        build(variant, on_nonfinite=policy)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("scale", [0.0, -2.0, np.nan, np.inf])
def test_loss_scale_must_be_positive_and_finite(variant: str, scale: float) -> None:
    with pytest.raises(ValueError, match="loss_scale"):
        build(variant, loss_scale=scale)


# --- last_norm -------------------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_last_norm_is_that_of_the_gradients_before_clipping(variant: str) -> None:
    training = Training(variant, variables_of(), global_clipnorm=0.1)
    assert training.optimizer.last_norm is None
    for seed in (1, 2):
        gradients = gradients_of(seed)
        training.step(gradients)
        expected = fastclip.global_norm(gradients)
        assert isinstance(training.optimizer.last_norm, np.float32)
        assert training.optimizer.last_norm == expected
        oracle.assert_norm(training.optimizer.last_norm, values_of(gradients))


def test_last_norm_of_float64_gradients_is_float64() -> None:
    training = Training("Adam", variables_of(np.float64), global_clipnorm=0.1)
    training.step(gradients_of(1, np.float64))
    assert isinstance(training.optimizer.last_norm, np.float64)
    assert training.optimizer.last_norm == fastclip.global_norm(gradients_of(1, np.float64))


def test_last_norm_is_set_when_nothing_was_clipped() -> None:
    training = Training("Adam", variables_of(), global_clipnorm=1e9)
    training.step(gradients_of(1))
    assert training.optimizer.last_norm == fastclip.global_norm(gradients_of(1))


# --- loss scale --------------------------------------------------------------------------------


def multiplied(gradient: Any, factor: float) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(
            (gradient.values * gradient.values.dtype.type(factor)), gradient.indices, gradient.dense_shape
        )
    return np.asarray(gradient * gradient.dtype.type(factor))


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clip", [None, *CLIPS])
@pytest.mark.parametrize("scale", [1024.0, 0.25])
def test_loss_scale_that_is_a_power_of_two_changes_no_bit(
    variant: str, clip: str | None, scale: float
) -> None:
    bound = {} if clip is None else {clip: 0.5}
    scaled = Training(variant, variables_of(), loss_scale=scale, **bound)
    plain = Training(variant, variables_of(), **bound)
    for seed in (1, 2, 3):
        gradients = gradients_of(seed, rows=(5, 1, 5))
        scaled.step([multiplied(gradient, scale) for gradient in gradients])
        plain.step(gradients)
        assert_same_training(scaled, plain)
    if clip == "global_clipnorm":
        assert scaled.optimizer.last_norm == plain.optimizer.last_norm


@A_FEW_OPTIMIZERS
@pytest.mark.parametrize("clip", [None, *CLIPS])
def test_any_loss_scale_divides_the_gradients(variant: str, clip: str | None) -> None:
    bound = {} if clip is None else {clip: 0.5}
    scaled = Training(variant, variables_of(), loss_scale=1000.0, **bound)
    plain = Training(variant, variables_of(), **bound)
    for seed in (1, 2):
        scaled.step([multiplied(gradient, 1000.0) for gradient in gradients_of(seed)])
        plain.step(gradients_of(seed))
    assert_close_training(scaled, plain, 2e-5)


@A_FEW_OPTIMIZERS
def test_loss_scale_keeps_float16_gradients_from_underflowing(variant: str) -> None:
    """1e-6 has one or two significant bits in float16, and 2**16 times that has all of them."""
    gradient = np.full(9, 1e-6)
    scaled, plain = (
        Training(variant, [np.ones(9, np.float32)], loss_scale=scale) for scale in (65536.0, None)
    )
    scaled.step([(gradient * 65536).astype(np.float16)])
    plain.step([gradient])
    np.testing.assert_allclose(scaled.variables[0], plain.variables[0], rtol=1e-3)
    for name, slot in slots_of(scaled.optimizer, scaled.variables[0]).items():
        expected = plain.optimizer.get_slot(plain.variables[0], name)
        np.testing.assert_allclose(slot, expected, rtol=2e-3)


# --- NaN and infinity ---------------------------------------------------------------------------

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
EVERY_CLIP = pytest.mark.parametrize("clip", [None, *CLIPS])


def with_bad(place: str, bad: float, dtype: Any = np.float32) -> tuple[list[Any], int]:
    """Returns gradients of which one has a non-finite element, and its position in the list."""
    gradients = gradients_of(5, dtype)
    if place == "dense":
        gradients[1][2, 4] = bad
        return gradients, 1
    if place == "number":
        gradients[2] = np.array(bad, dtype)
        return gradients, 2
    gradients[4].values[1, 0] = bad
    return gradients, 4


PLACES = pytest.mark.parametrize("place", ["dense", "number", "slices"])


@EVERY_OPTIMIZER
@EVERY_CLIP
@PLACES
@BAD
def test_raise_names_the_entry_and_leaves_everything_untouched(
    variant: str, clip: str | None, place: str, bad: float
) -> None:
    bound = {} if clip is None else {clip: 0.5}
    training = Training(variant, variables_of(), on_nonfinite="raise", **bound)
    gradients, position = with_bad(place, bad)
    for first in (True, False):
        before = training.state()
        with pytest.raises(fastclip.NonFiniteError, match=rf"grads_and_vars\[{position}\]\[0\]") as raised:
            training.step(gradients)
        assert isinstance(raised.value, ArithmeticError)
        others = set(range(5)) - {position}
        assert not any(f"grads_and_vars[{other}]" in str(raised.value) for other in others)
        assert training.state() == before
        assert training.global_step == (0 if first else 1)
        if first:
            training.step(gradients_of(6))


def test_raise_names_every_entry() -> None:
    training = Training("Adam", variables_of(), on_nonfinite="raise")
    gradients, _ = with_bad("dense", np.nan)
    gradients[2] = np.array(np.inf, np.float32)
    with pytest.raises(fastclip.NonFiniteError, match=r"grads_and_vars\[1\]\[0\].*grads_and_vars\[2\]\[0\]"):
        training.step(gradients)


@EVERY_OPTIMIZER
@EVERY_CLIP
@PLACES
@BAD
def test_skip_updates_nothing_and_counts(variant: str, clip: str | None, place: str, bad: float) -> None:
    bound = {} if clip is None else {clip: 0.5}
    training = Training(variant, variables_of(), on_nonfinite="skip", **bound)
    other = Training(variant, variables_of(), on_nonfinite="skip", **bound)
    gradients, _ = with_bad(place, bad)
    assert training.optimizer.skipped_steps == 0
    for skipped in (1, 2):
        training.step(gradients)
        assert training.optimizer.skipped_steps == skipped
        assert training.global_step == skipped - 1
        # The powers of beta do not change either: later steps have the bits of a training without this step.
        training.step(gradients_of(skipped))
        other.step(gradients_of(skipped))
        assert_same_training(training, other)
    assert other.optimizer.skipped_steps == 0


@EVERY_OPTIMIZER
@BAD
def test_propagate_with_global_clipnorm_makes_every_variable_nan(variant: str, bad: float) -> None:
    training = Training(variant, variables_of(), global_clipnorm=0.5)
    gradients, _ = with_bad("dense", bad)
    training.step(gradients)
    for variable in training.variables[:3]:
        assert np.isnan(variable).all()
    rows = np.isnan(training.variables[4]).all(axis=1)
    assert rows[[1, 5]].all()
    assert rows.all() == variant.startswith("Adam") or not rows[[0, 2, 3, 4]].any()
    assert not np.isfinite(training.optimizer.last_norm)
    assert training.optimizer.skipped_steps == 0
    assert training.global_step == 1


@A_FEW_OPTIMIZERS
@BAD
def test_propagate_with_clipnorm_affects_one_variable(variant: str, bad: float) -> None:
    training, clean = (
        Training(variant, variables_of(), clipnorm=0.5),
        Training(variant, variables_of(), clipnorm=0.5),
    )
    gradients, _ = with_bad("dense", bad)
    training.step(gradients)
    clean.step(gradients_of(5))
    assert np.isnan(training.variables[1]).all()
    for position in (0, 2, 4):
        assert training.variables[position].tobytes() == clean.variables[position].tobytes()


@A_FEW_OPTIMIZERS
@pytest.mark.parametrize("clip", [None, "clipvalue"])
@BAD
def test_propagate_without_a_norm_affects_one_element(variant: str, clip: str | None, bad: float) -> None:
    bound = {} if clip is None else {clip: 0.5}
    training, clean = Training(variant, variables_of(), **bound), Training(variant, variables_of(), **bound)
    gradients, _ = with_bad("dense", bad)
    training.step(gradients)
    clean.step(gradients_of(5))
    element = training.variables[1][2, 4]
    if clip == "clipvalue" and np.isinf(bad):
        # Like clip_by_value, clipvalue replaces an infinity by the bound.
        gradients[1][2, 4] = np.copysign(np.float32(0.5), bad)
        expected = Training(variant, variables_of(), **bound)
        expected.step(gradients)
        assert_same_training(training, expected)
    else:
        assert not np.isfinite(element)
        training.variables[1][2, 4] = clean.variables[1][2, 4]
        for a, b in zip(training.variables, clean.variables, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=dtype_id)
@EVERY_CLIP
def test_nonfinite_elements_are_found_in_every_dtype(
    policy: str, dtype: np.dtype[Any], clip: str | None
) -> None:
    bound = {} if clip is None else {clip: 0.5}
    for place in ("dense", "number", "slices"):
        training = Training("Adam", variables_of(), on_nonfinite=policy, **bound)
        gradients, position = with_bad(place, np.nan, dtype)
        if policy == "raise":
            with pytest.raises(fastclip.NonFiniteError, match=rf"grads_and_vars\[{position}\]"):
                training.step(gradients)
        else:
            training.step(gradients)
            assert training.optimizer.skipped_steps == 1
        assert training.global_step == 0


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("size", [1e308, 1e-320])
@EVERY_CLIP
def test_finite_gradients_whose_squares_overflow_are_finite(
    policy: str, size: float, clip: str | None
) -> None:
    bound = {} if clip is None else {clip: 0.5}
    training = Training("GradientDescent", [np.zeros(2), np.zeros(3)], on_nonfinite=policy, **bound)
    training.step([np.array([size, -size]), np.full(3, size)])
    assert training.optimizer.skipped_steps == 0
    assert training.global_step == 1


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_nonfinite_element_is_found_in_any_chunk_of_a_gradient(policy: str) -> None:
    for layout, length in ((1, 150_001), (2, 70_003)):
        for at in (0, 1, 63, 65_535, 65_536, length - 1):
            gradient = np.zeros(length * layout, np.float32)[::layout]
            gradient[at] = np.nan
            training = Training("GradientDescent", [np.zeros(length, np.float32)], on_nonfinite=policy)
            if policy == "raise":
                with pytest.raises(fastclip.NonFiniteError):
                    training.step([gradient])
            else:
                training.step([gradient])
                assert training.optimizer.skipped_steps == 1
            assert not training.variables[0].any()


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_nonfinite_variable_with_finite_gradients_is_accepted(policy: str) -> None:
    variable = np.array([np.nan, 1.0], np.float32)
    training = Training("GradientDescent", [variable], on_nonfinite=policy)
    training.step([np.ones(2, np.float32)])
    assert training.global_step == 1
    np.testing.assert_allclose(variable, [np.nan, 0.9], rtol=1e-6)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_loss_scale_does_not_hide_an_infinity(policy: str) -> None:
    training = Training("Adam", variables_of(), on_nonfinite=policy, loss_scale=65536.0, global_clipnorm=1.0)
    gradients, _ = with_bad("dense", np.inf, np.float16)
    if policy == "raise":
        with pytest.raises(fastclip.NonFiniteError):
            training.step(gradients)
    else:
        training.step(gradients)
        assert training.optimizer.skipped_steps == 1
    assert training.global_step == 0


def test_finite_steps_have_the_same_bits_with_every_policy() -> None:
    expected: Training | None = None
    makers: list[Callable[[], Training]] = [
        lambda policy=policy: Training("Adam", variables_of(), on_nonfinite=policy, global_clipnorm=0.5)  # type: ignore[misc]
        for policy in ("propagate", "raise", "skip")
    ]
    for make in makers:
        training = make()
        for seed in (1, 2):
            training.step(gradients_of(seed))
        if expected is not None:
            assert_same_training(training, expected)
        expected = training
