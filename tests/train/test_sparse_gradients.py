"""Steps with sparse gradients: rows that are absent, repeated or of a narrow dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastclip import IndexedSlices
from support.dtypes import BFLOAT16, dtype_id
from support.training_cases import (
    EVERY_OPTIMIZER,
    VARIABLE_DTYPES,
    VARIANTS,
    Training,
    assert_agrees_with_reference,
    assert_same_training,
    normal,
    reference,
    slices,
    slots_of,
)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("index_dtype", ["int64", "int32", "uint8", "uint64", "int16"])
def test_sparse_steps_agree_with_the_formula(variant: str, dtype: np.dtype[Any], index_dtype: str) -> None:
    training = Training(variant, [normal(1, 9, 2, 3, dtype=dtype), normal(2, 7, dtype=dtype)])
    expected = reference(variant, training.variables)
    steps = [([8, 0, 8, 8], [6, 6]), ([3], []), ([], [0, 1, 2, 3, 4, 5, 6]), ([7, 1, 0, 1], [3])]
    for seed, (first, second) in enumerate(steps):
        gradients = [slices(seed, first, (9, 2, 3), dtype), slices(seed + 9, second, (7,), dtype)]
        for gradient in gradients:
            gradient.indices = gradient.indices.astype(index_dtype)
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("Adam")])
def test_rows_without_gradient_keep_their_bits(variant: str) -> None:
    training = Training(variant, [normal(1, 6, 3)])
    training.step([normal(2, 6, 3)])
    variable = training.variables[0]
    slots = {name: slot for name, slot in slots_of(training.optimizer, variable).items() if slot is not None}
    before = {name: slot.copy() for name, slot in slots.items()}
    value = variable.copy()
    training.step([slices(3, [4, 1, 4], (6, 3))])
    stay, move = [0, 2, 3, 5], [1, 4]
    assert variable[stay].tobytes() == value[stay].tobytes()
    assert (variable[move] != value[move]).any()
    for name, slot in slots.items():
        assert slot[stay].tobytes() == before[name][stay].tobytes()


@pytest.mark.parametrize("variant", ["Adam", "AdamW"])
def test_adam_updates_rows_without_gradient(variant: str) -> None:
    training = Training(variant, [normal(1, 6, 3)])
    training.step([normal(2, 6, 3)])
    variable = training.variables[0]
    value, m = variable.copy(), training.optimizer.get_slot(variable, "m").copy()
    training.step([slices(3, [4], (6, 3))])
    assert (variable[[0, 1, 2, 3, 5]] != value[[0, 1, 2, 3, 5]]).all()
    m_now = training.optimizer.get_slot(variable, "m")
    np.testing.assert_allclose(m_now[0], m[0] * 0.9, rtol=1e-6)


@pytest.mark.parametrize("variant", ["Adam", "AdamW"])
def test_sparse_step_of_adam_has_the_bits_of_the_dense_step(variant: str) -> None:
    sparse, dense = Training(variant, [normal(1, 6, 3)]), Training(variant, [normal(1, 6, 3)])
    for seed, rows in enumerate(([4, 1], [0], [], [5, 2, 3])):
        gradient = slices(seed, rows, (6, 3))
        sparse.step([gradient])
        dense.step([gradient.to_dense()])
        assert_same_training(sparse, dense)


@EVERY_OPTIMIZER
def test_repeated_rows_have_the_effect_of_their_sum(variant: str) -> None:
    repeated, summed = Training(variant, [normal(1, 6, 3)]), Training(variant, [normal(1, 6, 3)])
    for seed, rows in enumerate(([4, 1, 4], [0, 0], [2, 5, 2, 5])):
        # Multiples of a quarter are added without rounding errors, in any order.
        gradient = slices(seed, rows, (6, 3))
        gradient.values = np.rint(4 * gradient.values) / 4
        repeated.step([gradient])
        summed.step([gradient.coalesce()])
    for a, b in zip(repeated.variables, summed.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        for name, slot in slots_of(repeated.optimizer, a).items():
            np.testing.assert_allclose(slot, summed.optimizer.get_slot(b, name), rtol=1e-6, atol=1e-7)


@EVERY_OPTIMIZER
def test_slices_without_rows_do_not_change_the_variable(variant: str) -> None:
    training = Training(variant, [normal(1, 4, 2), normal(2, 3)])
    before = training.variables[0].tobytes()
    training.step([IndexedSlices(np.zeros((0, 2), np.float32), []), normal(3, 3)])
    if variant != "AdamW":  # weight decay changes every row
        assert training.variables[0].tobytes() == before
    assert training.global_step == 1


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    ("gradient_dtype", "dtype"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float16", "float64"), ("bfloat16", "float64")],
)
def test_repeated_rows_of_narrow_slices_are_summed_without_rounding_to_their_type(
    variant: str, gradient_dtype: str, dtype: str
) -> None:
    """The exact sum of 16-bit numbers has more significant bits than they have."""
    training = Training(variant, [normal(1, 5, 3, dtype=dtype)])
    expected = reference(variant, training.variables)
    narrow = BFLOAT16 if gradient_dtype == "bfloat16" else np.dtype(gradient_dtype)
    for seed, rows in enumerate(([4, 0, 4], [1, 1, 1], [2, 3, 2, 3])):
        gradient = slices(seed, rows, (5, 3), narrow)
        training.step([gradient])
        expected.apply([gradient])
        assert_agrees_with_reference(training, expected)
