"""fastclip.Variable, and the collection of trainable variables."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import GraphKeys, Variable
from support.dtypes import BFLOAT16
from support.strategies import PROPERTY


def is_in(variable: Variable, variables: list[Variable]) -> bool:
    return any(v is variable for v in variables)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, np.float32),
        ([1.5, 2], np.float32),
        ([[1.0], [2.0]], np.float32),
        (3, np.int32),
        ([1, 2], np.int32),
        (2**40, np.int64),
        (True, np.bool_),
        ([], np.float32),
        (np.float64(1.5), np.float64),
        ([np.float64(1.5)], np.float64),
        (np.int64(3), np.int64),
        (np.array([1.5]), np.float64),
        (np.array([1.5], np.float16), np.float16),
        (np.array([1.5], BFLOAT16), BFLOAT16),
        (np.array([1, 2]), np.int64),
    ],
)
def test_dtype_is_that_of_tensorflow(value: Any, dtype: Any) -> None:
    variable = Variable(value)
    assert variable.dtype == dtype
    assert variable.value.dtype == dtype
    np.testing.assert_array_equal(variable.numpy(), np.asarray(value, dtype))


@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    order=st.sampled_from("CF"),
    step=st.sampled_from([1, -1, 2]),
)
@PROPERTY
def test_variable_holds_a_copy_of_an_array_of_any_layout(
    shape: tuple[int, ...], order: Any, step: int
) -> None:
    buffer = np.arange(np.prod([2 * n for n in shape]), dtype=np.float64).reshape([2 * n for n in shape])
    source = np.asarray(buffer, order=order)[tuple(slice(0, None, step) for _ in shape)]
    before = source.copy()
    variable = Variable(source)
    assert (variable.shape, variable.ndim, variable.size) == (before.shape, before.ndim, before.size)
    assert variable.value.flags.c_contiguous
    assert variable.value.flags.writeable
    assert not np.shares_memory(variable.value, buffer)
    variable.assign(before * 2 + 1)
    np.testing.assert_array_equal(source, before)
    np.testing.assert_array_equal(variable.value, before * 2 + 1)


def test_dtype_argument_and_callable_initial_value() -> None:
    assert Variable([1, 2], dtype=np.float64).dtype == np.float64
    assert Variable(lambda: np.ones(2)).value.tolist() == [1.0, 1.0]
    assert Variable(Variable([1.0, 2.0])).value.tolist() == [1.0, 2.0]


def test_attributes_and_repr() -> None:
    constraint = np.abs
    variable = Variable([1.0], trainable=False, name="w", constraint=constraint)
    assert (variable.name, variable.trainable, variable.constraint) == ("w", False, constraint)
    assert repr(variable) == "<Variable 'w' shape=(1,) dtype=float32, value=array([1.], dtype=float32)>"
    assert Variable(1.0).name == "Variable"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial_value": "abc"}, TypeError, "initial_value is a str"),
        ({"initial_value": np.array([None])}, TypeError, "initial_value is an array of dtype object"),
        ({"initial_value": np.ma.masked_array([1.0])}, TypeError, "initial_value is a masked array"),
        ({"initial_value": 1.0, "name": 3}, TypeError, "name is 3"),
        ({"initial_value": 1.0, "constraint": 3}, ValueError, "constraint is a int"),
    ],
)
def test_invalid_arguments_of_the_constructor_are_refused(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Variable(**arguments)


def test_value_is_always_the_same_array() -> None:
    variable = Variable([1.0, 2.0])
    memory = variable.value
    assert variable.assign([3.0, 4.0]) is variable
    assert variable.assign_add([1.0, 1.0]) is variable
    assert variable.assign_sub(np.array([0.5, 0.5])) is variable
    assert variable.value is memory
    assert memory.tolist() == [3.5, 4.5]
    memory[0] = 9
    assert variable.numpy().tolist() == [9.0, 4.5]
    assert not np.shares_memory(variable.numpy(), memory)
    assert np.shares_memory(np.asarray(variable), memory)


@pytest.mark.parametrize("method", ["assign", "assign_add", "assign_sub"])
@pytest.mark.parametrize(
    ("initial", "value", "error"),
    [
        ([1.0, 2.0], [1.0], ValueError),
        ([1.0, 2.0], 1.0, ValueError),
        ([1.0, 2.0], "ab", TypeError),
        ([1.0, 2.0], [1j, 1j], TypeError),
        ([1.0, 2.0], None, TypeError),
        ([1, 2], [1.5, 2.0], TypeError),
        ([1, 2], [1, 2**40], OverflowError),
    ],
)
def test_refused_assignment_changes_nothing(
    method: str, initial: Any, value: Any, error: type[Exception]
) -> None:
    variable = Variable(initial)
    with pytest.raises(error):
        getattr(variable, method)(value)
    assert variable.numpy().tolist() == initial


def test_assigned_values_are_converted_to_the_variables_precision() -> None:
    assert Variable([1.0]).assign(np.array([0.1])).value[0] == np.float32(0.1)
    assert Variable([1.0]).assign([3]).value[0] == 3
    narrow = Variable(np.zeros(1, BFLOAT16)).assign([1.5])
    assert narrow.dtype == BFLOAT16
    assert float(narrow.value[0]) == 1.5
    wide = Variable([0.0]).assign_add(np.array([1.5], BFLOAT16))
    assert wide.value.tolist() == [1.5]
    step = Variable(0, trainable=False)
    assert int(step.assign_add(1)) == 1


BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
]


@pytest.mark.parametrize("operate", BINARY)
@pytest.mark.parametrize(
    "other", [2, 1.5, np.float64(2.5), np.array([2.0, 0.5, 1.0]), np.ones((2, 3)), [1.0, 2.0, 3.0]]
)
def test_operators_are_those_of_the_array(operate: Callable[..., Any], other: Any) -> None:
    array = np.array([1.0, 2.0, 3.0])
    variable = Variable(array)
    other_as_array = np.asarray(other) if isinstance(other, list) else other
    for result, expected in [
        (operate(variable, other_as_array), operate(array, other_as_array)),
        (operate(other_as_array, variable), operate(other_as_array, array)),
        (operate(variable, variable), operate(array, array)),
    ]:
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(result, expected)


def test_matrix_products_indices_methods_and_numbers() -> None:
    array = np.arange(6.0).reshape(2, 3)
    w, x = Variable(array), np.ones((4, 2))
    np.testing.assert_array_equal(x @ w, x @ array)
    np.testing.assert_array_equal(w @ np.ones(3), array @ np.ones(3))
    np.testing.assert_array_equal(w @ Variable(np.ones(3)), array @ np.ones(3))
    np.testing.assert_array_equal(w[1, 1:], array[1, 1:])
    np.testing.assert_array_equal(w.T, array.T)
    np.testing.assert_array_equal(-w, -array)
    np.testing.assert_array_equal(+w, array)
    np.testing.assert_array_equal(abs(-w), array)
    np.testing.assert_array_equal(np.exp(w), np.exp(array))
    np.testing.assert_array_equal(np.add.reduce(w), array.sum(axis=0))
    np.testing.assert_array_equal(np.dot(x, w), x @ array)
    np.testing.assert_array_equal(list(w), list(array))
    assert w.sum() == np.sum(w) == 15
    assert len(w) == 2
    assert (float(Variable(1.5)), int(Variable(3)), [7, 8, 9][Variable(1)]) == (1.5, 3, 8)
    assert bool(Variable(1.0))
    assert not Variable(0.0)
    with pytest.raises(TypeError):
        float(w)
    with pytest.raises(TypeError):
        len(Variable(1.0))
    with pytest.raises(AttributeError):
        _ = w.no_such_thing


def test_ufuncs_accept_a_variable_as_out() -> None:
    w = Variable([1.0, 2.0])
    np.multiply(w, 2, out=w)
    assert w.value.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ipow", "imatmul"])
def test_augmented_assignment_raises_like_in_tensorflow(name: str) -> None:
    w = Variable([1.0, 2.0])
    with pytest.raises(RuntimeError, match="assign_add"):
        getattr(operator, name)(w, np.ones(2))
    assert w.value.tolist() == [1.0, 2.0]


def test_array_method_follows_numpys_protocol() -> None:
    w = Variable([1.0, 2.0])
    assert np.asarray(w, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(w), w.value)
    assert not np.shares_memory(w.__array__(copy=True), w.value)
    with pytest.raises(ValueError, match="is a copy"):
        w.__array__(np.float64, copy=False)


def test_variable_is_equal_only_to_itself_and_hashable() -> None:
    a, b = Variable([1.0]), Variable([1.0])
    assert a == a
    assert a != b
    assert {a: 1, b: 2}[a] == 1


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda v, p=p: pickle.loads(pickle.dumps(v, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
]


@pytest.mark.parametrize("copied", COPIES)
def test_copies_share_no_memory(copied: Callable[[Variable], Variable]) -> None:
    w = Variable(np.array([1.0, 2.0]), name="w", trainable=False, constraint=np.abs)
    other = copied(w)
    assert (other.name, other.trainable, other.dtype, other.constraint) == ("w", False, np.float64, np.abs)
    other.assign([5.0, 6.0])
    assert w.value.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("copied", COPIES)
def test_copies_are_in_no_collection(copied: Callable[[Variable], Variable]) -> None:
    w = Variable([1.0])
    other = copied(w)
    assert other.trainable
    assert is_in(w, fastclip.trainable_variables())
    assert not is_in(other, fastclip.trainable_variables())


class Labelled(Variable):
    """A subclass with an attribute in a slot, one in a dict, and another constructor."""

    __slots__ = ("__dict__", "label")

    def __init__(self, label: str, *, notes: list[str]) -> None:
        super().__init__([1.0, 2.0], name="labelled")
        self.label, self.notes = label, notes


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_subclasses_keep_class_and_attributes(copied: Callable[[Variable], Any]) -> None:
    w = Labelled("a", notes=["b"])
    other = copied(w)
    assert type(other) is Labelled
    assert (other.label, other.notes, other.name) == ("a", ["b"], "labelled")
    assert (other.notes is w.notes) == (copied is copy.copy)
    assert other.value.tolist() == [1.0, 2.0]
    assert other.value is not w.value


def test_copy_of_a_subclass_that_selects_its_state() -> None:
    class Selective(Variable):
        def __getstate__(self) -> Any:
            return None, {"name": f"copy of {self.name}", "trainable": False, "constraint": None}

    other = copy.deepcopy(Selective([1.0], name="w"))
    assert (other.name, other.trainable, other.numpy()) == ("copy of w", False, 1.0)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_arrays_that_cannot_be_written_can(copied: Callable[[Variable], Variable]) -> None:
    w = Variable([1.0])
    w.value.flags.writeable = False
    assert copied(w).assign([2.0]).numpy() == 2.0


def test_clip_functions_accept_variables() -> None:
    w = Variable([3.0, 4.0])
    np.testing.assert_array_equal(fastclip.clip_by_norm(w, 1.0), fastclip.clip_by_norm(w.value, 1.0))
    np.testing.assert_array_equal(fastclip.clip_by_value(w, 0.0, 3.5), [3.0, 3.5])
    assert fastclip.global_norm([w, {"a": w}]) == np.float32(np.sqrt(50))
    [clipped], norm = fastclip.clip_by_global_norm([w], 2.5)
    assert norm == 5
    assert clipped.tolist() == [1.5, 2.0]


def test_trainable_variables_are_collected_in_order_of_creation() -> None:
    variables = [Variable(float(i), trainable=i != 1, name=str(i)) for i in range(4)]
    listed = [v for v in fastclip.trainable_variables() if is_in(v, variables)]
    assert [v.name for v in listed] == ["0", "2", "3"]
    assert is_in(variables[0], fastclip.get_collection(GraphKeys.TRAINABLE_VARIABLES))
    assert fastclip.get_collection("losses") == []
    fastclip.trainable_variables().clear()
    assert is_in(variables[0], fastclip.trainable_variables())
    with pytest.raises(TypeError, match="key is 3"):
        fastclip.get_collection(3)  # type: ignore[arg-type]


def test_collection_has_weak_references() -> None:
    variable = Variable([1.0], name="short-lived")
    memory = variable.value
    del variable
    gc.collect()
    assert not any(v.name == "short-lived" for v in fastclip.trainable_variables())
    assert memory.tolist() == [1.0]


def test_threads_may_create_variables_at_once() -> None:
    kept: list[Variable] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                Variable(0.0)
                kept.append(Variable(1.0))
                fastclip.trainable_variables()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    listed = {id(v) for v in fastclip.trainable_variables()}
    assert {id(v) for v in kept} <= listed
