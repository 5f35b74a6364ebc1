"""apply_gradients: the pairs that it accepts, the global step, and hyper-parameters that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastclip
from support.reference_optimizers import ReferenceOptimizer
from support.training_cases import (
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    assert_agrees_with_reference,
    assert_same_training,
    build,
    normal,
    reference,
    slots_of,
    some_gradients,
    some_variables,
)

Pairs = list[tuple[Any, Any]]


# --- containers ----------------------------------------------------------------


def as_generator(pairs: Pairs) -> Iterator[Any]:
    yield from pairs


@pytest.mark.parametrize(
    "container",
    [
        tuple,
        iter,
        as_generator,
        lambda pairs: zip(*zip(*pairs, strict=True), strict=True),
        lambda p: map(list, p),
    ],
    ids=["tuple", "iterator", "generator", "zip", "lists"],
)
def test_pairs_may_come_in_any_iterable(container: Callable[[Pairs], Any]) -> None:
    actual, expected = Training("Adam", some_variables()), Training("Adam", some_variables())
    gradients = some_gradients()
    expected.step(gradients)
    pairs = list(zip(gradients, actual.variables, strict=True))
    result = actual.optimizer.apply_gradients(container(pairs), actual.global_step)
    assert result is None
    assert_same_training(actual, expected)


def test_name_is_accepted_and_unused() -> None:
    actual, expected = Training("Adam", some_variables()), Training("Adam", some_variables())
    pairs = list(zip(some_gradients(), actual.variables, strict=True))
    actual.optimizer.apply_gradients(grads_and_vars=pairs, global_step=actual.global_step, name="train")
    expected.step(some_gradients())
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
def test_variable_without_gradient_keeps_its_bits_and_gets_no_slots(variant: str) -> None:
    training = Training(variant, some_variables())
    gradients = some_gradients()
    gradients[0] = None
    before = training.variables[0].tobytes()
    training.step(gradients)
    assert training.variables[0].tobytes() == before
    assert all(slot is None for slot in slots_of(training.optimizer, training.variables[0]).values())
    assert training.variables[4].tobytes() != some_variables()[4].tobytes()


@EVERY_OPTIMIZER
def test_step_with_some_of_the_variables_is_a_step_with_none_for_the_others(variant: str) -> None:
    actual, expected = Training(variant, some_variables()), Training(variant, some_variables())
    for chosen in ([0, 1], [4, 0], [2, 1, 4], [1]):
        gradients = some_gradients(50 + len(chosen))
        expected.step([gradients[i] if i in chosen else None for i in range(5)])
        pairs = [(gradients[i], actual.variables[i]) for i in chosen]
        actual.optimizer.apply_gradients(pairs, actual.global_step)
        assert_same_training(actual, expected)


# --- global_step, learning rate --------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "uint8", "uint64"])
def test_global_step_array_grows_by_one(dtype: str) -> None:
    global_step = np.array(7, dtype)
    optimizer, variables = build("GradientDescent"), some_variables()
    for expected in (8, 9):
        optimizer.apply_gradients(
            list(zip(some_gradients(), variables, strict=True)), global_step=global_step
        )
        assert global_step == expected
    assert global_step.dtype == dtype


def test_global_step_variable_grows_by_one() -> None:
    global_step = fastclip.Variable(np.array(3, np.int64), trainable=False)
    memory = global_step.value
    optimizer, variables = build("Adam"), some_variables()
    optimizer.apply_gradients(list(zip(some_gradients(), variables, strict=True)), global_step)
    assert int(global_step.numpy()) == 4
    assert memory == 4


@pytest.mark.parametrize("kind", ["array", "Variable"])
def test_adagrad_da_reads_the_global_step_of_its_constructor(kind: str) -> None:
    """With l1 the update depends on the global step, which is read before `apply_gradients` increments it."""
    value = np.array(0, np.int64)
    global_step = value if kind == "array" else fastclip.Variable(value, trainable=False)
    optimizer, variable = build("AdagradDA", global_step), normal(1, 6)
    expected = reference("AdagradDA", [variable])
    for seed in range(4):
        gradient = normal(seed, 6)
        optimizer.apply_gradients([(gradient, variable)], global_step=global_step)
        expected.apply([gradient])
        np.testing.assert_allclose(variable, expected.variables[0], rtol=2e-5, atol=1e-6)
    # Without the argument `global_step` the counter is not incremented.
    optimizer.apply_gradients([(normal(9, 6), variable)])
    assert int(np.asarray(global_step)) == 4


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "kind", ["callable", "array", "float32 array", "Variable", "scalar", "callable of array"]
)
def test_learning_rate_may_be_a_number_an_array_a_variable_or_a_callable(variant: str, kind: str) -> None:
    holder = np.array(0.5)
    if kind == "float32 array":
        holder = np.array(0.5, np.float32)
    rate: Any = {
        "callable": lambda: float(holder),
        "array": holder,
        "float32 array": holder,
        "scalar": np.float64(0.5),
        "callable of array": lambda: holder,
    }.get(kind)
    if kind == "Variable":
        rate = fastclip.Variable(np.array(0.5), trainable=False)
        holder = rate.value
    actual = Training(variant, some_variables(), learning_rate=rate)
    expected = Training(variant, some_variables(), learning_rate=0.5)
    actual.step(some_gradients())
    expected.step(some_gradients())
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("kind", ["callable", "array", "Variable"])
def test_learning_rate_is_read_at_each_step(variant: str, kind: str) -> None:
    holder = np.array(0.5)
    rate: Any = {"callable": lambda: float(holder), "array": holder}.get(kind)
    if kind == "Variable":
        rate = fastclip.Variable(np.array(0.5), trainable=False)
        holder = rate.value
    name, arguments = VARIANTS[variant]
    training = Training(variant, some_variables(np.float64), learning_rate=rate)
    expected = ReferenceOptimizer(name, training.variables, **{**arguments, "learning_rate": 0.5})
    for seed, value in enumerate([0.5, 0.25, 0.125]):
        holder[...] = value
        expected.hyper["learning_rate"] = value
        gradients = some_gradients(50 + seed, np.float64)
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)


HYPER_PARAMETERS = {
    "Momentum": {"momentum": 0.8},
    "Adam": {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4},
    "AdamW": {"weight_decay": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4},
    "RMSProp-centered": {"decay": 0.8, "momentum": 0.25, "epsilon": 1e-4},
    "Adadelta": {"rho": 0.8, "epsilon": 1e-3},
}


@pytest.mark.parametrize("variant", HYPER_PARAMETERS)
@pytest.mark.parametrize("kind", ["callable", "array"])
def test_hyper_parameters_that_tensorflow_calls_may_be_callable(variant: str, kind: str) -> None:
    numbers = HYPER_PARAMETERS[variant]
    arguments = {
        name: np.array(value) if kind == "array" else (lambda value=value: value)
        for name, value in numbers.items()
    }
    actual, expected = (
        Training(variant, some_variables(), **arguments),
        Training(variant, some_variables(), **numbers),
    )
    for seed in (50, 60, 70):
        actual.step(some_gradients(seed))
        expected.step(some_gradients(seed))
        assert_same_training(actual, expected)
