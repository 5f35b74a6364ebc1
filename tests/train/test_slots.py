"""Slots are the optimizer's own, whatever is done with the arrays that show them."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip.train import AdamOptimizer, AdamWOptimizer, GradientDescentOptimizer, MomentumOptimizer


def momentum_after_a_step(shape: tuple[int, ...]) -> tuple[MomentumOptimizer, Any]:
    variable = np.zeros(shape)
    optimizer = MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.arange(variable.size, dtype=float).reshape(shape), variable)])
    return optimizer, variable


def slot(optimizer: MomentumOptimizer, variable: Any) -> Any:
    found = optimizer.get_slot(variable, "momentum")
    assert found is not None
    return found


def test_reshaping_the_array_over_a_slot_leads_a_step_nowhere_else() -> None:
    optimizer, variable = momentum_after_a_step((300, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy discourages it
        slot(optimizer, variable).shape = (600,)
    gradient = np.asfortranarray(np.ones((300, 2)))
    optimizer.apply_gradients([(gradient, variable)])
    expected = 0.5 * np.arange(600.0) + 1.0
    np.testing.assert_array_equal(slot(optimizer, variable).reshape(-1), expected)
    np.testing.assert_array_equal(variable.reshape(-1), -np.arange(600.0) - expected)


def test_nothing_that_a_slot_is_based_on_is_an_array() -> None:
    optimizer, variable = momentum_after_a_step((300, 2))
    assert not isinstance(slot(optimizer, variable).base, np.ndarray)
    assert slot(optimizer, variable) is not slot(optimizer, variable)


def test_gradient_that_is_a_part_of_a_slot_is_read_before_the_slot_is_written() -> None:
    optimizer, variable = momentum_after_a_step((5000,))
    before, start = slot(optimizer, variable).copy(), variable.copy()
    optimizer.apply_gradients([(slot(optimizer, variable)[::-1], variable)])
    expected = 0.5 * before + before[::-1]
    np.testing.assert_array_equal(slot(optimizer, variable), expected)
    np.testing.assert_array_equal(variable, start - expected)


def test_slot_is_no_variable_beside_the_one_that_it_belongs_to() -> None:
    optimizer, variable = momentum_after_a_step((50,))
    kept, start = slot(optimizer, variable).copy(), variable.copy()
    pairs = [(np.ones(50), variable), (np.ones(50), slot(optimizer, variable))]
    with pytest.raises(ValueError, match=r"slot of grads_and_vars.* shares memory"):
        optimizer.apply_gradients(pairs)
    np.testing.assert_array_equal(slot(optimizer, variable), kept)
    np.testing.assert_array_equal(variable, start)


def test_many_gradients_that_are_their_variables_are_read_first() -> None:
    variables = [np.full(3, float(i)) for i in range(3000)]
    GradientDescentOptimizer(0.5).apply_gradients([(w, w) for w in variables])
    assert all((w == i / 2).all() for i, w in enumerate(variables))


def test_shape_of_the_callers_array_may_change_between_steps() -> None:
    optimizer, variable = momentum_after_a_step((4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy discourages it
        variable.shape = (12,)
    state = optimizer.state_dict()
    assert state["shape.0"].tolist() == [4, 3]
    optimizer.load_state_dict(state)


def test_copy_that_is_set_first_does_not_change_the_order_of_variables() -> None:
    first, second = np.zeros(2), np.zeros(2)
    optimizer = MomentumOptimizer(1.0, 0.9)
    optimizer.set_low_precision_copy(second, np.zeros(2, np.float16))
    optimizer.apply_gradients([(np.ones(2), first), (np.full(2, 5.0), second)])
    resumed = MomentumOptimizer(1.0, 0.9)
    resumed.load_state_dict(optimizer.state_dict(), [first, second])
    np.testing.assert_array_equal(slot(resumed, first), [1.0, 1.0])
    np.testing.assert_array_equal(slot(resumed, second), [5.0, 5.0])


def test_loading_a_state_keeps_copies_and_meets_nothing_else() -> None:
    variable, half = np.zeros(2), np.zeros(2, np.float16)
    saved = MomentumOptimizer(1.0, 0.9)
    saved.apply_gradients([(np.ones(2), variable)])
    state = saved.state_dict()
    resumed = MomentumOptimizer(1.0, 0.9)
    resumed.set_low_precision_copy(variable, half)
    resumed.load_state_dict(state, [variable])
    assert resumed.state_dict().keys() == state.keys()
    resumed.apply_gradients([(np.ones(2), variable)])
    np.testing.assert_array_equal(half, variable.astype(np.float16))


@pytest.mark.parametrize("missing", ["momentum.0", "has_slots", "shape.0", "variables"])
def test_incomplete_state_is_refused(missing: str) -> None:
    optimizer, variable = momentum_after_a_step((3,))
    state = optimizer.state_dict()
    del state[missing]
    with pytest.raises(ValueError, match=missing.replace(".", r"\.")):
        MomentumOptimizer(1.0, 0.5).load_state_dict(state, [variable])


def test_adam_without_its_powers_is_refused() -> None:
    variable = np.zeros(3)
    optimizer = AdamOptimizer()
    optimizer.apply_gradients([(np.ones(3), variable)])
    state = optimizer.state_dict()
    for name in ("m.0", "v.0", "beta1_power", "beta2_power"):
        part = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="state_dict has"):
            AdamOptimizer().load_state_dict(part, [variable])


@pytest.mark.parametrize("kind", [AdamOptimizer, lambda: AdamWOptimizer(0.01)])
@pytest.mark.parametrize("layout", ["strided", "Fortran"])
def test_rows_of_adam_go_with_a_copy_of_any_layout(kind: Any, layout: str) -> None:
    from fastclip import IndexedSlices

    variables = [np.arange(12.0).reshape(4, 3).astype(np.float32) for _ in range(2)]
    halves = [
        np.zeros((4, 3), np.float16),
        np.zeros((4, 3), np.float16, order="F")
        if layout == "Fortran"
        else np.zeros((4, 6), np.float16)[:, ::2],
    ]
    for variable, half in zip(variables, halves, strict=True):
        optimizer = kind()
        optimizer.set_low_precision_copy(variable, half)
        for rows in ([3, 1, 3], [0]):
            gradient = IndexedSlices(np.ones((len(rows), 3), np.float32), rows)
            optimizer.apply_gradients([(gradient, variable)])
    assert variables[0].tobytes() == variables[1].tobytes()
    np.testing.assert_array_equal(halves[0], halves[1])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_optimizers_are_not_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError, match="state_dict"):
        duplicate(AdamOptimizer())


def test_each_hyper_parameter_is_asked_for_once_a_step() -> None:
    calls: list[str] = []

    def asked(name: str, value: float) -> Any:
        return lambda: (calls.append(name), value)[1]

    optimizer = AdamOptimizer(asked("lr", 0.1), asked("beta1", 0.9), asked("beta2", 0.99), asked("eps", 1e-8))
    variable = Variable([1.0])
    for _ in range(3):
        calls.clear()
        optimizer.apply_gradients([(np.float32([1.0]), variable)])
        assert sorted(calls) == ["beta1", "beta2", "eps", "lr"]
