"""Gradients and variables of any dtype and memory layout, and gradients that share memory with variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from fastclip import IndexedSlices
from support.dtypes import BFLOAT16, REAL_DTYPES, dtype_id
from support.strategies import LAYOUTS, PROPERTY, WRITABLE_LAYOUTS, finite_values, laid_out
from support.training_cases import (
    EVERY_OPTIMIZER,
    VARIABLE_DTYPES,
    VARIANTS,
    Training,
    assert_agrees_with_reference,
    assert_same_training,
    build,
    normal,
    reference,
    slices,
    slots_of,
    some_gradients,
    some_variables,
    whole_memory,
)

# --- dtypes and layouts -------------------------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize("gradient_dtype", REAL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
def test_gradients_may_be_narrower_or_wider_than_variables(
    variant: str, dtype: np.dtype[Any], gradient_dtype: np.dtype[Any]
) -> None:
    training = Training(variant, some_variables(dtype))
    expected = reference(variant, training.variables)
    for seed in (50, 60, 70):
        gradients = some_gradients(seed, gradient_dtype)
        # Without repeated rows; how these are summed is tested in test_sparse_gradients.py.
        gradients[1] = slices(seed, [3, 0, 4], (5, 3), gradient_dtype)
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)
    for variable in training.variables:
        for slot in slots_of(training.optimizer, variable).values():
            assert slot.dtype == dtype
            assert slot.shape == variable.shape


@EVERY_OPTIMIZER
@pytest.mark.parametrize("gradient_dtype", REAL_DTYPES[:2], ids=dtype_id)
def test_narrow_gradient_has_the_effect_of_the_same_numbers_in_float32(
    variant: str, gradient_dtype: np.dtype[Any]
) -> None:
    narrow, wide = Training(variant, some_variables()), Training(variant, some_variables())
    for seed in (50, 60):
        gradients = some_gradients(seed, gradient_dtype)
        # Without repeated rows; how these are summed is tested in test_sparse_gradients.py.
        gradients[1] = slices(seed, [3, 0, 4], (5, 3), gradient_dtype)
        narrow.step(gradients)
        wide.step(widened(gradient) for gradient in gradients)
        assert_same_training(narrow, wide)


def widened(gradient: Any) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.astype(np.float32), gradient.indices)
    return gradient.astype(np.float32)


def test_dtypes_may_be_mixed_in_a_step() -> None:
    variables = [normal(1, 5), normal(2, 5, dtype=np.float64), normal(3, 7), normal(4, 70)]
    dtypes = [BFLOAT16, np.float16, np.float64, np.float32]
    training = Training("Adam", variables)
    expected = reference("Adam", variables)
    for seed in (10, 20):
        gradients = [
            normal(seed + i, *variable.shape, dtype=dtype)
            for i, (variable, dtype) in enumerate(zip(variables, dtypes, strict=True))
        ]
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)


def test_gradient_may_be_a_list_of_floats() -> None:
    actual, expected = Training("Adam", [normal(1, 2, 2)]), Training("Adam", [normal(1, 2, 2)])
    actual.step([[[1.0, 2.0], [3.0, 4.0]]])
    expected.step([np.array([[1.0, 2.0], [3.0, 4.0]])])
    assert_same_training(actual, expected)


def test_gradient_may_have_the_other_byte_order() -> None:
    actual, expected = Training("Adam", [normal(1, 5)]), Training("Adam", [normal(1, 5)])
    gradient = normal(2, 5)
    actual.step([gradient.astype(gradient.dtype.newbyteorder())])
    expected.step([gradient])
    assert_same_training(actual, expected)


def test_variable_may_be_any_writable_buffer() -> None:
    memory = bytearray(normal(1, 5).tobytes())
    buffer = memoryview(memory).cast("f")
    optimizer = build("Momentum")
    expected = Training("Momentum", [normal(1, 5)])
    for seed in (2, 3):
        optimizer.apply_gradients([(normal(seed, 5), buffer)])
        expected.step([normal(seed, 5)])
    assert bytes(memory) == expected.variables[0].tobytes()


@st.composite
def layouts_of_a_training(draw: st.DrawFn) -> tuple[str, Any, list[Any]]:
    """Draws an optimizer, a variable and gradients, in any memory layouts."""
    variant = draw(st.sampled_from(list(VARIANTS)))
    dtype = draw(st.sampled_from(VARIABLE_DTYPES))
    shape = draw(st.sampled_from([(), (0,), (3, 0, 2), (7,), (133,), (4, 5), (3, 17), (2, 3, 4), (1, 1, 9)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    variable = laid_out(finite_values(rng, shape, dtype), draw(st.sampled_from(WRITABLE_LAYOUTS)))
    gradients = []
    for _ in range(2):
        gradient_dtype = draw(st.sampled_from(REAL_DTYPES))
        kind = draw(st.sampled_from(["normal", "sparse", "constant"]))
        values = finite_values(rng, shape, gradient_dtype, kind)
        gradients.append(laid_out(values, draw(st.sampled_from(LAYOUTS))))
    return variant, variable, gradients


@PROPERTY
@given(layouts_of_a_training(), st.sampled_from([{}, {"global_clipnorm": 0.7}, {"clipvalue": 0.5}]))
def test_any_layout_gives_the_bits_of_contiguous_copies(
    drawn: tuple[str, Any, list[Any]], clip: dict[str, float]
) -> None:
    variant, variable, gradients = drawn
    start, memory = variable.copy(), whole_memory(variable)
    contiguous = Training(variant, [np.array(variable, order="C")], **clip)
    training = Training(variant, [variable], **clip)
    expected = reference(variant, [variable])
    for gradient in gradients:
        before = whole_memory(gradient)
        training.step([gradient])
        assert whole_memory(gradient) == before
        contiguous.step([np.array(gradient, order="C")])
        if not clip:
            expected.apply([gradient])
            assert_agrees_with_reference(training, expected)
    assert_same_training(training, contiguous)
    # Only the elements were written, not the memory between them.
    variable[...] = start
    assert whole_memory(variable) == memory


@EVERY_OPTIMIZER
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_sparse_step_accepts_any_layout(variant: str, layout: str) -> None:
    values = normal(1, 6, 5)
    training = Training(variant, [laid_out(values, layout)])
    contiguous = Training(variant, [values.copy()])
    for seed, rows in enumerate(([5, 0, 5], [2], [], [1, 1, 1, 4])):
        gradient = slices(seed, rows, (6, 5))
        indices = laid_out(gradient.indices, "stepped" if rows else "C")
        contiguous.step([gradient])
        training.step([IndexedSlices(laid_out(gradient.values, layout), indices)])
        assert_same_training(training, contiguous)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
def test_long_arrays_agree_with_the_formula(variant: str, dtype: np.dtype[Any]) -> None:
    """The arrays have several chunks, and no multiple of a SIMD register's elements."""
    variables = [normal(1, 70_001, dtype=dtype), normal(2, 3, dtype=dtype), normal(3, 300, 301, dtype=dtype)]
    training = Training(variant, variables)
    expected = reference(variant, variables)
    for seed in (10, 20):
        gradients = [normal(seed + i, *v.shape, dtype=dtype) for i, v in enumerate(variables)]
        training.step(gradients)
        expected.apply(gradients)
    assert_agrees_with_reference(training, expected)


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "clip", [{}, {"global_clipnorm": 1.0}, {"clipnorm": 1.0}, {"clipvalue": 1.0}], ids=str
)
def test_variables_may_all_be_empty(variant: str, clip: dict[str, float]) -> None:
    training = Training(variant, [np.zeros(0, np.float32), np.zeros((3, 0, 2))], **clip)
    for _ in range(2):
        training.step([np.zeros(0, np.float32), IndexedSlices(np.zeros((2, 0, 2)), [1, 1])])
    assert training.global_step == 2
    assert training.optimizer.last_norm is None or training.optimizer.last_norm == 0


# --- shared memory ------------------------------------------------------------------------


def shared_gradients(first: Any, second: Any) -> dict[str, list[Any]]:
    """Returns gradients of two square matrices that are views of the matrices themselves."""
    half_precision = np.frombuffer(first, np.float16).reshape(8, 16)[:, :8]
    return {
        "the variable": [first, second],
        "each other": [second, first],
        "reversed": [first[::-1, ::-1], None],
        "transposed": [first.T, second.T],
        "one row repeated": [np.broadcast_to(first[3], (8, 8)), None],
        "shifted": [as_strided(first, (8, 8), (24, 4)), None],
        "bits read as float16": [half_precision, None],
        "rows of the variable": [IndexedSlices(first[1:4], [5, 2, 3]), None],
        "reversed rows": [IndexedSlices(first[::-1], np.arange(8)), first],
        "rows of the other": [IndexedSlices(second[:3], [0, 0, 7]), IndexedSlices(first[:3], [1, 2, 3])],
    }


@pytest.mark.parametrize("case", shared_gradients(np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)))
@pytest.mark.parametrize("variant", ["GradientDescent", "Nesterov", "Adam", "Adagrad"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_gradient_that_shares_memory_with_a_variable_is_read_before_it_is_written(
    variant: str, case: str, clip: dict[str, float]
) -> None:
    start = [normal(1, 8, 8), normal(2, 8, 8)]
    shared = Training(variant, [value.copy() for value in start], **clip)
    copied = Training(variant, [value.copy() for value in start], **clip)
    gradients = shared_gradients(*shared.variables)[case]
    copies = [
        IndexedSlices(g.values.copy(), g.indices)
        if isinstance(g, IndexedSlices)
        else g
        if g is None
        else g.copy()
        for g in gradients
    ]
    shared.step(gradients)
    copied.step(copies)
    assert_same_training(shared, copied)


@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_gradient_that_is_a_slot_is_read_before_it_is_written(clip: dict[str, float]) -> None:
    actual, expected = (Training("Momentum", [normal(1, 100)], **clip) for _ in range(2))
    for training in (actual, expected):
        training.step([normal(2, 100)])
    slot = actual.optimizer.get_slot(actual.variables[0], "momentum")
    copy = slot[::-1].copy()
    actual.step([slot[::-1]])
    expected.step([copy])
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
def test_gradients_are_never_written(variant: str) -> None:
    training = Training(variant, some_variables(), global_clipnorm=0.1)
    gradients = some_gradients()
    for gradient in gradients:
        (gradient.values if isinstance(gradient, IndexedSlices) else gradient).flags.writeable = False
    before = [(g.values if isinstance(g, IndexedSlices) else g).tobytes() for g in gradients]
    training.step(gradients)
    assert [(g.values if isinstance(g, IndexedSlices) else g).tobytes() for g in gradients] == before
