"""Slots: their names, and their memory, which belongs to the optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import Variable
from fastclip.train import AdamOptimizer, AdamWOptimizer, GradientDescentOptimizer, MomentumOptimizer
from support.training_cases import (
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    build,
    normal,
    optimizer_class,
    reference,
    slots_of,
    some_gradients,
    some_variables,
)


def momentum_after_a_step(shape: tuple[int, ...]) -> tuple[MomentumOptimizer, Any]:
    variable = np.zeros(shape)
    optimizer = MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.arange(variable.size, dtype=float).reshape(shape), variable)])
    return optimizer, variable


def slot(optimizer: MomentumOptimizer, variable: Any) -> Any:
    array = optimizer.get_slot(variable, "momentum")
    assert array is not None
    return array


def test_reshaping_the_array_of_a_slot_does_not_affect_the_next_step() -> None:
    optimizer, variable = momentum_after_a_step((300, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy deprecates assigning to `shape`
        slot(optimizer, variable).shape = (600,)
    gradient = np.asfortranarray(np.ones((300, 2)))
    optimizer.apply_gradients([(gradient, variable)])
    expected = 0.5 * np.arange(600.0) + 1.0
    np.testing.assert_array_equal(slot(optimizer, variable).reshape(-1), expected)
    np.testing.assert_array_equal(variable.reshape(-1), -np.arange(600.0) - expected)


def test_base_of_a_slot_is_no_array() -> None:
    optimizer, variable = momentum_after_a_step((300, 2))
    assert not isinstance(slot(optimizer, variable).base, np.ndarray)
    assert slot(optimizer, variable) is not slot(optimizer, variable)


def test_gradient_that_is_a_view_of_a_slot_is_read_before_the_slot_is_written() -> None:
    optimizer, variable = momentum_after_a_step((5000,))
    before, start = slot(optimizer, variable).copy(), variable.copy()
    optimizer.apply_gradients([(slot(optimizer, variable)[::-1], variable)])
    expected = 0.5 * before + before[::-1]
    np.testing.assert_array_equal(slot(optimizer, variable), expected)
    np.testing.assert_array_equal(variable, start - expected)


def test_slot_and_its_variable_cannot_both_be_variables_of_a_step() -> None:
    optimizer, variable = momentum_after_a_step((50,))
    kept, start = slot(optimizer, variable).copy(), variable.copy()
    pairs = [(np.ones(50), variable), (np.ones(50), slot(optimizer, variable))]
    with pytest.raises(ValueError, match=r"slot of grads_and_vars.* shares memory"):
        optimizer.apply_gradients(pairs)
    np.testing.assert_array_equal(slot(optimizer, variable), kept)
    np.testing.assert_array_equal(variable, start)


def test_many_gradients_that_are_the_variables_themselves() -> None:
    variables = [np.full(3, float(i)) for i in range(3000)]
    GradientDescentOptimizer(0.5).apply_gradients([(w, w) for w in variables])
    assert all((w == i / 2).all() for i, w in enumerate(variables))


def test_shape_of_the_callers_array_may_change_between_steps() -> None:
    optimizer, variable = momentum_after_a_step((4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy deprecates assigning to `shape`
        variable.shape = (12,)
    state = optimizer.state_dict()
    assert state["shape.0"].tolist() == [4, 3]
    optimizer.load_state_dict(state)


def test_setting_a_low_precision_copy_does_not_change_the_order_of_variables() -> None:
    first, second = np.zeros(2), np.zeros(2)
    optimizer = MomentumOptimizer(1.0, 0.9)
    optimizer.set_low_precision_copy(second, np.zeros(2, np.float16))
    optimizer.apply_gradients([(np.ones(2), first), (np.full(2, 5.0), second)])
    resumed = MomentumOptimizer(1.0, 0.9)
    resumed.load_state_dict(optimizer.state_dict(), [first, second])
    np.testing.assert_array_equal(slot(resumed, first), [1.0, 1.0])
    np.testing.assert_array_equal(slot(resumed, second), [5.0, 5.0])


def test_loading_a_state_keeps_low_precision_copies_and_registers_no_variable() -> None:
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


def test_state_of_adam_without_moments_or_powers_is_refused() -> None:
    variable = np.zeros(3)
    optimizer = AdamOptimizer()
    optimizer.apply_gradients([(np.ones(3), variable)])
    state = optimizer.state_dict()
    for name in ("m.0", "v.0", "beta1_power", "beta2_power"):
        incomplete = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="state_dict has"):
            AdamOptimizer().load_state_dict(incomplete, [variable])


@pytest.mark.parametrize("kind", [AdamOptimizer, lambda: AdamWOptimizer(weight_decay=0.01)])
@pytest.mark.parametrize("layout", ["strided", "Fortran"])
def test_sparse_step_of_adam_updates_a_copy_of_any_layout(kind: Any, layout: str) -> None:
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
def test_optimizers_over_arrays_cannot_be_copied_or_pickled(duplicate: Any) -> None:
    optimizer, _ = momentum_after_a_step((3,))
    with pytest.raises(TypeError, match="state_dict"):
        duplicate(optimizer)


def test_each_hyper_parameter_is_called_once_per_step() -> None:
    calls: list[str] = []

    def logged(name: str, value: float) -> Any:
        return lambda: (calls.append(name), value)[1]

    optimizer = AdamOptimizer(
        logged("lr", 0.1), logged("beta1", 0.9), logged("beta2", 0.99), logged("eps", 1e-8)
    )
    variable = Variable([1.0])
    for _ in range(3):
        calls.clear()
        optimizer.apply_gradients([(np.float32([1.0]), variable)])
        assert sorted(calls) == ["beta1", "beta2", "eps", "lr"]


# --- get_slot, variables and names ---------------------------------------------------------------

SLOT_NAMES = {
    "GradientDescent": [],
    "Momentum": ["momentum"],
    "Nesterov": ["momentum"],
    "Adam": ["m", "v"],
    "AdamW": ["m", "v"],
    "Adagrad": ["accumulator"],
    "AdagradDA": ["gradient_accumulator", "gradient_squared_accumulator"],
    "RMSProp": ["momentum", "rms"],
    "RMSProp-centered": ["mg", "momentum", "rms"],
    "Adadelta": ["accum", "accum_update"],
    "Ftrl": ["accum", "linear"],
    "Ftrl-power": ["accum", "linear"],
    "ProximalGradientDescent": [],
    "ProximalAdagrad": ["accumulator"],
}


@EVERY_OPTIMIZER
def test_slots_are_created_by_the_first_step(variant: str) -> None:
    training = Training(variant, some_variables())
    optimizer = training.optimizer
    assert optimizer.get_slot_names() == []
    for name in SLOT_NAMES[variant]:
        assert optimizer.get_slot(training.variables[0], name) is None
    training.step(some_gradients())
    assert optimizer.get_slot_names() == SLOT_NAMES[variant]
    for variable in training.variables:
        for name in SLOT_NAMES[variant]:
            slot = optimizer.get_slot(variable, name)
            assert isinstance(slot, np.ndarray)
            assert slot.shape == variable.shape
            assert slot.dtype == variable.dtype
            assert slot.flags.writeable
        assert optimizer.get_slot(variable, "no such slot") is None
    assert optimizer.get_slot(normal(1, 4), "m") is None


@EVERY_OPTIMIZER
def test_get_slot_returns_the_optimizers_memory(variant: str) -> None:
    actual, expected = Training(variant, [normal(1, 5)]), Training(variant, [normal(1, 5)])
    for training in (actual, expected):
        training.step([normal(2, 5)])
    slots = slots_of(actual.optimizer, actual.variables[0])
    before = {name: slot.tobytes() for name, slot in slots.items()}
    for name, slot in slots.items():
        again = actual.optimizer.get_slot(actual.variables[0], name)
        assert np.shares_memory(slot, again)
    actual.step([normal(3, 5)])
    if slots:
        assert any(slot.tobytes() != before[name] for name, slot in slots.items())
    # Values written to a slot affect the next step.
    if slots:
        for slot in slots.values():
            slot[...] = 0.25
        expected.step([normal(3, 5)])
        for training in (actual, expected):
            training.step([normal(4, 5)])
        assert actual.variables[0].tobytes() != expected.variables[0].tobytes()


def test_view_of_a_variables_memory_is_the_same_variable() -> None:
    matrix = normal(1, 4, 4)
    optimizer = build("Adam")
    optimizer.apply_gradients([(normal(2, 4, 4), matrix)])
    m = optimizer.get_slot(matrix, "m")
    same = matrix[:]
    assert np.shares_memory(optimizer.get_slot(same, "m"), m)
    optimizer.apply_gradients([(normal(3, 4, 4), same)])
    assert np.shares_memory(optimizer.get_slot(matrix, "m"), m)
    expected = reference("Adam", [normal(1, 4, 4)])
    expected.apply([normal(2, 4, 4)])
    expected.apply([normal(3, 4, 4)])
    np.testing.assert_allclose(matrix, expected.variables[0], rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:10 variables:RuntimeWarning")
def test_new_array_at_the_address_of_a_deleted_variable_is_another_variable() -> None:
    optimizer = build("Momentum")
    for seed in range(40):
        variable = normal(seed, 1000)
        before = variable.copy()
        gradient = normal(seed + 100, 1000)
        optimizer.apply_gradients([(gradient, variable)])
        np.testing.assert_allclose(variable, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)
        del variable


@EVERY_OPTIMIZER
def test_variables_method_returns_the_memory_of_the_state(variant: str) -> None:
    training = Training(variant, some_variables())
    optimizer = training.optimizer
    training.step(some_gradients())
    state = optimizer.variables()
    assert all(isinstance(array, np.ndarray) for array in state)
    for variable in training.variables:
        for slot in slots_of(optimizer, variable).values():
            if slot.size:
                assert sum(np.shares_memory(slot, array) for array in state) == 1
    assert len(state) >= len(SLOT_NAMES[variant]) * len(training.variables)


@EVERY_OPTIMIZER
def test_get_name_returns_the_constructors_name(variant: str) -> None:
    assert build(variant).get_name() == VARIANTS[variant][0]
    assert build(variant, name="mine").get_name() == "mine"


def test_gates_have_tensorflow_values() -> None:
    optimizer = fastclip.train.Optimizer
    assert (optimizer.GATE_NONE, optimizer.GATE_OP, optimizer.GATE_GRAPH) == (0, 1, 2)
    assert issubclass(optimizer_class("Adam"), optimizer)
