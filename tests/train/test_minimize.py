"""minimize: compute_gradients followed by apply_gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.training_cases import (
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    build,
    normal,
)


def half_square(values: Sequence[Any]) -> float:
    return float(sum(np.sum(np.square(value)) for value in values)) / 2


def engine(loss: Any, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns the gradients of `half_square`, which are the values themselves."""
    return loss(*values), [np.array(value) for value in values]


@EVERY_OPTIMIZER
def test_minimize_is_compute_gradients_and_apply_gradients(variant: str) -> None:
    variables = [normal(1, 4), normal(2, 3, 2)]
    actual = Training(variant, [value.copy() for value in variables])
    expected = Training(variant, [value.copy() for value in variables])
    for _ in range(3):
        result = actual.optimizer.minimize(
            lambda *values: half_square(values), actual.global_step, actual.variables, backend=engine
        )
        assert result is None
        expected.step([value.copy() for value in expected.variables])
    assert_same_training(actual, expected)
    assert half_square(actual.variables) < half_square(variables)


def test_minimize_without_gradients_is_refused() -> None:
    training = Training("Adam", [normal(1, 4)])
    before = training.state()
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        training.optimizer.minimize(
            lambda value: 0.0,
            training.global_step,
            training.variables,
            backend=lambda loss, values: (loss(*values), [None]),
        )
    assert training.state() == before


@EVERY_OPTIMIZER
def test_minimize_decreases_a_quadratic_function(variant: str) -> None:
    pytest.importorskip("autograd")
    goal = np.array([1.0, -2.0, 3.0])
    variable = np.zeros(3)
    optimizer = build(variant)
    for _ in range(30):
        optimizer.minimize(lambda w: ((w - goal) ** 2).sum(), var_list=[variable])
    assert np.sum((variable - goal) ** 2) < np.sum(goal**2)
