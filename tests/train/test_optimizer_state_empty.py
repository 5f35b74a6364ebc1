"""States with several variables without elements that have the same address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.strategies import finite_values
from support.training_cases import EVERY_OPTIMIZER, Training, assert_same_training


def empty_views(count: int) -> list[Any]:
    """Returns views without rows, all of the same shape and address."""
    weights = np.zeros((2, 3), np.float32)
    return [weights[0:0] for _ in range(count)]


def values(seed: int) -> Any:
    return finite_values(np.random.default_rng(seed), (4,), np.float32)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("count", [1, 2, 3])
def test_state_with_empty_variables_at_one_address_is_loaded_in_its_order(
    variant: str, count: int, tmp_path: Path
) -> None:
    unbroken = Training(
        variant, [values(0), *(np.zeros((0, 3), np.float32) for _ in range(count)), values(1)]
    )
    gradients = [values(2), *(np.zeros((0, 3), np.float32) for _ in range(count)), values(3)]
    unbroken.step(gradients)
    state = unbroken.optimizer.state_dict()
    assert int(state["variables"]) == count + 2

    variables = [unbroken.variables[0].copy(), *empty_views(count), unbroken.variables[-1].copy()]
    other = Training(variant, variables)
    other.global_step[...] = unbroken.global_step
    other.optimizer.load_state_dict(state, variables)
    again = other.optimizer.state_dict()
    assert sorted(again) == sorted(state)
    for name, array in state.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes(), name
    for training in (other, unbroken):
        training.step(gradients)
    assert_same_training(other, unbroken)
    assert int(other.optimizer.state_dict()["variables"]) == count + 2


def test_state_of_empty_variables_at_one_address_is_loaded_again() -> None:
    training = Training("Adam", [*empty_views(2), values(1)])
    gradients = [np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), values(3)]
    training.step(gradients)
    state = training.optimizer.state_dict()
    assert int(state["variables"]) == 3
    other = Training("Adam", [*empty_views(2), training.variables[-1].copy()])
    other.optimizer.load_state_dict(state, other.variables)
    assert int(other.optimizer.state_dict()["variables"]) == 3
    for each in (training, other):
        each.step(gradients)
    assert other.variables[-1].tobytes() == training.variables[-1].tobytes()
    assert other.optimizer.get_slot(other.variables[-1], "m").tobytes() == (
        training.optimizer.get_slot(training.variables[-1], "m").tobytes()
    )


def test_state_with_empty_variables_at_one_address_is_loaded_without_var_list() -> None:
    unbroken = Training("Adam", [values(0), *(np.zeros((0, 3), np.float32) for _ in range(2)), values(1)])
    gradients = [values(2), *(np.zeros((0, 3), np.float32) for _ in range(2)), values(3)]
    unbroken.step(gradients)
    state = unbroken.optimizer.state_dict()
    other = Training("Adam", [unbroken.variables[0].copy(), *empty_views(2), unbroken.variables[-1].copy()])
    other.optimizer.load_state_dict(state, other.variables)
    other.optimizer.load_state_dict(other.optimizer.state_dict())
    assert int(other.optimizer.state_dict()["variables"]) == 4
    other.optimizer.load_state_dict(state)
    assert other.optimizer.get_slot(other.variables[-1], "m").tobytes() == state["m.3"].tobytes()
