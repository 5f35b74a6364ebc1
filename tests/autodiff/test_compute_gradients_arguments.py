"""Arguments of compute_gradients: var_list, gates, and arguments that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip._autodiff.gradients import compute_gradients
from support import fresh_python

pytest.importorskip("autograd")

import autograd.numpy as anp


def test_var_list_may_be_nested_or_one_variable() -> None:
    a, b, c = Variable([1.0]), Variable([2.0]), np.array([3.0])
    nested = {"layer": [a, (b,)], "c": c}
    results = compute_gradients(lambda x, y, z: anp.sum(x * y * z), nested)
    assert [v for _, v in results] == [a, b, c]
    assert [g.tolist() for g, _ in results] == [[6.0], [3.0], [2.0]]
    assert compute_gradients(lambda: a * a, a)[0][0].tolist() == [2.0]
    assert compute_gradients(lambda x: x * x, c)[0][0].tolist() == [6.0]


@pytest.mark.parametrize("loss", [None, 3.0, np.ones(2), Variable([1.0])])
def test_loss_that_is_no_function_raises_like_tensorflow(loss: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"^`loss` passed to Optimizer\.compute_gradients should be a function"
    ):
        compute_gradients(loss, [np.ones(1)])


@pytest.mark.parametrize("gate", [3, -1, "GATE_OP", None])
def test_unknown_gate_raises_like_tensorflow(gate: Any) -> None:
    text = (
        "gate_gradients must be one of: Optimizer.GATE_NONE, Optimizer.GATE_OP, Optimizer.GATE_GRAPH.  Not "
        f"{gate}"
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        compute_gradients(lambda x: x, [np.ones(1)], gate)
    assert str(caught.value) == text


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_known_gates_and_unused_arguments_change_nothing(gate: int) -> None:
    [(gradient, _)] = compute_gradients(lambda x: x, [np.ones(1)], gate, "method", True)
    assert gradient.tolist() == [1.0]


@pytest.mark.parametrize("var_list", [[], (), {}, [[], {}]])
def test_empty_var_list_raises_like_tensorflow(var_list: Any) -> None:
    with pytest.raises(ValueError, match=r"^No variables to optimize\.$"):
        compute_gradients(lambda: 0.0, var_list)


def test_missing_registered_variables_raise_like_tensorflow() -> None:
    fresh_python.run(
        """
        from fastclip._autodiff.gradients import compute_gradients
        try:
            compute_gradients(lambda: 0.0)
        except ValueError as error:
            assert str(error) == "No variables to optimize.", error
        else:
            raise SystemExit("no error")
        """
    )


@pytest.mark.parametrize("entry", [1.0, "w", None, [[1.0, 2.0]], object(), np.ma.masked_array([1.0]), b"w"])
def test_error_names_an_entry_that_is_no_variable(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"var_list\['a'\]\[1\]"):
        compute_gradients(lambda *values: 0.0, {"a": [np.ones(1), entry]})


def test_array_requires_a_parameter_of_the_loss_and_a_floating_point_dtype() -> None:
    with pytest.raises(
        TypeError, match=r"var_list\[1\] is an array.*use a fastclip\.Variable, or give the loss"
    ):
        compute_gradients(lambda: 0.0, [Variable([1.0]), np.ones(1)])
    with pytest.raises(TypeError, match=r"var_list\[0\] is an array of dtype int64"):
        compute_gradients(lambda x: x, [np.array([1, 2], np.int64)])
    with pytest.raises(TypeError, match=r"var_list\[0\] is an array of dtype complex64"):
        compute_gradients(lambda: 0.0, [Variable(np.ones(1, np.complex64))])
