"""Optimizers, variables and gradients for tests that hold for every optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

import fastclip
import fastclip.train
from fastclip import IndexedSlices
from support.reference_optimizers import ReferenceOptimizer, assert_close
from support.strategies import finite_values

#: The dtypes that variables may have.
VARIABLE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

#: Relative error allowed against the float64 reference, by the variable's dtype.
RELATIVE_TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-10}

#: By variant, an optimizer's name and constructor arguments with which every term of its rule has an effect.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "GradientDescent": ("GradientDescent", {"learning_rate": 0.1}),
    "Momentum": ("Momentum", {"learning_rate": 0.1, "momentum": 0.9}),
    "Nesterov": ("Momentum", {"learning_rate": 0.1, "momentum": 0.9, "use_nesterov": True}),
    "Adam": ("Adam", {"learning_rate": 0.02}),
    "AdamW": ("AdamW", {"weight_decay": 0.1, "learning_rate": 0.02}),
    "Adagrad": ("Adagrad", {"learning_rate": 0.1}),
    "AdagradDA": (
        "AdagradDA",
        {"learning_rate": 0.2, "l1_regularization_strength": 0.02, "l2_regularization_strength": 0.3},
    ),
    "RMSProp": ("RMSProp", {"learning_rate": 0.05, "momentum": 0.5}),
    "RMSProp-centered": ("RMSProp", {"learning_rate": 0.05, "momentum": 0.5, "centered": True}),
    "Adadelta": ("Adadelta", {"learning_rate": 1.0, "epsilon": 1e-4}),
    "Ftrl": (
        "Ftrl",
        {
            "learning_rate": 0.2,
            "l1_regularization_strength": 0.1,
            "l2_regularization_strength": 0.05,
            "l2_shrinkage_regularization_strength": 0.02,
            "beta": 0.5,
        },
    ),
    "Ftrl-power": ("Ftrl", {"learning_rate": 0.2, "learning_rate_power": -0.7}),
    "ProximalGradientDescent": (
        "ProximalGradientDescent",
        {"learning_rate": 0.1, "l1_regularization_strength": 0.1, "l2_regularization_strength": 0.1},
    ),
    "ProximalAdagrad": (
        "ProximalAdagrad",
        {"learning_rate": 0.1, "l1_regularization_strength": 0.1, "l2_regularization_strength": 0.1},
    ),
}

EVERY_OPTIMIZER = pytest.mark.parametrize("variant", VARIANTS)

#: Optimizers without slots, with one slot, and with state besides slots: enough to test code that all share.
A_FEW_OPTIMIZERS = pytest.mark.parametrize("variant", ["GradientDescent", "Nesterov", "Adam", "Ftrl"])


def optimizer_class(name: str) -> Any:
    """Returns the class of an optimizer, by the class's name without "Optimizer"."""
    return getattr(fastclip.train, f"{name}Optimizer")


def build(variant: str, global_step: Any = None, **more: Any) -> Any:
    """Returns a new optimizer; `global_step` is an argument of AdagradDA's constructor."""
    name, arguments = VARIANTS[variant]
    if name == "AdagradDA":
        arguments = {
            **arguments,
            "global_step": np.zeros((), np.int64) if global_step is None else global_step,
        }
    return optimizer_class(name)(**{**arguments, **more})


class Training:
    """An optimizer with its variables and a global step.

    Parameters
    ----------
    variant : str
        A key of `VARIANTS`.
    variables : sequence
        Updated in place.
    **more
        Constructor arguments that are added to those of the variant or replace them.
    """

    def __init__(self, variant: str, variables: Sequence[Any], **more: Any) -> None:
        self.global_step = np.zeros((), np.int64)
        self.optimizer = build(variant, self.global_step, **more)
        self.variables = list(variables)

    def step(self, gradients: Iterable[Any]) -> None:
        pairs = list(zip(gradients, self.variables, strict=True))
        self.optimizer.apply_gradients(pairs, global_step=self.global_step)

    def state(self) -> list[bytes]:
        """Returns the bytes of the variables, the global step and all state of the optimizer."""
        return snapshot(self.optimizer, *self.variables, self.global_step)


def reference(variant: str, variables: Sequence[Any], **more: Any) -> ReferenceOptimizer:
    """Returns the float64 reference of a variant."""
    name, arguments = VARIANTS[variant]
    return ReferenceOptimizer(name, [value_of(v).astype(np.float64) for v in variables], **arguments, **more)


def value_of(variable: Any) -> Any:
    """Returns the array of a variable, which may be an array itself."""
    return variable.value if isinstance(variable, fastclip.Variable) else variable


def whole_memory(array: Any) -> bytes:
    """Returns the bytes of the memory that an array is a view of, including those between its elements."""
    array = value_of(array)
    while isinstance(array.base, np.ndarray):
        array = array.base
    if array.base is not None:
        return bytes(memoryview(array.base))
    return bytes(array.tobytes(order="A"))


def snapshot(optimizer: Any, *arrays: Any) -> list[bytes]:
    """Returns as bytes what a refused call must not change: the arrays' memory and the optimizer's state."""
    state = optimizer.state_dict()
    taken = [whole_memory(array) for array in arrays]
    taken += [
        f"{key} {value.dtype} {value.shape} ".encode() + value.tobytes()
        for key, value in sorted(state.items())
    ]
    taken += [array.tobytes() for array in optimizer.variables()]
    taken.append(f"{optimizer.get_slot_names()} {optimizer.last_norm!r} {optimizer.skipped_steps}".encode())
    return taken


def slots_of(optimizer: Any, variable: Any) -> dict[str, Any]:
    """Returns the slots of a variable by name."""
    return {name: optimizer.get_slot(variable, name) for name in optimizer.get_slot_names()}


def assert_same_training(actual: Training, expected: Training) -> None:
    """Checks that variables and slots have the same bits, whatever their layout."""
    assert actual.optimizer.get_slot_names() == expected.optimizer.get_slot_names()
    assert int(actual.global_step) == int(expected.global_step)
    for position, (a, b) in enumerate(zip(actual.variables, expected.variables, strict=True)):
        assert value_of(a).dtype == value_of(b).dtype
        assert value_of(a).tobytes() == value_of(b).tobytes(), f"variable {position} differs"
        ours, theirs = slots_of(actual.optimizer, a), slots_of(expected.optimizer, b)
        for name, slot in ours.items():
            assert (slot is None) == (theirs[name] is None)
            if slot is not None:
                assert slot.tobytes() == theirs[name].tobytes(), f"{name} of variable {position} differs"


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return finite_values(np.random.default_rng(seed), shape, dtype)


def slices(seed: int, rows: Sequence[int], shape: tuple[int, ...], dtype: Any = np.float32) -> IndexedSlices:
    """Returns slices of the given rows for a variable of this shape."""
    return IndexedSlices(normal(seed, len(rows), *shape[1:], dtype=dtype), np.array(rows, np.int64), shape)


def some_variables(dtype: Any = np.float32) -> list[Any]:
    """Returns five variables: a vector, a matrix, a number, an empty array and another vector."""
    shapes: list[tuple[int, ...]] = [(4,), (5, 3), (), (0, 2), (6,)]
    return [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]


def some_gradients(seed: int = 50, dtype: Any = np.float32) -> list[Any]:
    """Returns gradients of `some_variables`: slices for the matrix, dense arrays for the others."""
    return [
        normal(seed, 4, dtype=dtype),
        slices(seed + 1, [4, 0, 4], (5, 3), dtype),
        normal(seed + 2, dtype=dtype),
        normal(seed + 3, 0, 2, dtype=dtype),
        normal(seed + 4, 6, dtype=dtype),
    ]


def assert_agrees_with_reference(training: Training, expected: Any) -> None:
    """Checks variables and slots against a `ReferenceOptimizer`."""
    for position, variable in enumerate(training.variables):
        value = value_of(variable)
        epsilon = float(np.finfo(value.dtype).eps)
        pairs = {"variable": (value, expected.variables[position])}
        for name, slot in slots_of(training.optimizer, variable).items():
            if slot is None:
                assert not expected.slots[position]
            else:
                pairs[name] = (slot, np.asarray(expected.slots[position][name]))
        for name, (ours, theirs) in pairs.items():
            terms = expected.terms[position].get(name, np.abs(theirs))
            assert_close(ours, theirs, terms, relative=RELATIVE_TOLERANCE[value.dtype], rounding=8 * epsilon)
