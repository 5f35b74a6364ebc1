"""Norms of finite elements that overflow, also before the division by a loss scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.train import AdamOptimizer, GradientDescentOptimizer


@pytest.mark.parametrize("order", [1, 2, 3])
def test_error_does_not_name_a_finite_tensor_whose_norm_overflows(order: float) -> None:
    large = np.full(1000, 1.7e308)
    tensors = {"large": large, "bad": np.array([1.0, np.nan]), "small": np.ones(3)}
    tensors["worse"] = np.array([np.inf])
    with np.errstate(all="ignore"):
        assert fastclip.tensor_norms(tensors, ord=order)[0] == np.inf
    with pytest.raises(fastclip.NonFiniteError) as raised:
        fastclip.clip_by_global_norm(tensors, 1.0, ord=order, on_nonfinite="raise")
    message = str(raised.value)
    assert "'bad'" in message
    assert "'worse'" in message
    assert "large" not in message
    assert "small" not in message


def test_error_of_a_step_does_not_name_finite_gradients() -> None:
    pairs = [(np.full(9, 1.7e308), np.ones(9)), (np.array([np.nan]), np.ones(1)), (np.ones(2), np.ones(2))]
    optimizer = AdamOptimizer(on_nonfinite="raise")
    with pytest.raises(fastclip.NonFiniteError) as raised:
        optimizer.apply_gradients(pairs)
    message = str(raised.value)
    assert "grads_and_vars[1][0]" in message
    assert "grads_and_vars[0][0]" not in message
    assert "grads_and_vars[2][0]" not in message


@pytest.mark.parametrize("size", [9, 5000])
@pytest.mark.parametrize("options", [{"global_clipnorm": 1.0}, {"clipnorm": 1.0}, {"on_nonfinite": "skip"}])
def test_norm_that_is_in_range_after_division_by_the_loss_scale_does_not_overflow(
    size: int, options: dict[str, Any]
) -> None:
    optimizer = GradientDescentOptimizer(1e-300, loss_scale=1024.0, **options)
    variable = np.zeros(size)
    optimizer.apply_gradients([(np.full(size, 1.5e308), variable)])
    assert optimizer.last_norm is not None
    exact = 1.5e308 / 1024 * np.sqrt(size)
    assert abs(float(optimizer.last_norm) / exact - 1) < 1e-14
    assert optimizer.skipped_steps == 0
    assert np.isfinite(variable).all()
    assert variable.all()


def test_norm_that_is_in_float32_range_after_division_by_the_loss_scale_is_correct() -> None:
    """The squares and the norm of the gradients overflow float32 before the division."""
    optimizer = GradientDescentOptimizer(0.1, loss_scale=2.0**40, global_clipnorm=1.0)
    variable = np.zeros(100, np.float32)
    optimizer.apply_gradients([(np.full(100, 3e38, np.float32), variable)])
    assert optimizer.last_norm is not None
    exact = float(np.float32(3e38)) * 10 / 2.0**40
    assert abs(float(optimizer.last_norm) / exact - 1) < 1e-6
    np.testing.assert_allclose(variable, -0.01, rtol=1e-6)
