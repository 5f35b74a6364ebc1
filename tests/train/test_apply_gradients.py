"""What a step takes, what it refuses, and that a refused step leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import fastclip
from fastclip import IndexedSlices
from support.dtypes import BFLOAT16, REAL_DTYPES, dtype_id
from support.reference_optimizers import ReferenceOptimizer, assert_close
from support.strategies import LAYOUTS, PROPERTY, WRITABLE_LAYOUTS, finite_values, laid_out
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    assert_same_training,
    build,
    optimizer_class,
    reference,
    slots_of,
    whole_memory,
)

VARIABLE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-10}


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return finite_values(np.random.default_rng(seed), shape, dtype)


def slices(seed: int, rows: Sequence[int], of: tuple[int, ...], dtype: Any = np.float32) -> IndexedSlices:
    """Slices of a variable of shape `of`."""
    return IndexedSlices(normal(seed, len(rows), *of[1:], dtype=dtype), np.array(rows, np.int64), of)


def some_variables(dtype: Any = np.float32) -> list[Any]:
    """Five: a vector, a matrix, a number, an empty one and another vector."""
    shapes: list[tuple[int, ...]] = [(4,), (5, 3), (), (0, 2), (6,)]
    return [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]


def some_gradients(seed: int = 50, dtype: Any = np.float32) -> list[Any]:
    """Dense ones for `some_variables`, slices for the matrix."""
    return [
        normal(seed, 4, dtype=dtype),
        slices(seed + 1, [4, 0, 4], (5, 3), dtype),
        normal(seed + 2, dtype=dtype),
        normal(seed + 3, 0, 2, dtype=dtype),
        normal(seed + 4, 6, dtype=dtype),
    ]


def assert_agrees_with_reference(training: Training, expected: Any) -> None:
    """Check variables and slots against a `ReferenceOptimizer`."""
    for position, variable in enumerate(training.variables):
        value = variable.value if isinstance(variable, fastclip.Variable) else variable
        epsilon = float(np.finfo(value.dtype).eps)
        pairs = {"variable": (value, expected.variables[position])}
        for name, slot in slots_of(training.optimizer, variable).items():
            if slot is None:
                assert not expected.slots[position]
            else:
                pairs[name] = (slot, np.asarray(expected.slots[position][name]))
        for name, (ours, theirs) in pairs.items():
            terms = expected.terms[position].get(name, np.abs(theirs))
            assert_close(ours, theirs, terms, relative=TOLERANCE[value.dtype], rounding=8 * epsilon)


# --- what is refused -----------------------------------------------------------

Pairs = list[tuple[Any, Any]]


def with_gradient(gradient: Any, at: int = 4) -> Callable[[Pairs], Any]:
    """The usual pairs with another gradient."""

    def change(pairs: Pairs) -> Any:
        pairs[at] = (gradient, pairs[at][1])
        return pairs

    return change


def with_variable(variable: Any, at: int = 4) -> Callable[[Pairs], Any]:
    """The usual pairs with another variable, which is made of the one there if it is a function."""

    def change(pairs: Pairs) -> Any:
        gradient, before = pairs[at]
        pairs[at] = (gradient, variable(before) if callable(variable) else variable)
        return pairs

    return change


def with_entry(entry: Any) -> Callable[[Pairs], Any]:
    return lambda pairs: [*pairs[:4], entry]


def read_only(variable: Any) -> Any:
    view = variable.view()
    view.flags.writeable = False
    return view


def changed_slices(**parts: Any) -> IndexedSlices:
    """Slices whose parts were exchanged after they were made, so that their own check did not see them."""
    changed = slices(7, [0, 1], (5, 3))
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed


GRADIENT, VARIABLE = r"grads_and_vars\[{}\]\[0\]", r"grads_and_vars\[{}\]\[1\]"
LAST, MATRIX = 4, 1

#: What is passed for the usual pairs, the exception, and what its message says.
REFUSED: dict[str, tuple[Callable[[Pairs], Any], type[Exception], str]] = {
    "empty list": (lambda pairs: [], ValueError, r"No variables provided\."),
    "empty generator": (lambda pairs: iter(()), ValueError, r"No variables provided\."),
    "only None": (
        lambda pairs: [(None, variable) for _, variable in pairs],
        ValueError,
        "No gradients provided for any variable",
    ),
    "not iterable": (lambda pairs: 5, TypeError, "grads_and_vars"),
    "None": (lambda pairs: None, TypeError, "grads_and_vars"),
    "array": (lambda pairs: np.zeros((2, 2), np.float32), TypeError, "grads_and_vars"),
    "string": (lambda pairs: "gradients", TypeError, "grads_and_vars"),
    "entry is no pair": (with_entry(np.float32(3)), TypeError, r"grads_and_vars\[4\]"),
    "entry is None": (with_entry(None), TypeError, r"grads_and_vars\[4\]"),
    "entry of one": (lambda p: [*p[:4], (p[4][0],)], TypeError, r"grads_and_vars\[4\]"),
    "entry of three": (lambda p: [*p[:4], (*p[4], 1)], TypeError, r"grads_and_vars\[4\]"),
    # Of the gradient
    "string gradient": (with_gradient("six"), TypeError, GRADIENT.format(LAST)),
    "bytes gradient": (with_gradient(b"sixsix"), TypeError, GRADIENT.format(LAST)),
    "integer gradient": (with_gradient(np.arange(6)), TypeError, GRADIENT.format(LAST) + ".*int64"),
    "list of integers": (with_gradient([1, 2, 3, 4, 5, 6]), TypeError, GRADIENT.format(LAST)),
    "bool gradient": (with_gradient(np.ones(6, bool)), TypeError, GRADIENT.format(LAST) + ".*bool"),
    "complex gradient": (
        with_gradient(np.ones(6, np.complex64)),
        TypeError,
        GRADIENT.format(LAST) + ".*complex64",
    ),
    "object gradient": (with_gradient(np.ones(6, object)), TypeError, GRADIENT.format(LAST)),
    "datetime gradient": (with_gradient(np.ones(6, "M8[s]")), TypeError, GRADIENT.format(LAST)),
    "structured gradient": (with_gradient(np.ones(6, "f4,f4")), TypeError, GRADIENT.format(LAST)),
    "longdouble gradient": (
        with_gradient(np.ones(6, np.longdouble)),
        TypeError,
        GRADIENT.format(LAST),
    ),
    "masked gradient": (with_gradient(np.ma.ones(6, np.float32)), TypeError, GRADIENT.format(LAST)),
    "generator gradient": (with_gradient(x for x in (1.0, 2.0)), TypeError, GRADIENT.format(LAST)),
    "dict gradient": (with_gradient({}), TypeError, GRADIENT.format(LAST)),
    "short gradient": (with_gradient(normal(3, 5)), ValueError, GRADIENT.format(LAST) + r".*\(5,\)"),
    "long gradient": (with_gradient(normal(3, 7)), ValueError, GRADIENT.format(LAST)),
    "gradient that would broadcast": (with_gradient(normal(3, 1)), ValueError, GRADIENT.format(LAST)),
    "number for a vector": (with_gradient(np.float32(3)), ValueError, GRADIENT.format(LAST)),
    "transposed gradient": (with_gradient(normal(3, 3, 5), 1), ValueError, GRADIENT.format(MATRIX)),
    "vector for a number": (with_gradient(normal(3, 1), 2), ValueError, GRADIENT.format(2)),
    # Of slices
    "row past the end": (
        with_gradient(IndexedSlices(normal(3, 2, 3), [0, 5]), MATRIX),
        IndexError,
        GRADIENT.format(MATRIX) + ".*5",
    ),
    "row far past the end": (
        with_gradient(IndexedSlices(normal(3, 1, 3), np.array([2**63], np.uint64)), MATRIX),
        IndexError,
        GRADIENT.format(MATRIX),
    ),
    "negative row": (
        with_gradient(IndexedSlices(normal(3, 2, 3), [1, -1]), MATRIX),
        IndexError,
        GRADIENT.format(MATRIX) + ".*-1",
    ),
    "rows of another length": (
        with_gradient(IndexedSlices(normal(3, 2, 4), [0, 1]), MATRIX),
        ValueError,
        GRADIENT.format(MATRIX),
    ),
    "rows of another rank": (
        with_gradient(IndexedSlices(normal(3, 2), [0, 1]), MATRIX),
        ValueError,
        GRADIENT.format(MATRIX),
    ),
    "slices for a number": (
        with_gradient(IndexedSlices(normal(3, 1), [0]), 2),
        ValueError,
        GRADIENT.format(2),
    ),
    "integer slices": (
        with_gradient(IndexedSlices(np.ones((2, 3), np.int32), [0, 1]), MATRIX),
        TypeError,
        GRADIENT.format(MATRIX),
    ),
    "more values than indices": (
        with_gradient(changed_slices(values=normal(3, 9, 3)), MATRIX),
        ValueError,
        GRADIENT.format(MATRIX),
    ),
    "fewer values than indices": (
        with_gradient(changed_slices(values=normal(3, 1, 3)), MATRIX),
        ValueError,
        GRADIENT.format(MATRIX),
    ),
    "indices of floats": (
        with_gradient(changed_slices(indices=np.zeros(2)), MATRIX),
        TypeError,
        GRADIENT.format(MATRIX),
    ),
    "indices of two dimensions": (
        with_gradient(changed_slices(indices=np.zeros((2, 1), np.int64)), MATRIX),
        ValueError,
        GRADIENT.format(MATRIX),
    ),
    "row of an empty variable": (
        with_gradient(IndexedSlices(normal(3, 1, 2), [0]), 3),
        IndexError,
        GRADIENT.format(3),
    ),
    # Of the variable
    "read-only variable": (with_variable(read_only), ValueError, VARIABLE.format(LAST) + ".*read-only"),
    "half precision variable": (
        with_variable(np.ones(6, np.float16)),
        TypeError,
        VARIABLE.format(LAST) + ".*float16",
    ),
    "integer variable": (with_variable(np.ones(6, np.int64)), TypeError, VARIABLE.format(LAST)),
    "complex variable": (with_variable(np.ones(6, np.complex64)), TypeError, VARIABLE.format(LAST)),
    "object variable": (with_variable(np.ones(6, object)), TypeError, VARIABLE.format(LAST)),
    "list as a variable": (with_variable([1.0] * 6), TypeError, VARIABLE.format(LAST)),
    "number as a variable": (with_variable(np.float32(3)), TypeError, VARIABLE.format(LAST)),
    "None as a variable": (with_variable(None), TypeError, VARIABLE.format(LAST)),
    "masked variable": (with_variable(np.ma.ones(6, np.float32)), TypeError, VARIABLE.format(LAST)),
    "slices as a variable": (
        with_variable(IndexedSlices(normal(3, 6), np.arange(6))),
        TypeError,
        VARIABLE.format(LAST),
    ),
    "variable of the other byte order": (
        with_variable(np.ones(6, np.dtype(np.float32).newbyteorder())),
        ValueError,
        VARIABLE.format(LAST),
    ),
    "the same variable twice": (
        lambda pairs: [*pairs, pairs[0]],
        ValueError,
        r"grads_and_vars\[[05]\]\[1\].*grads_and_vars\[[05]\]\[1\]",
    ),
    "another view of a variable": (
        lambda pairs: [*pairs, (normal(3, 4), pairs[0][1].view())],
        ValueError,
        r"grads_and_vars\[[05]\]\[1\].*grads_and_vars\[[05]\]\[1\]",
    ),
    "variables that overlap": (
        lambda pairs: [*pairs, (normal(3, 2, 3), pairs[1][1][1:3])],
        ValueError,
        r"grads_and_vars\[[15]\]\[1\].*grads_and_vars\[[15]\]\[1\]",
    ),
    "variable that overlaps itself": (
        with_variable(lambda variable: as_strided(variable, (6,), (0,))),
        ValueError,
        VARIABLE.format(LAST),
    ),
}

EVERY_REFUSAL = pytest.mark.parametrize("what", REFUSED)


@EVERY_REFUSAL
@pytest.mark.parametrize("variant", ["Adam", "Nesterov"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_refused_first_step_leaves_everything_untouched(
    variant: str, what: str, clip: dict[str, Any]
) -> None:
    change, exception, message = REFUSED[what]
    training = Training(variant, some_variables(), **clip)
    gradients = some_gradients()
    before = training.state()
    passed = change(list(zip(gradients, training.variables, strict=True)))
    with pytest.raises(exception, match=message):
        training.optimizer.apply_gradients(passed, training.global_step)
    assert training.state() == before
    assert training.optimizer.get_slot_names() == []
    assert training.optimizer.variables() == [] or variant == "Adam"
    assert training.optimizer.last_norm is None
    # It trains afterwards as if nothing had been.
    other = Training(variant, some_variables(), **clip)
    training.step(gradients)
    other.step(gradients)
    assert_same_training(training, other)


@EVERY_REFUSAL
@A_FEW_OPTIMIZERS
def test_refused_later_step_leaves_everything_untouched(variant: str, what: str) -> None:
    change, exception, message = REFUSED[what]
    training = Training(variant, some_variables(), global_clipnorm=0.5)
    for seed in (50, 60):
        training.step(some_gradients(seed))
    gradients = some_gradients(70)
    before = training.state()
    passed = change(list(zip(gradients, training.variables, strict=True)))
    with pytest.raises(exception, match=message):
        training.optimizer.apply_gradients(passed, training.global_step)
    assert training.state() == before


@EVERY_OPTIMIZER
@pytest.mark.parametrize("what", ["only None", "short gradient", "row past the end", "read-only variable"])
def test_every_optimizer_refuses_and_leaves_everything_untouched(variant: str, what: str) -> None:
    change, exception, message = REFUSED[what]
    training = Training(variant, some_variables())
    training.step(some_gradients())
    before = training.state()
    passed = change(list(zip(some_gradients(60), training.variables, strict=True)))
    with pytest.raises(exception, match=message):
        training.optimizer.apply_gradients(passed, training.global_step)
    assert training.state() == before


def test_refused_gradients_are_looked_at_before_a_nonfinite_one() -> None:
    training = Training("Adam", some_variables(), on_nonfinite="skip", global_clipnorm=1.0)
    gradients = some_gradients()
    gradients[0][1] = np.nan
    before = training.state()
    pairs = list(zip(gradients, training.variables, strict=True))
    pairs[4] = (normal(3, 5), pairs[4][1])
    with pytest.raises(ValueError, match=GRADIENT.format(4)):
        training.optimizer.apply_gradients(pairs, training.global_step)
    assert training.state() == before


def test_message_of_no_gradients_lists_the_variables() -> None:
    variable = fastclip.Variable([1.0, 2.0], name="weights")
    with pytest.raises(ValueError, match=r"No gradients provided for any variable: \[.*weights.*\]"):
        build("Adam").apply_gradients([(None, variable)])


REFUSED_GLOBAL_STEPS: dict[str, tuple[Any, type[Exception]]] = {
    "array of one element": (np.zeros(1, np.int64), ValueError),
    "float": (np.zeros((), np.float32), TypeError),
    "bool": (np.zeros((), bool), TypeError),
    "number": (3, TypeError),
    "scalar": (np.int64(3), TypeError),
    "string": ("3", TypeError),
    "read-only": (read_only(np.zeros((), np.int64)), ValueError),
    "Variable of a float": (fastclip.Variable(0.0, trainable=False), TypeError),
}


@pytest.mark.parametrize("what", REFUSED_GLOBAL_STEPS)
def test_refused_global_step_leaves_everything_untouched(what: str) -> None:
    global_step, exception = REFUSED_GLOBAL_STEPS[what]
    training = Training("Adam", some_variables())
    before = training.state()
    pairs = list(zip(some_gradients(), training.variables, strict=True))
    with pytest.raises(exception, match="global_step"):
        training.optimizer.apply_gradients(pairs, global_step)
    assert training.state() == before


def raising() -> float:
    raise RuntimeError("no schedule for this step")


REFUSED_LEARNING_RATES: dict[str, tuple[Any, type[Exception], str]] = {
    "callable that raises": (raising, RuntimeError, "no schedule for this step"),
    "callable that gives a string": (lambda: "fast", TypeError, "learning_rate"),
    "callable that gives None": (lambda: None, TypeError, "learning_rate"),
    "callable that gives a vector": (lambda: np.ones(2), ValueError, "learning_rate"),
}


@pytest.mark.parametrize("what", REFUSED_LEARNING_RATES)
@EVERY_OPTIMIZER
def test_refused_learning_rate_leaves_everything_untouched(variant: str, what: str) -> None:
    learning_rate, exception, message = REFUSED_LEARNING_RATES[what]
    rates = [learning_rate]
    training = Training(variant, some_variables(), learning_rate=lambda: rates[0]())
    rates.insert(0, lambda: 0.1)
    training.step(some_gradients())
    rates.pop(0)
    before = training.state()
    with pytest.raises(exception, match=message):
        training.step(some_gradients(60))
    assert training.state() == before


@pytest.mark.parametrize(
    ("learning_rate", "exception"),
    [("fast", TypeError), (None, TypeError), (np.ones(2), ValueError), (1j, TypeError)],
    ids=["string", "None", "vector", "complex"],
)
@EVERY_OPTIMIZER
def test_learning_rate_is_refused_by_the_constructor_or_the_first_step(
    variant: str, learning_rate: Any, exception: type[Exception]
) -> None:
    variables = some_variables()
    before = [variable.tobytes() for variable in variables]
    with pytest.raises(exception, match="learning_rate"):
        Training(variant, variables, learning_rate=learning_rate).step(some_gradients())
    assert [variable.tobytes() for variable in variables] == before


@A_FEW_OPTIMIZERS
def test_constraint_on_a_sparse_variable_is_refused(variant: str) -> None:
    constrained = fastclip.Variable(normal(1, 5, 3), constraint=lambda value: np.maximum(value, 0))
    training = Training(variant, [normal(2, 4), constrained])
    before = training.state()
    with pytest.raises(RuntimeError, match=r"Cannot use a constraint function on a sparse variable\."):
        training.step([normal(3, 4), slices(4, [1], (5, 3))])
    assert training.state() == before


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


def test_name_is_taken_and_not_used() -> None:
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
def test_variables_that_come_and_go_keep_their_slots(variant: str) -> None:
    """A step over fewer variables, or in another order, is that step with None for the others."""
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
    """With l1 the step's number counts; it is that before `apply_gradients` has counted on."""
    value = np.array(0, np.int64)
    global_step = value if kind == "array" else fastclip.Variable(value, trainable=False)
    optimizer, variable = build("AdagradDA", global_step), normal(1, 6)
    expected = reference("AdagradDA", [variable])
    for seed in range(4):
        gradient = normal(seed, 6)
        optimizer.apply_gradients([(gradient, variable)], global_step=global_step)
        expected.apply([gradient])
        np.testing.assert_allclose(variable, expected.variables[0], rtol=2e-5, atol=1e-6)
    # Not counted on: every step is the fifth.
    optimizer.apply_gradients([(normal(9, 6), variable)])
    assert int(np.asarray(global_step)) == 4


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "kind", ["callable", "array", "float32 array", "Variable", "scalar", "callable of array"]
)
def test_learning_rate_may_be_anything_that_is_a_number(variant: str, kind: str) -> None:
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
    given = {
        name: np.array(value) if kind == "array" else (lambda value=value: value)
        for name, value in numbers.items()
    }
    actual, expected = (
        Training(variant, some_variables(), **given),
        Training(variant, some_variables(), **numbers),
    )
    for seed in (50, 60, 70):
        actual.step(some_gradients(seed))
        expected.step(some_gradients(seed))
        assert_same_training(actual, expected)


# --- dtypes and layouts -------------------------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize("gradient_dtype", REAL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
def test_gradients_may_be_narrower_or_wider_than_variables(
    variant: str, dtype: np.dtype[Any], gradient_dtype: np.dtype[Any]
) -> None:
    training = Training(variant, some_variables(dtype))
    expected = reference(variant, training.variables)
    for seed in (50, 60, 70):
        gradients = some_gradients(seed, gradient_dtype)
        # Rows once each: how repeated ones are summed has a test of its own.
        gradients[1] = slices(seed, [3, 0, 4], (5, 3), gradient_dtype)
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)
    for variable in training.variables:
        for slot in slots_of(training.optimizer, variable).values():
            assert slot.dtype == dtype
            assert slot.shape == variable.shape


@EVERY_OPTIMIZER
@pytest.mark.parametrize("gradient_dtype", REAL_DTYPES[:2], ids=dtype_id)
def test_narrow_gradient_counts_as_the_same_numbers_in_float32(
    variant: str, gradient_dtype: np.dtype[Any]
) -> None:
    narrow, wide = Training(variant, some_variables()), Training(variant, some_variables())
    for seed in (50, 60):
        gradients = some_gradients(seed, gradient_dtype)
        # Rows once each: how repeated ones are summed has a test of its own.
        gradients[1] = slices(seed, [3, 0, 4], (5, 3), gradient_dtype)
        narrow.step(gradients)
        wide.step(widened(gradient) for gradient in gradients)
        assert_same_training(narrow, wide)


def widened(gradient: Any) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.astype(np.float32), gradient.indices)
    return gradient.astype(np.float32)


def test_dtypes_may_be_mixed_in_a_step() -> None:
    variables = [normal(1, 5), normal(2, 5, dtype=np.float64), normal(3, 7), normal(4, 70)]
    dtypes = [BFLOAT16, np.float16, np.float64, np.float32]
    training = Training("Adam", variables)
    expected = reference("Adam", variables)
    for seed in (10, 20):
        gradients = [
            normal(seed + i, *variable.shape, dtype=dtype)
            for i, (variable, dtype) in enumerate(zip(variables, dtypes, strict=True))
        ]
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)


def test_gradient_may_be_a_list_of_floats() -> None:
    actual, expected = Training("Adam", [normal(1, 2, 2)]), Training("Adam", [normal(1, 2, 2)])
    actual.step([[[1.0, 2.0], [3.0, 4.0]]])
    expected.step([np.array([[1.0, 2.0], [3.0, 4.0]])])
    assert_same_training(actual, expected)


def test_gradient_may_be_of_the_other_byte_order() -> None:
    actual, expected = Training("Adam", [normal(1, 5)]), Training("Adam", [normal(1, 5)])
    gradient = normal(2, 5)
    actual.step([gradient.astype(gradient.dtype.newbyteorder())])
    expected.step([gradient])
    assert_same_training(actual, expected)


def test_variable_may_be_any_writable_buffer() -> None:
    memory = bytearray(normal(1, 5).tobytes())
    buffer = memoryview(memory).cast("f")
    optimizer = build("Momentum")
    expected = Training("Momentum", [normal(1, 5)])
    for seed in (2, 3):
        optimizer.apply_gradients([(normal(seed, 5), buffer)])
        expected.step([normal(seed, 5)])
    assert bytes(memory) == expected.variables[0].tobytes()


@st.composite
def layouts_of_a_training(draw: st.DrawFn) -> tuple[str, Any, list[Any]]:
    """An optimizer, a variable and gradients, in any memory layouts."""
    variant = draw(st.sampled_from(list(VARIANTS)))
    dtype = draw(st.sampled_from(VARIABLE_DTYPES))
    shape = draw(st.sampled_from([(), (0,), (3, 0, 2), (7,), (133,), (4, 5), (3, 17), (2, 3, 4), (1, 1, 9)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    variable = laid_out(finite_values(rng, shape, dtype), draw(st.sampled_from(WRITABLE_LAYOUTS)))
    gradients = []
    for _ in range(2):
        gradient_dtype = draw(st.sampled_from(REAL_DTYPES))
        kind = draw(st.sampled_from(["normal", "sparse", "constant"]))
        values = finite_values(rng, shape, gradient_dtype, kind)
        gradients.append(laid_out(values, draw(st.sampled_from(LAYOUTS))))
    return variant, variable, gradients


@PROPERTY
@given(layouts_of_a_training(), st.sampled_from([{}, {"global_clipnorm": 0.7}, {"clipvalue": 0.5}]))
def test_any_layout_gives_the_bits_of_contiguous_copies(
    drawn: tuple[str, Any, list[Any]], clip: dict[str, float]
) -> None:
    variant, variable, gradients = drawn
    start, memory = variable.copy(), whole_memory(variable)
    contiguous = Training(variant, [np.array(variable, order="C")], **clip)
    training = Training(variant, [variable], **clip)
    expected = reference(variant, [variable])
    for gradient in gradients:
        before = whole_memory(gradient)
        training.step([gradient])
        assert whole_memory(gradient) == before
        contiguous.step([np.array(gradient, order="C")])
        if not clip:
            expected.apply([gradient])
            assert_agrees_with_reference(training, expected)
    assert_same_training(training, contiguous)
    # Nothing beside the elements was written.
    variable[...] = start
    assert whole_memory(variable) == memory


@EVERY_OPTIMIZER
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_sparse_step_takes_any_layout(variant: str, layout: str) -> None:
    values = normal(1, 6, 5)
    training = Training(variant, [laid_out(values, layout)])
    contiguous = Training(variant, [values.copy()])
    for seed, rows in enumerate(([5, 0, 5], [2], [], [1, 1, 1, 4])):
        gradient = slices(seed, rows, (6, 5))
        indices = laid_out(gradient.indices, "stepped" if rows else "C")
        contiguous.step([gradient])
        training.step([IndexedSlices(laid_out(gradient.values, layout), indices)])
        assert_same_training(training, contiguous)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
def test_long_arrays_agree_with_the_formula(variant: str, dtype: np.dtype[Any]) -> None:
    """Longer than a chunk, so that several are taken, and no multiple of any register."""
    variables = [normal(1, 70_001, dtype=dtype), normal(2, 3, dtype=dtype), normal(3, 300, 301, dtype=dtype)]
    training = Training(variant, variables)
    expected = reference(variant, variables)
    for seed in (10, 20):
        gradients = [normal(seed + i, *v.shape, dtype=dtype) for i, v in enumerate(variables)]
        training.step(gradients)
        expected.apply(gradients)
    assert_agrees_with_reference(training, expected)


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    "clip", [{}, {"global_clipnorm": 1.0}, {"clipnorm": 1.0}, {"clipvalue": 1.0}], ids=str
)
def test_variables_may_all_be_empty(variant: str, clip: dict[str, float]) -> None:
    training = Training(variant, [np.zeros(0, np.float32), np.zeros((3, 0, 2))], **clip)
    for _ in range(2):
        training.step([np.zeros(0, np.float32), IndexedSlices(np.zeros((2, 0, 2)), [1, 1])])
    assert training.global_step == 2
    assert training.optimizer.last_norm is None or training.optimizer.last_norm == 0


# --- sparse gradients -----------------------------------------------------------------


@EVERY_OPTIMIZER
@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("index_dtype", ["int64", "int32", "uint8", "uint64", "int16"])
def test_sparse_steps_agree_with_the_formula(variant: str, dtype: np.dtype[Any], index_dtype: str) -> None:
    training = Training(variant, [normal(1, 9, 2, 3, dtype=dtype), normal(2, 7, dtype=dtype)])
    expected = reference(variant, training.variables)
    steps = [([8, 0, 8, 8], [6, 6]), ([3], []), ([], [0, 1, 2, 3, 4, 5, 6]), ([7, 1, 0, 1], [3])]
    for seed, (first, second) in enumerate(steps):
        gradients = [slices(seed, first, (9, 2, 3), dtype), slices(seed + 9, second, (7,), dtype)]
        for gradient in gradients:
            gradient.indices = gradient.indices.astype(index_dtype)
        training.step(gradients)
        expected.apply(gradients)
        assert_agrees_with_reference(training, expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("Adam")])
def test_rows_without_gradient_keep_their_bits(variant: str) -> None:
    training = Training(variant, [normal(1, 6, 3)])
    training.step([normal(2, 6, 3)])
    variable = training.variables[0]
    slots = {name: slot for name, slot in slots_of(training.optimizer, variable).items() if slot is not None}
    before = {name: slot.copy() for name, slot in slots.items()}
    value = variable.copy()
    training.step([slices(3, [4, 1, 4], (6, 3))])
    stay, move = [0, 2, 3, 5], [1, 4]
    assert variable[stay].tobytes() == value[stay].tobytes()
    assert (variable[move] != value[move]).any()
    for name, slot in slots.items():
        assert slot[stay].tobytes() == before[name][stay].tobytes()


@pytest.mark.parametrize("variant", ["Adam", "AdamW"])
def test_adam_moves_rows_without_gradient(variant: str) -> None:
    training = Training(variant, [normal(1, 6, 3)])
    training.step([normal(2, 6, 3)])
    variable = training.variables[0]
    value, m = variable.copy(), training.optimizer.get_slot(variable, "m").copy()
    training.step([slices(3, [4], (6, 3))])
    assert (variable[[0, 1, 2, 3, 5]] != value[[0, 1, 2, 3, 5]]).all()
    m_now = training.optimizer.get_slot(variable, "m")
    np.testing.assert_allclose(m_now[0], m[0] * 0.9, rtol=1e-6)


@pytest.mark.parametrize("variant", ["Adam", "AdamW"])
def test_sparse_step_of_adam_has_the_bits_of_the_dense_step(variant: str) -> None:
    sparse, dense = Training(variant, [normal(1, 6, 3)]), Training(variant, [normal(1, 6, 3)])
    for seed, rows in enumerate(([4, 1], [0], [], [5, 2, 3])):
        gradient = slices(seed, rows, (6, 3))
        sparse.step([gradient])
        dense.step([gradient.to_dense()])
        assert_same_training(sparse, dense)


@EVERY_OPTIMIZER
def test_repeated_rows_count_as_their_sum(variant: str) -> None:
    repeated, summed = Training(variant, [normal(1, 6, 3)]), Training(variant, [normal(1, 6, 3)])
    for seed, rows in enumerate(([4, 1, 4], [0, 0], [2, 5, 2, 5])):
        # Small whole numbers add without rounding, in whatever order.
        gradient = slices(seed, rows, (6, 3))
        gradient.values = np.rint(4 * gradient.values) / 4
        repeated.step([gradient])
        summed.step([gradient.coalesce()])
    for a, b in zip(repeated.variables, summed.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        for name, slot in slots_of(repeated.optimizer, a).items():
            np.testing.assert_allclose(slot, summed.optimizer.get_slot(b, name), rtol=1e-6, atol=1e-7)


@EVERY_OPTIMIZER
def test_slices_without_rows_leave_other_optimizers_variables_alone(variant: str) -> None:
    training = Training(variant, [normal(1, 4, 2), normal(2, 3)])
    before = training.variables[0].tobytes()
    training.step([IndexedSlices(np.zeros((0, 2), np.float32), []), normal(3, 3)])
    if variant != "AdamW":  # decays every row
        assert training.variables[0].tobytes() == before
    assert training.global_step == 1


@EVERY_OPTIMIZER
@pytest.mark.parametrize(
    ("gradient_dtype", "dtype"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float16", "float64"), ("bfloat16", "float64")],
)
def test_repeated_rows_of_narrow_slices_are_summed_without_rounding_to_their_type(
    variant: str, gradient_dtype: str, dtype: str
) -> None:
    """A sum of 16-bit floats has more digits than they have."""
    training = Training(variant, [normal(1, 5, 3, dtype=dtype)])
    expected = reference(variant, training.variables)
    narrow = BFLOAT16 if gradient_dtype == "bfloat16" else np.dtype(gradient_dtype)
    for seed, rows in enumerate(([4, 0, 4], [1, 1, 1], [2, 3, 2, 3])):
        gradient = slices(seed, rows, (5, 3), narrow)
        training.step([gradient])
        expected.apply([gradient])
        assert_agrees_with_reference(training, expected)


# --- memory shared ------------------------------------------------------------------------


def shared_gradients(first: Any, second: Any) -> dict[str, list[Any]]:
    """Gradients for two square matrices that are views of the matrices themselves."""
    half_precision = np.frombuffer(first, np.float16).reshape(8, 16)[:, :8]
    return {
        "the variable": [first, second],
        "each other": [second, first],
        "reversed": [first[::-1, ::-1], None],
        "transposed": [first.T, second.T],
        "one row repeated": [np.broadcast_to(first[3], (8, 8)), None],
        "shifted": [as_strided(first, (8, 8), (24, 4)), None],
        "bits read as float16": [half_precision, None],
        "rows of the variable": [IndexedSlices(first[1:4], [5, 2, 3]), None],
        "reversed rows": [IndexedSlices(first[::-1], np.arange(8)), first],
        "rows of the other": [IndexedSlices(second[:3], [0, 0, 7]), IndexedSlices(first[:3], [1, 2, 3])],
    }


@pytest.mark.parametrize("what", shared_gradients(np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)))
@pytest.mark.parametrize("variant", ["GradientDescent", "Nesterov", "Adam", "Adagrad"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_gradient_that_shares_memory_with_a_variable_counts_as_it_was(
    variant: str, what: str, clip: dict[str, float]
) -> None:
    start = [normal(1, 8, 8), normal(2, 8, 8)]
    shared = Training(variant, [value.copy() for value in start], **clip)
    copied = Training(variant, [value.copy() for value in start], **clip)
    gradients = shared_gradients(*shared.variables)[what]
    copies = [
        IndexedSlices(g.values.copy(), g.indices)
        if isinstance(g, IndexedSlices)
        else g
        if g is None
        else g.copy()
        for g in gradients
    ]
    shared.step(gradients)
    copied.step(copies)
    assert_same_training(shared, copied)


@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_gradient_that_is_a_slot_counts_as_it_was(clip: dict[str, float]) -> None:
    actual, expected = (Training("Momentum", [normal(1, 100)], **clip) for _ in range(2))
    for training in (actual, expected):
        training.step([normal(2, 100)])
    slot = actual.optimizer.get_slot(actual.variables[0], "momentum")
    copy = slot[::-1].copy()
    actual.step([slot[::-1]])
    expected.step([copy])
    assert_same_training(actual, expected)


@EVERY_OPTIMIZER
def test_gradients_are_never_written(variant: str) -> None:
    training = Training(variant, some_variables(), global_clipnorm=0.1)
    gradients = some_gradients()
    for gradient in gradients:
        (gradient.values if isinstance(gradient, IndexedSlices) else gradient).flags.writeable = False
    before = [(g.values if isinstance(g, IndexedSlices) else g).tobytes() for g in gradients]
    training.step(gradients)
    assert [(g.values if isinstance(g, IndexedSlices) else g).tobytes() for g in gradients] == before


# --- Variables ----------------------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_variable_objects_train_as_arrays_do(variant: str) -> None:
    actual = Training(variant, [fastclip.Variable(value) for value in some_variables()])
    expected = Training(variant, some_variables())
    memory = [variable.value for variable in actual.variables]
    for seed in (50, 60):
        actual.step(some_gradients(seed))
        expected.step(some_gradients(seed))
    assert_same_training(actual, expected)
    for variable, value in zip(actual.variables, memory, strict=True):
        assert variable.value is value


def test_constraint_is_applied_after_a_dense_step() -> None:
    constrained = fastclip.Variable(normal(1, 20), constraint=lambda value: np.maximum(value, 0))
    memory = constrained.value
    training = Training("GradientDescent", [constrained, normal(2, 3)])
    expected = normal(1, 20)
    for seed in (3, 4):
        gradient = normal(seed, 20)
        training.step([gradient, normal(5, 3)])
        expected = np.maximum(expected - np.float32(0.1) * gradient, 0)
        np.testing.assert_allclose(constrained.numpy(), expected, rtol=1e-6, atol=1e-7)
        assert (constrained.numpy() == 0).any()
    assert constrained.value is memory


def test_constraint_is_not_applied_to_a_variable_without_gradient() -> None:
    constrained = fastclip.Variable(normal(1, 20), constraint=lambda value: np.maximum(value, 0))
    training = Training("GradientDescent", [constrained, normal(2, 3)])
    training.step([None, normal(5, 3)])
    assert constrained.numpy().tobytes() == normal(1, 20).tobytes()


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
@EVERY_OPTIMIZER
def test_torch_parameters_train_as_arrays_do(variant: str) -> None:
    torch = pytest.importorskip("torch")
    parameters = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in some_variables()]
    actual, expected = Training(variant, parameters), Training(variant, some_variables())
    for seed in (50, 60):
        gradients = some_gradients(seed)
        expected.step(gradients)
        gradients[0] = torch.from_numpy(gradients[0])
        actual.step(gradients)
    for parameter, variable in zip(parameters, expected.variables, strict=True):
        assert parameter.detach().numpy().tobytes() == variable.tobytes()


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
def test_torch_bfloat16_gradients_are_read() -> None:
    torch = pytest.importorskip("torch")
    gradient = torch.randn(50, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    actual, expected = Training("Adam", [normal(1, 50)]), Training("Adam", [normal(1, 50)])
    actual.step([gradient])
    expected.step([gradient.to(torch.float32).numpy()])
    assert_same_training(actual, expected)


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
def test_torch_tensor_without_memory_here_is_refused() -> None:
    torch = pytest.importorskip("torch")
    elsewhere = torch.empty(6, device="meta")
    training = Training("Adam", some_variables())
    before = training.state()
    for pair in ((elsewhere, training.variables[4]), (normal(1, 6), elsewhere)):
        with pytest.raises(TypeError, match=r"grads_and_vars\[0\]"):
            training.optimizer.apply_gradients([pair])
    assert training.state() == before


@pytest.mark.interop("jax")
@pytest.mark.filterwarnings("ignore")
def test_jax_arrays_are_taken_as_gradients_and_refused_as_variables() -> None:
    jax = pytest.importorskip("jax")
    actual, expected = Training("Adam", some_variables()), Training("Adam", some_variables())
    gradients = some_gradients()
    expected.step(gradients)
    actual.step(g if isinstance(g, IndexedSlices) else jax.numpy.asarray(g) for g in gradients)
    assert_same_training(actual, expected)
    variable = jax.numpy.ones(6)
    with pytest.raises(TypeError, match=r"grads_and_vars\[0\]\[1\]"):
        build("Adam").apply_gradients([(normal(1, 6), variable)])
    np.testing.assert_array_equal(variable, np.ones(6))


@pytest.mark.interop("tensorflow")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
def test_tensorflow_tensors_are_taken_as_gradients_and_refused_as_variables() -> None:
    tf = pytest.importorskip("tensorflow")
    actual, expected = Training("Adam", some_variables()), Training("Adam", some_variables())
    for seed in (50, 60):
        gradients = some_gradients(seed)
        expected.step(gradients)
        actual.step(
            tf.IndexedSlices(tf.constant(g.values), tf.constant(g.indices), tf.constant(g.dense_shape))
            if isinstance(g, IndexedSlices)
            else tf.constant(g)
            for g in gradients
        )
        assert_same_training(actual, expected)
    for variable in (tf.Variable(normal(1, 6)), tf.constant(normal(1, 6))):
        with pytest.raises(TypeError, match=r"grads_and_vars\[0\]\[1\]"):
            build("Adam").apply_gradients([(normal(2, 6), variable)])


# --- slots, names, state -----------------------------------------------------------------------

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
def test_slots_are_there_after_the_first_step(variant: str) -> None:
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
def test_slot_is_live_memory(variant: str) -> None:
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
    # What is written there counts in the next step.
    if slots:
        for slot in slots.values():
            slot[...] = 0.25
        expected.step([normal(3, 5)])
        for training in (actual, expected):
            training.step([normal(4, 5)])
        assert actual.variables[0].tobytes() != expected.variables[0].tobytes()


def test_variable_is_known_again_by_its_memory() -> None:
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


def test_array_at_the_address_of_one_that_is_gone_is_another_variable() -> None:
    """Slots belong to a variable, not to its address."""
    optimizer = build("Momentum")
    for seed in range(40):
        variable = normal(seed, 1000)
        before = variable.copy()
        gradient = normal(seed + 100, 1000)
        optimizer.apply_gradients([(gradient, variable)])
        np.testing.assert_allclose(variable, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)
        del variable


@EVERY_OPTIMIZER
def test_variables_are_the_memory_of_the_state(variant: str) -> None:
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
def test_name_is_that_of_the_constructor(variant: str) -> None:
    assert build(variant).get_name() == VARIANTS[variant][0]
    assert build(variant, name="mine").get_name() == "mine"


def test_gates_have_tensorflow_values() -> None:
    optimizer = fastclip.train.Optimizer
    assert (optimizer.GATE_NONE, optimizer.GATE_OP, optimizer.GATE_GRAPH) == (0, 1, 2)
    assert issubclass(optimizer_class("Adam"), optimizer)


# --- minimize -----------------------------------------------------------------------------------


def half_square(values: Sequence[Any]) -> float:
    return float(sum(np.sum(np.square(value)) for value in values)) / 2


def engine(loss: Any, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The gradient of half the square is the value itself."""
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


def test_minimize_without_any_gradient_is_refused() -> None:
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
def test_minimize_finds_the_least_of_a_quadratic_function(variant: str) -> None:
    pytest.importorskip("autograd")
    goal = np.array([1.0, -2.0, 3.0])
    variable = np.zeros(3)
    optimizer = build(variant)
    for _ in range(30):
        optimizer.minimize(lambda w: ((w - goal) ** 2).sum(), var_list=[variable])
    assert np.sum((variable - goal) ** 2) < np.sum(goal**2)
