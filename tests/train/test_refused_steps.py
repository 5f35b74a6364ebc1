"""Steps that are refused, and that they leave variables, slots and counters unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastclip
from fastclip import IndexedSlices
from support.strategies import read_only
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    build,
    normal,
    slices,
    some_gradients,
    some_variables,
)

Pairs = list[tuple[Any, Any]]


def with_gradient(gradient: Any, at: int = 4) -> Callable[[Pairs], Any]:
    """Returns a function that replaces the gradient of one pair."""

    def change(pairs: Pairs) -> Any:
        pairs[at] = (gradient, pairs[at][1])
        return pairs

    return change


def with_variable(variable: Any, at: int = 4) -> Callable[[Pairs], Any]:
    """Returns a function that replaces the variable of one pair; a callable is applied to that variable."""

    def change(pairs: Pairs) -> Any:
        gradient, before = pairs[at]
        pairs[at] = (gradient, variable(before) if callable(variable) else variable)
        return pairs

    return change


def with_entry(entry: Any) -> Callable[[Pairs], Any]:
    return lambda pairs: [*pairs[:4], entry]


def changed_slices(**attributes: Any) -> IndexedSlices:
    """Returns slices with attributes replaced after construction, which the constructor did not check."""
    changed = slices(7, [0, 1], (5, 3))
    for name, attribute in attributes.items():
        setattr(changed, name, attribute)
    return changed


def used_up(iterator: Any) -> Any:
    """Returns an iterator after reading it to its end."""
    for _ in iterator:
        pass
    return iterator


GRADIENT, VARIABLE = r"grads_and_vars\[{}\]\[0\]", r"grads_and_vars\[{}\]\[1\]"
LAST, MATRIX = 4, 1

#: A function that makes the usual pairs invalid, the exception, and a pattern of its message.
REFUSED: dict[str, tuple[Callable[[Pairs], Any], type[Exception], str]] = {
    "empty list": (lambda pairs: [], ValueError, r"No variables provided\."),
    "empty generator": (lambda pairs: iter(()), ValueError, r"No variables provided\."),
    "only None": (
        lambda pairs: [(None, variable) for _, variable in pairs],
        ValueError,
        "No gradients provided for any variable",
    ),
    "generator that was used up": (
        lambda pairs: used_up(pair for pair in pairs),
        ValueError,
        r"No variables provided\. grads_and_vars is a generator that is empty or was used up before",
    ),
    "zip of a generator that was used up": (
        lambda pairs: zip(used_up(gradient for gradient, _ in pairs), pairs, strict=False),
        ValueError,
        r"grads_and_vars is a zip that is empty or was used up before",
    ),
    "set": (lambda pairs: {(1, 2)}, TypeError, "grads_and_vars is a set, which has no order"),
    "frozenset": (lambda pairs: frozenset([(1, 2)]), TypeError, "grads_and_vars is a frozenset"),
    "not iterable": (lambda pairs: 5, TypeError, "grads_and_vars"),
    "None": (lambda pairs: None, TypeError, "grads_and_vars"),
    "array": (lambda pairs: np.zeros((2, 2), np.float32), TypeError, "grads_and_vars"),
    "string": (lambda pairs: "gradients", TypeError, "grads_and_vars"),
    "entry is no pair": (with_entry(np.float32(3)), TypeError, r"grads_and_vars\[4\]"),
    "entry is None": (with_entry(None), TypeError, r"grads_and_vars\[4\]"),
    "variable first": (
        lambda pairs: [*pairs[:4], (fastclip.Variable(pairs[4][1]), pairs[4][0])],
        TypeError,
        r"grads_and_vars\[4\] has a Variable first and an array .* the order is \(gradient, variable\)",
    ),
    "variable first, and slices": (
        lambda pairs: [*pairs[:4], (fastclip.Variable(pairs[1][1]), pairs[1][0])],
        TypeError,
        r"grads_and_vars\[4\] has a Variable first and a IndexedSlices .*\(gradient, variable\)",
    ),
    "variable first, and None": (
        lambda pairs: [*pairs[:4], [fastclip.Variable(pairs[4][1]), None]],
        TypeError,
        r"grads_and_vars\[4\] has a Variable first and None second; the order is \(gradient, variable\)",
    ),
    "entry of one": (lambda p: [*p[:4], (p[4][0],)], TypeError, r"grads_and_vars\[4\]"),
    "entry of three": (lambda p: [*p[:4], (*p[4], 1)], TypeError, r"grads_and_vars\[4\]"),
    # Dense gradients
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
    # Slices
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
    # Variables
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

EVERY_REFUSAL = pytest.mark.parametrize("case", REFUSED)


@EVERY_REFUSAL
@pytest.mark.parametrize("variant", ["Adam", "Nesterov"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}], ids=["unclipped", "clipped"])
def test_refused_first_step_leaves_everything_untouched(
    variant: str, case: str, clip: dict[str, Any]
) -> None:
    change, exception, message = REFUSED[case]
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
    # Later steps have the same bits as without the refused call.
    other = Training(variant, some_variables(), **clip)
    training.step(gradients)
    other.step(gradients)
    assert_same_training(training, other)


@EVERY_REFUSAL
@A_FEW_OPTIMIZERS
def test_refused_later_step_leaves_everything_untouched(variant: str, case: str) -> None:
    change, exception, message = REFUSED[case]
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
@pytest.mark.parametrize("case", ["only None", "short gradient", "row past the end", "read-only variable"])
def test_every_optimizer_refuses_and_leaves_everything_untouched(variant: str, case: str) -> None:
    change, exception, message = REFUSED[case]
    training = Training(variant, some_variables())
    training.step(some_gradients())
    before = training.state()
    passed = change(list(zip(some_gradients(60), training.variables, strict=True)))
    with pytest.raises(exception, match=message):
        training.optimizer.apply_gradients(passed, training.global_step)
    assert training.state() == before


def test_shapes_are_checked_before_nonfinite_gradients_are_skipped() -> None:
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


@pytest.mark.parametrize("case", REFUSED_GLOBAL_STEPS)
def test_refused_global_step_leaves_everything_untouched(case: str) -> None:
    global_step, exception = REFUSED_GLOBAL_STEPS[case]
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


@pytest.mark.parametrize("case", REFUSED_LEARNING_RATES)
@EVERY_OPTIMIZER
def test_refused_learning_rate_leaves_everything_untouched(variant: str, case: str) -> None:
    learning_rate, exception, message = REFUSED_LEARNING_RATES[case]
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
