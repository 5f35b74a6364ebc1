"""A step's counter that shares memory with variables, slots or copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastclip.train import AdagradDAOptimizer, GradientDescentOptimizer, MomentumOptimizer
from support.training_cases import snapshot


def counter_in(array: Any, offset: int = 0) -> Any:
    """Returns a counter that is a view of eight bytes of an array's memory."""
    return array.view(np.uint8).reshape(-1)[offset : offset + 8].view(np.int64).reshape(())


@pytest.mark.parametrize("offset", [0, 8, 20, 3])
def test_counter_in_the_memory_of_a_variable_is_refused(offset: int) -> None:
    other, variable = np.ones(3, np.float32), np.ones(100, np.float32)
    optimizer = MomentumOptimizer(0.1, 0.9)
    optimizer.apply_gradients([(np.ones(100, np.float32), variable)])
    counter = counter_in(variable, offset)
    before = snapshot(optimizer, variable, other, counter)
    pairs = [(np.ones(3, np.float32), other), (np.ones(100, np.float32), variable)]
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients(pairs, counter)
    assert snapshot(optimizer, variable, other, counter) == before


def test_counter_in_the_memory_of_a_slot_is_refused() -> None:
    variable = np.ones(100, np.float32)
    optimizer = MomentumOptimizer(0.1, 0.9)
    pairs = [(np.ones(100, np.float32), variable)]
    optimizer.apply_gradients(pairs)
    counter = counter_in(optimizer.get_slot(variable, "momentum"), 16)
    before = snapshot(optimizer, variable)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients(pairs, counter)
    assert snapshot(optimizer, variable) == before


def test_counter_in_the_memory_of_a_low_precision_copy_is_refused() -> None:
    variable, half = np.ones(100, np.float32), np.zeros(100, np.float16)
    optimizer = GradientDescentOptimizer(0.1)
    optimizer.set_low_precision_copy(variable, half)
    counter = counter_in(half, 16)
    before = snapshot(optimizer, variable, half, counter)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients([(np.ones(100, np.float32), variable)], counter)
    assert snapshot(optimizer, variable, half, counter) == before


def test_counter_between_the_elements_of_a_variable_is_accepted() -> None:
    buffer = np.zeros(64, np.float64)
    variable, counter = buffer[::2], counter_in(buffer, 8)
    GradientDescentOptimizer(0.5).apply_gradients([(np.ones(32), variable)], counter)
    assert int(counter) == 1
    np.testing.assert_array_equal(variable, -0.5)


def test_global_step_of_the_constructor_may_be_that_of_the_step() -> None:
    counter, variable = np.zeros((), np.int64), np.ones(3)
    AdagradDAOptimizer(0.5, counter).apply_gradients([(np.ones(3), variable)], counter)
    assert int(counter) == 1
