"""Low-precision copies of variables (master weights), which every step updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import IndexedSlices
from support import oracle
from support.dtypes import BFLOAT16, dtype_id
from support.strategies import FINITE_KINDS, PROPERTY, WRITABLE_LAYOUTS, finite_values, laid_out, read_only
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    build,
    normal,
    whole_memory,
)

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

#: Dtypes of a variable and of its copy.
PAIRS = ((FLOAT32, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT64, FLOAT16), (FLOAT64, BFLOAT16), (FLOAT64, FLOAT32))

EVERY_PAIR = pytest.mark.parametrize(
    ("dtype", "copy_dtype"), PAIRS, ids=[f"{dtype_id(dtype)}-{dtype_id(copy)}" for dtype, copy in PAIRS]
)


def assert_is_copy(copy: Any, variable: Any) -> None:
    """Checks that a copy has the variable's values, rounded once to nearest even."""
    rounded = oracle.round_to(np.asarray(variable).astype(np.float64), copy.dtype)
    assert copy.tobytes() == rounded.tobytes()


@EVERY_OPTIMIZER
@EVERY_PAIR
def test_copy_is_written_when_it_is_set_and_in_each_step(
    variant: str, dtype: np.dtype[Any], copy_dtype: np.dtype[Any]
) -> None:
    training = Training(variant, [normal(1, 40, dtype=dtype), normal(2, 5, 7, dtype=dtype)])
    copies = [np.zeros(variable.shape, copy_dtype) for variable in training.variables]
    for variable, copy in zip(training.variables, copies, strict=True):
        training.optimizer.set_low_precision_copy(variable, copy)
        assert_is_copy(copy, variable)
    for seed in (3, 4):
        before = [copy.tobytes() for copy in copies]
        training.step([normal(seed, 40, dtype=copy_dtype), normal(seed, 5, 7, dtype=copy_dtype)])
        for variable, copy in zip(training.variables, copies, strict=True):
            assert_is_copy(copy, variable)
        assert [copy.tobytes() for copy in copies] != before or variant == "Adadelta"


@EVERY_OPTIMIZER
def test_copy_changes_no_bit_of_the_variable(variant: str) -> None:
    actual, expected = Training(variant, [normal(1, 1000)]), Training(variant, [normal(1, 1000)])
    actual.optimizer.set_low_precision_copy(actual.variables[0], np.zeros(1000, np.float16))
    for seed in (2, 3):
        for training in (actual, expected):
            training.step([normal(seed, 1000, dtype=np.float16)])
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
@EVERY_PAIR
def test_copy_follows_sparse_steps(variant: str, dtype: np.dtype[Any], copy_dtype: np.dtype[Any]) -> None:
    training = Training(variant, [normal(1, 6, 3, dtype=dtype)])
    copy = np.zeros((6, 3), copy_dtype)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    for seed, rows in enumerate(([5, 0, 5], [2], [])):
        training.step([IndexedSlices(normal(seed, len(rows), 3), np.array(rows, np.int64))])
        assert_is_copy(copy, training.variables[0])


@A_FEW_OPTIMIZERS
@pytest.mark.parametrize("clip", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_copy_follows_clipped_steps(variant: str, clip: str) -> None:
    training = Training(variant, [normal(1, 50)], **{clip: 0.1})
    copy = np.zeros(50, BFLOAT16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    training.step([normal(2, 50, dtype=BFLOAT16)])
    assert_is_copy(copy, training.variables[0])


@PROPERTY
@given(
    st.sampled_from(PAIRS),
    st.sampled_from(WRITABLE_LAYOUTS),
    st.sampled_from(WRITABLE_LAYOUTS),
    st.sampled_from(FINITE_KINDS),
    st.sampled_from([(), (0,), (9,), (131,), (4, 5), (3, 2, 7)]),
    st.integers(0, 2**32 - 1),
)
def test_copy_of_any_layout_is_rounded_to_nearest_even(
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    layout: str,
    copy_layout: str,
    kind: str,
    shape: tuple[int, ...],
    seed: int,
) -> None:
    dtype, copy_dtype = dtypes
    rng = np.random.default_rng(seed)
    variable = laid_out(finite_values(rng, shape, dtype, kind), layout)
    copy = laid_out(np.zeros(shape, copy_dtype), copy_layout)
    start, memory = copy.copy(), whole_memory(copy)
    optimizer = build("GradientDescent", learning_rate=1.0)
    optimizer.set_low_precision_copy(variable, copy)
    assert_is_copy(copy, variable)
    optimizer.apply_gradients([(finite_values(rng, shape, dtype), variable)])
    assert_is_copy(copy, variable)
    # Only the elements were written, not the memory between them.
    copy[...] = start
    assert whole_memory(copy) == memory


@EVERY_PAIR
def test_ties_overflow_and_nan_are_rounded_correctly(dtype: np.dtype[Any], copy_dtype: np.dtype[Any]) -> None:
    special = [0.0, -0.0, 1.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-9, 1 + 3 * 2.0**-9]
    special += [
        65504.0,
        65519.0,
        65520.0,
        3e38,
        2.0**-24,
        2.0**-25,
        1.5 * 2.0**-25,
        2.0**-14 - 2.0**-25,
        1e-40,
    ]
    special += [np.inf, 1 + 2.0**-8 + 2.0**-23, 1 + 2.0**-11 + 2.0**-23]
    if dtype == FLOAT64:
        special += [1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-24 + 2.0**-50, 1e300, 1e-300]
    variable = np.array([*special, *(-value for value in special)]).astype(dtype)
    copy = np.zeros(variable.shape, copy_dtype)
    optimizer = build("GradientDescent")
    optimizer.set_low_precision_copy(variable, copy)
    assert_is_copy(copy, variable)
    copy[...] = 0
    optimizer.apply_gradients([(np.zeros(variable.shape, dtype), variable)])
    # A step with a gradient of zero may turn -0 into 0 in the variable itself.
    assert_is_copy(copy, variable)

    variable = np.array([np.nan, -np.nan]).astype(dtype)
    copy = np.zeros(2, copy_dtype)
    optimizer.set_low_precision_copy(variable, copy)
    assert np.isnan(copy.astype(np.float64)).all()


def test_copy_of_a_variable_without_gradient_is_unchanged() -> None:
    training = Training("Adam", [normal(1, 5), normal(2, 5)])
    copy = np.zeros(5, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    training.step([None, normal(3, 5)])
    assert_is_copy(copy, training.variables[0])


def test_copy_is_unchanged_by_a_skipped_step() -> None:
    training = Training("Adam", [normal(1, 5)], on_nonfinite="skip")
    copy = np.zeros(5, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    before = copy.tobytes()
    training.step([np.full(5, np.nan, np.float32)])
    assert training.optimizer.skipped_steps == 1
    assert copy.tobytes() == before


@pytest.mark.parametrize("bad", ["shape", "nonfinite"])
def test_copy_is_unchanged_by_a_refused_step(bad: str) -> None:
    training = Training("Adam", [normal(1, 5), normal(2, 5)], on_nonfinite="raise")
    copy = np.zeros(5, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    before = training.state(), copy.tobytes()
    refused = normal(3, 6) if bad == "shape" else np.full(5, np.inf, np.float32)
    with pytest.raises((ValueError, fastclip.NonFiniteError)):
        training.step([normal(4, 5), refused])
    assert (training.state(), copy.tobytes()) == before


def test_none_removes_the_copy() -> None:
    training = Training("Momentum", [normal(1, 5)])
    copy = np.zeros(5, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    training.step([normal(2, 5)])
    before = copy.tobytes()
    training.optimizer.set_low_precision_copy(training.variables[0], None)
    training.step([normal(3, 5)])
    assert copy.tobytes() == before


def test_another_copy_replaces_the_first() -> None:
    training = Training("Momentum", [normal(1, 5)])
    first, second = np.zeros(5, np.float16), np.zeros(5, BFLOAT16)
    training.optimizer.set_low_precision_copy(training.variables[0], first)
    before = first.tobytes()
    training.optimizer.set_low_precision_copy(training.variables[0], second)
    training.step([normal(2, 5)])
    assert first.tobytes() == before
    assert_is_copy(second, training.variables[0])


def test_copy_may_be_set_after_steps_were_taken() -> None:
    training = Training("Adam", [normal(1, 5)])
    training.step([normal(2, 5)])
    copy = np.zeros(5, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    assert_is_copy(copy, training.variables[0])
    training.step([normal(3, 5)])
    assert_is_copy(copy, training.variables[0])


def test_copy_of_a_variable_object() -> None:
    variable = fastclip.Variable(normal(1, 5))
    training = Training("Adam", [variable])
    copy = np.zeros(5, BFLOAT16)
    training.optimizer.set_low_precision_copy(variable, copy)
    training.step([normal(2, 5)])
    assert_is_copy(copy, variable.value)


def test_copy_follows_the_constraint() -> None:
    variable = fastclip.Variable(normal(1, 50), constraint=lambda value: np.maximum(value, 0))
    training = Training("GradientDescent", [variable])
    copy = np.zeros(50, np.float16)
    training.optimizer.set_low_precision_copy(variable, copy)
    training.step([normal(2, 50)])
    assert_is_copy(copy, variable.value)


REFUSED: dict[str, tuple[Any, type[Exception]]] = {
    "another shape": (np.zeros(5, np.float16), ValueError),
    "as many elements in another shape": (np.zeros((2, 3), np.float16), ValueError),
    "float32 for float32": (np.zeros(6, np.float32), TypeError),
    "float64": (np.zeros(6), TypeError),
    "integers": (np.zeros(6, np.int16), TypeError),
    "list": ([0.0] * 6, TypeError),
    "scalar": (np.float16(0), TypeError),
    "read-only": (read_only(np.zeros(6, np.float16)), ValueError),
    "the other byte order": (np.zeros(6, FLOAT16.newbyteorder()), ValueError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_copy_does_not_replace_the_previous_one(case: str) -> None:
    copy, exception = REFUSED[case]
    training = Training("Adam", [normal(1, 6)])
    first = np.zeros(6, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], first)
    before = training.state()
    with pytest.raises(exception, match="copy"):
        training.optimizer.set_low_precision_copy(training.variables[0], copy)
    assert training.state() == before
    training.step([normal(2, 6)])
    assert_is_copy(first, training.variables[0])


def test_copy_that_shares_memory_with_its_variable_is_refused() -> None:
    variable = normal(1, 6)
    optimizer = build("Adam")
    before = variable.tobytes()
    with pytest.raises(ValueError, match="copy"):
        optimizer.set_low_precision_copy(variable, variable.view(np.float16)[::2])
    assert variable.tobytes() == before


def test_copies_that_overlap_are_refused_before_anything_is_written() -> None:
    """They may be refused when the second is set, or in the next step."""
    training = Training("Adam", [normal(1, 6), normal(2, 6)])
    copy = np.zeros(6, np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    before = [variable.tobytes() for variable in training.variables]

    def set_and_step() -> None:
        training.optimizer.set_low_precision_copy(training.variables[1], copy)
        training.step([normal(3, 6), normal(4, 6)])

    with pytest.raises(ValueError, match="copy"):
        set_and_step()
    assert [variable.tobytes() for variable in training.variables] == before


def test_gradient_that_shares_memory_with_a_copy_is_read_before_it_is_written() -> None:
    """A model that computes with the copy may write its gradients to the copy's memory."""
    actual, expected = Training("Momentum", [normal(1, 300)]), Training("Momentum", [normal(1, 300)])
    copy = np.zeros(300, np.float16)
    actual.optimizer.set_low_precision_copy(actual.variables[0], copy)
    gradient = copy[::-1].copy()
    actual.step([copy[::-1]])
    expected.step([gradient])
    assert_same_training(actual, expected)
    assert_is_copy(copy, actual.variables[0])
