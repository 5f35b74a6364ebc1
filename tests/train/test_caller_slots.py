"""Steps whose slots, step counts and hyper-parameters the caller holds and passes with every step.

The compiled part takes them for optimizers that keep their state elsewhere. These tests drive it directly.
"""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastclip
from fastclip import _core
from fastclip.train import AdagradOptimizer, AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer
from support.caller_steps import RULES, CallerStep, Parameter
from support.reference_optimizers import ReferenceOptimizer

Array = npt.NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make(
    rule: str, shape: tuple[int, ...] = (37,), dtype: Any = np.float32, slot_dtype: Any = None, seed: int = 0
) -> Parameter:
    rng = np.random.default_rng(seed)
    variable = np.asarray(rng.normal(size=shape), dtype)
    count, _ = RULES[rule]
    slots = [np.asarray(0.5 + rng.random(shape), slot_dtype or dtype) for _ in range(count)]
    return Parameter(variable, slots, step_count=np.zeros((), np.float32))


def gradient_of(parameter: Parameter, seed: int = 1) -> Array:
    return np.asarray(np.random.default_rng(seed).normal(size=parameter.variable.shape), np.float32)


def bits(*arrays: Array) -> list[bytes]:
    return [array.tobytes() for array in arrays]


# --- The same results as with slots that the optimizer keeps --------------------------------------


@pytest.mark.parametrize("options", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_are_those_of_an_optimizer_that_keeps_its_slots(dtype: Any, options: dict[str, float]) -> None:
    kept = {
        "gradient_descent": GradientDescentOptimizer(0.1, **options),
        "momentum": MomentumOptimizer(0.1, 0.9, use_nesterov=True, **options),
        "adagrad": AdagradOptimizer(0.1, 0.25, **options),
    }
    names = {"clipnorm": "norm", "global_clipnorm": "global_norm", "clipvalue": "value"}
    clip, bound = next(((names[k], v) for k, v in options.items()), ("none", math.inf))
    for rule, optimizer in kept.items():
        step = CallerStep(rule, clip=clip, bound=bound)
        parameters = [make(rule, shape, dtype, seed=i) for i, shape in enumerate([(5,), (300, 7), ()])]
        for parameter in parameters:
            for slot in parameter.slots:
                slot[...] = 0.25 if rule == "adagrad" else 0.0
        variables = [parameter.variable.copy() for parameter in parameters]
        for t in range(3):
            gradients = [gradient_of(parameter, seed=10 * t + i) for i, parameter in enumerate(parameters)]
            assert step.take(gradients, parameters)
            optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        assert bits(*variables) == bits(*(parameter.variable for parameter in parameters))
        for variable, parameter in zip(variables, parameters, strict=True):
            for name, slot in zip(optimizer._slot_names, parameter.slots, strict=True):
                kept_slot = optimizer.get_slot(variable, name)
                assert kept_slot is not None
                assert slot.tobytes() == kept_slot.tobytes()
        assert step.report[0] == (clip != "none" and clip != "value")


def test_slots_may_be_other_arrays_at_every_step_and_of_any_layout() -> None:
    reference, parameter = make("momentum", (6, 8)), make("momentum", (6, 8))
    step = CallerStep("momentum")
    for t in range(4):
        gradient = gradient_of(reference, seed=t)
        step.take([gradient], [reference])
        moved = np.zeros((12, 8), np.float32)[::2] if t % 2 else np.zeros((8, 6), np.float32).T
        moved[...] = parameter.slots[0]
        parameter.slots = [moved]
        step.take([gradient], [parameter])
    assert bits(parameter.variable, np.ascontiguousarray(parameter.slots[0])) == bits(
        reference.variable, reference.slots[0]
    )


# --- Hyper-parameters and step counts of each variable -----------------------------------------------


@pytest.mark.parametrize("count_dtype", [np.float32, np.float64, np.int64, np.int32])
def test_each_variable_has_its_own_hyper_parameters_and_step_count(count_dtype: Any) -> None:
    sets = [(0.02, 0.9, 0.999, 1e-8, math.nan, math.nan), (0.3, 0.5, 0.7, 1e-3, math.nan, math.nan)]
    step = CallerStep("adam", sets)
    parameters = [make("adam", (50,), np.float64, seed=i) for i in range(4)]
    references = []
    for i, parameter in enumerate(parameters):
        parameter.hyper, parameter.step_count = i % 2, np.array(0, count_dtype)
        for slot in parameter.slots:
            slot[...] = 0.0
        rate, beta1, beta2, epsilon, *_ = sets[i % 2]
        arguments = {"learning_rate": rate, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        references.append(ReferenceOptimizer("Adam", [parameter.variable.copy()], **arguments))
    for t in range(6):
        # Later variables miss the first steps: their step counts lag behind.
        gradients = [gradient_of(p, seed=7 * t + i) if t >= i else None for i, p in enumerate(parameters)]
        assert step.take(gradients, parameters)
        for gradient, reference in zip(gradients, references, strict=True):
            if gradient is not None:
                reference.apply([gradient])
    for i, (parameter, reference) in enumerate(zip(parameters, references, strict=True)):
        np.testing.assert_allclose(parameter.variable, reference.variables[0], rtol=1e-13)
        assert parameter.step_count is not None
        assert parameter.step_count == 6 - i


def test_step_counts_give_adam_the_powers_that_its_optimizer_keeps() -> None:
    parameter = make("adam", (1000,))
    parameter.slots = [np.zeros_like(parameter.variable) for _ in range(2)]
    variable, optimizer = parameter.variable.copy(), AdamOptimizer(0.02)
    step = CallerStep("adam")
    for t in range(5):
        gradient = gradient_of(parameter, seed=t)
        step.take([gradient], [parameter])
        optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(parameter.variable, variable, rtol=1e-6)


def test_a_skipped_step_changes_no_step_count() -> None:
    parameter = make("adam")
    before = bits(parameter.variable, *parameter.slots)
    step = CallerStep("adam", on_nonfinite="skip")
    assert not step.take([np.full(37, np.nan, np.float32)], [parameter])
    assert step.skipped == 1
    assert parameter.step_count == 0
    assert bits(parameter.variable, *parameter.slots) == before


# --- Narrow variables and slots -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"),
    [
        (BFLOAT16, np.float32),
        (np.float16, np.float32),
        (np.float32, BFLOAT16),
        (np.float32, np.float16),
        (BFLOAT16, BFLOAT16),
        (np.float16, BFLOAT16),
        (np.float64, np.float32),
    ],
)
def test_narrow_arrays_are_computed_in_float32_and_rounded_once(
    rule: str, layout: str, dtype: Any, slot_dtype: Any
) -> None:
    narrow = make(rule, (700,), dtype, slot_dtype)
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    wide = Parameter(
        narrow.variable.astype(arithmetic),
        [slot.astype(arithmetic) for slot in narrow.slots],
        step_count=np.zeros((), np.float32),
    )
    if layout == "strided":
        spread = np.zeros(1400, dtype)[::2]
        spread[...] = narrow.variable
        narrow.variable = spread
    gradient = gradient_of(narrow)
    step = CallerStep(rule, clip="norm", bound=3.0)
    assert step.take([gradient], [narrow])
    assert step.take([gradient], [wide])
    assert bits(np.ascontiguousarray(narrow.variable)) == bits(wide.variable.astype(dtype))
    assert bits(*narrow.slots) == bits(*(slot.astype(slot_dtype) for slot in wide.slots))


def test_a_low_precision_copy_is_refreshed_in_the_step() -> None:
    parameter = make("momentum", (500,))
    parameter.copy = np.zeros(500, BFLOAT16)
    CallerStep("momentum").take([gradient_of(parameter)], [parameter])
    assert bits(parameter.copy) == bits(parameter.variable.astype(BFLOAT16))


def test_gradients_of_rows_change_these_rows_alone_but_with_adam() -> None:
    rows = np.array([1, 2, 5])
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for rule in ("momentum", "adam"):
        for slot_dtype in (np.float32, BFLOAT16):
            dense = np.zeros((6, 4), np.float32)
            dense[rows] = values
            parameter, expected = (make(rule, (6, 4), slot_dtype=slot_dtype) for _ in range(2))
            before = parameter.variable.copy()
            CallerStep(rule).take([_core.RowGradient(values, rows, values, False)], [parameter])
            CallerStep(rule).take([dense], [expected])
            assert bits(parameter.variable[rows]) == bits(expected.variable[rows])
            others = [0, 3, 4]
            same = expected.variable if rule == "adam" else before
            assert bits(parameter.variable[others]) == bits(same[others])


@pytest.mark.parametrize("rule", ["gradient_descent", "momentum", "centered_rms_prop"])
@pytest.mark.parametrize(
    ("dtype", "slot_dtype", "copy_dtype"),
    [(np.float32, np.float32, BFLOAT16), (BFLOAT16, np.float32, None), (np.float64, np.float32, np.float16)],
)
def test_runs_of_rows_have_the_bits_of_a_dense_gradient(
    rule: str, dtype: Any, slot_dtype: Any, copy_dtype: Any
) -> None:
    shape, rows = (12, 3, 2), np.array([0, 1, 4, 6, 7, 8, 11])
    values = np.random.default_rng(0).normal(size=(len(rows), *shape[1:])).astype(np.float32)
    dense = np.zeros(shape, np.float32)
    dense[rows] = values
    for order in ("C", "F"):
        parameter, expected = make(rule, shape, dtype, slot_dtype), make(rule, shape, dtype, slot_dtype)
        parameter.variable = np.asarray(parameter.variable, order=order)
        if copy_dtype is not None:
            parameter.copy, expected.copy = np.zeros(shape, copy_dtype), np.zeros(shape, copy_dtype)
        before = parameter.variable.copy()
        CallerStep(rule).take([_core.RowGradient(values, rows, values, False)], [parameter])
        CallerStep(rule).take([dense], [expected])
        others = np.setdiff1d(np.arange(shape[0]), rows)
        assert bits(parameter.variable[others]) == bits(before[others])
        assert bits(parameter.variable[rows]) == bits(expected.variable[rows])
        for slot, expected_slot in zip(parameter.slots, expected.slots, strict=True):
            assert bits(slot[rows]) == bits(expected_slot[rows])
        if parameter.copy is not None and expected.copy is not None:
            assert bits(parameter.copy[rows]) == bits(expected.copy[rows])
            assert not parameter.copy[others].any()


# --- What is refused: nothing is written then -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.slots.pop(), ValueError, "has 1 slots; it takes 2"),
        (lambda p: p.slots.append(p.slots[0].copy()), ValueError, "has 3 slots; it takes 2"),
        (
            lambda p: p.slots.__setitem__(0, np.zeros(36, np.float32)),
            ValueError,
            r"a slot of grads_and_vars\[1\]\[1\] is an array of dtype float32 and shape \(36,\)",
        ),
        (lambda p: p.slots[1].setflags(write=False), ValueError, "read-only"),
        (
            lambda p: p.slots.__setitem__(0, np.zeros(37)),
            TypeError,
            "is an array of dtype float64.*for a variable of float32 it takes float32 or a narrower type",
        ),
        (lambda p: p.slots.__setitem__(0, np.zeros(37, np.int32)), TypeError, "dtype int32"),
        (lambda p: p.slots.__setitem__(0, p.variable), ValueError, "shares memory with"),
        (lambda p: p.slots.__setitem__(0, p.slots[1]), ValueError, "a slot of .* shares memory with a slot"),
        (
            lambda p: p.slots.__setitem__(0, np.lib.stride_tricks.as_strided(p.slots[0], (37,), (0,))),
            ValueError,
            "a slot of .* overlaps itself",
        ),
        (lambda p: setattr(p, "hyper", 1), ValueError, "1 sets of hyper-parameters, and no number 1"),
        (lambda p: setattr(p, "hyper", 2**64 - 1), ValueError, "no number 18446744073709551615"),
        (lambda p: setattr(p, "hyper", -1), OverflowError, "negative"),
        (lambda p: setattr(p, "step_count", np.zeros(2)), ValueError, "the step count of"),
        (
            lambda p: setattr(p, "step_count", np.zeros((), BFLOAT16)),
            TypeError,
            "the step count of .* is an array of dtype bfloat16",
        ),
        (
            lambda p: setattr(p, "step_count", np.zeros((), np.float16)),
            TypeError,
            "it takes float32, float64",
        ),
        (lambda p: p.step_count.setflags(write=False), ValueError, "read-only"),
        (lambda p: setattr(p, "step_count", p.variable[:1].reshape(())), ValueError, "a counter of its own"),
        (lambda p: setattr(p, "copy", np.zeros(37, np.float32)), TypeError, "narrower"),
        (lambda p: setattr(p, "variable", np.zeros(37, np.int64)), TypeError, "int64"),
    ],
)
def test_a_step_that_is_refused_changes_nothing(change: Any, error: Any, message: str) -> None:
    first, second = make("adam", seed=0), make("adam", seed=1)
    gradients = [gradient_of(first), gradient_of(second)]
    change(second)
    arrays = [first.variable, *first.slots, first.step_count, second.variable, *second.slots]
    before = bits(*arrays)
    with pytest.raises(error, match=message):
        CallerStep("adam").take(gradients, [first, second])
    assert bits(*arrays) == before


def test_names_that_are_not_known_are_refused_where_they_come_in() -> None:
    with pytest.raises(ValueError, match="there is no rule"):
        _core.CallerSlots("adamax")
    with pytest.raises(ValueError, match="clip is"):
        _core.GradientClipping("norms", 1.0, "raise")
    with pytest.raises(ValueError, match="on_nonfinite is"):
        _core.GradientClipping("norm", 1.0, "zero")
    with pytest.raises(ValueError, match="this rule takes 2 slots"):
        _core.Slots("adam", (0.0,))
    with pytest.raises(ValueError, match="this rule takes"):
        CallerStep("momentum", [(0.1, 0.9)]).take([None], [make("momentum")])


def test_raise_names_the_gradients_and_changes_nothing() -> None:
    parameters = [make("adam", seed=i) for i in range(3)]
    gradients = [gradient_of(parameter) for parameter in parameters]
    gradients[1][5] = np.inf
    arrays = [array for p in parameters for array in (p.variable, *p.slots, p.step_count)]
    before = bits(*arrays)
    with pytest.raises(fastclip.NonFiniteError, match=r"grads_and_vars\[1\]\[0\]"):
        CallerStep("adam", clip="global_norm", bound=1.0, on_nonfinite="raise").take(gradients, parameters)
    assert bits(*arrays) == before


def test_cycles_through_requests_are_collected() -> None:
    parameter = make("momentum")
    variable = weakref.ref(parameter.variable)
    pairs: list[Any] = [(None, parameter.variable, tuple(parameter.slots), None, 0, None)]
    request = _core.StepRequest(
        _core.CallerSlots("momentum"), pairs, lambda: None, _core.GradientClipping("none", 0.0, "skip"), 1.0
    )
    values = np.zeros((1, 2), np.float32)
    holder: list[Any] = [values]
    holder.append(_core.RowGradient(values, np.zeros(1, np.int64), holder, False))
    pairs += [request, holder]
    del parameter, request, pairs, holder
    gc.collect()
    assert variable() is None
