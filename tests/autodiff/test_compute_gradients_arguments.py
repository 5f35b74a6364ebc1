"""Arguments of compute_gradients: var_list, gates, and arguments that are refused."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip._autodiff.gradients import compute_gradients
from fastclip.train import GradientDescentOptimizer
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


def generator(entries: Any) -> Iterator[Any]:
    yield from entries


@pytest.mark.parametrize(
    "container",
    [
        generator,
        iter,
        deque,
        lambda entries: dict(enumerate(entries)).values(),
        lambda entries: dict.fromkeys(entries).keys(),
        itertools.chain,
        lambda entries: [generator(entries[:1]), {"rest": generator(entries[1:])}],
    ],
    ids=["generator", "iterator", "deque", "values", "keys", "chain", "nested"],
)
def test_var_list_may_be_any_iterable_with_an_order(container: Any) -> None:
    variables = [Variable([1.0]), Variable([2.0]), Variable([3.0])]
    pairs = compute_gradients(lambda a, b, c: anp.sum(a * b * b * c), container(variables))
    assert [v for _, v in pairs] == variables
    assert [g.tolist() for g, _ in pairs] == [[12.0], [12.0], [4.0]]
    optimizer = GradientDescentOptimizer(1.0)
    optimizer.minimize(lambda: anp.sum(variables[0] * variables[2]), var_list=container(variables))
    assert [float(v.value[0]) for v in variables] == [-2.0, 2.0, 2.0]


@pytest.mark.interop("torch")
def test_var_list_may_be_the_parameters_of_a_module() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = GradientDescentOptimizer(1.0)
    optimizer.minimize(lambda: model(torch.ones(3)).sum(), var_list=model.parameters())
    for parameter, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), start - 1.0)
    optimizer.load_state_dict(optimizer.state_dict(), model.parameters())


@pytest.mark.parametrize("call", ["compute_gradients", "minimize", "load_state_dict"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["empty", "used up", "zip"])
def test_iterator_that_yields_nothing_is_refused(call: str, nested: bool, kind: str) -> None:
    variables = [Variable([1.0])]
    optimizer = GradientDescentOptimizer(1.0)
    iterator: Any = generator([] if kind == "empty" else variables)
    if kind != "empty":
        list(iterator)
    iterator = zip(iterator, strict=False) if kind == "zip" else iterator
    passed = [variables[0], iterator] if nested else iterator
    path = r"var_list\[1\]" if nested else "var_list"
    calls: dict[str, Any] = {
        "compute_gradients": lambda: compute_gradients(lambda *values: 0.0, passed),
        "minimize": lambda: optimizer.minimize(lambda *values: 0.0, var_list=passed),
        "load_state_dict": lambda: optimizer.load_state_dict(optimizer.state_dict(), passed),
    }
    match = rf"^{path} is a (generator|zip) that is empty or was used up before"
    with pytest.raises(ValueError, match=match):
        calls[call]()


@pytest.mark.parametrize("kind", [set, frozenset])
def test_set_is_refused_because_it_has_no_order(kind: Any) -> None:
    variables = kind([Variable([1.0])])
    with pytest.raises(TypeError, match=rf"var_list is a {kind.__name__}, which has no order"):
        compute_gradients(lambda *values: 0.0, variables)
    optimizer = GradientDescentOptimizer(1.0)
    with pytest.raises(TypeError, match=rf"var_list is a {kind.__name__}, which has no order"):
        optimizer.load_state_dict(optimizer.state_dict(), variables)


def test_error_of_an_iterator_is_propagated() -> None:
    def failing() -> Iterator[Any]:
        yield Variable([1.0])
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        compute_gradients(lambda value: 0.0, failing())


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
