"""Ftrl does not change an element whose gradients were all zero, like TensorFlow's kernel."""

from __future__ import annotations

import numpy as np
import pytest

from fastclip.train import FtrlOptimizer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("power", [-0.5, -0.25, -1.0])
@pytest.mark.parametrize("l1", [0.0, 0.25])
def test_an_element_without_gradient_stays_zero_where_the_accumulator_starts_at_zero(
    dtype: type[np.floating], power: float, l1: float
) -> None:
    # Longer than a SIMD register, and no multiple of its length.
    variable = np.zeros(37, dtype)
    gradient = np.zeros(37, dtype)
    gradient[::3] = 2.0
    optimizer = FtrlOptimizer(0.1, power, initial_accumulator_value=0.0, l1_regularization_strength=l1)
    for _ in range(3):
        optimizer.apply_gradients([(gradient, variable)])
    assert np.isfinite(variable).all()
    assert (variable[::3] < 0.0).all()
    untouched = np.arange(37) % 3 != 0
    assert (variable[untouched] == 0.0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_gradients_do_not_affect_the_first_nonzero_step(dtype: type[np.floating]) -> None:
    late, fresh = np.zeros(5, dtype), np.zeros(5, dtype)
    gradient = np.full(5, 0.5, dtype)
    first = FtrlOptimizer(0.1, initial_accumulator_value=0.0)
    first.apply_gradients([(np.zeros(5, dtype), late)])
    first.apply_gradients([(gradient, late)])
    second = FtrlOptimizer(0.1, initial_accumulator_value=0.0)
    second.apply_gradients([(gradient, fresh)])
    np.testing.assert_array_equal(late, fresh)


def test_nan_gradient_makes_the_element_nan() -> None:
    variable = np.zeros(5, np.float32)
    gradient = np.array([0.0, np.nan, 0.0, np.nan, 0.0], np.float32)
    FtrlOptimizer(0.1, initial_accumulator_value=0.0).apply_gradients([(gradient, variable)])
    np.testing.assert_array_equal(np.isnan(variable), np.isnan(gradient))
