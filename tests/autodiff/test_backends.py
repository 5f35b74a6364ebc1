"""The backend of compute_gradients: callables, and backends that are unknown or not installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastclip import IndexedSlices, Variable
from fastclip._autodiff.gradients import compute_gradients
from support import fresh_python
from support.autodiff_engines import (
    Array,
    regression,
    regression_gradients,
)

pytest.importorskip("autograd")


def finite_differences(loss: Callable[..., Any], values: list[Array]) -> tuple[Any, list[Array]]:
    """A backend that changes the variables in place, which a loss may read with or without parameters."""
    has_parameters = bool(inspect.signature(loss).parameters)

    def call() -> float:
        return float(np.sum(loss(*values) if has_parameters else loss()))

    grads = []
    for value in values:
        grad = np.zeros(value.shape)
        for at in np.ndindex(*value.shape):
            kept, ends = value[at], []
            for sign in (1, -1):
                value[at] = kept + sign * 1e-6
                ends.append(call())
            value[at] = kept
            grad[at] = (ends[0] - ends[1]) / 2e-6
        grads.append(grad)
    return call(), grads


@pytest.mark.parametrize("closure", [True, False])
def test_callable_backend_is_used(closure: bool) -> None:
    x, y, w0, b0 = regression(np.float64)
    w, b = Variable(w0), Variable(b0)

    def loss(w: Any, b: Any) -> Any:
        return np.sum((x @ w + b - y) ** 2)

    run: Any = (lambda: loss(w, b)) if closure else loss
    results = compute_gradients(run, [w, b], backend=finite_differences)
    for (gradient, _), truth in zip(results, regression_gradients(x, y, w0, b0), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-6)
    doubled = compute_gradients(run, [w, b], grad_loss=2.0, backend=finite_differences)
    np.testing.assert_array_equal(doubled[0][0], 2 * results[0][0])


def test_callable_backend_gets_the_loss_and_the_arrays_of_variables() -> None:
    w, a = Variable([1.0, 2.0]), np.ones((2, 2))
    got: list[Any] = []

    def backend(loss: Any, values: Any) -> Any:
        got.extend([loss, *values])
        return 1.0, [np.array([1.0, 2.0]), None]

    def loss(w: Any, a: Any) -> Any:
        raise AssertionError

    results = compute_gradients(loss, [w, a], backend=backend)
    assert got[0] is loss
    assert got[1] is w.value
    assert got[2] is a
    assert results[0][0].dtype == np.float32
    assert results[1][0] is None


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (None, TypeError, "backend returned a NoneType"),
        (1.0, TypeError, r"\(value, grads\)"),
        ((1.0, np.ones(2)), TypeError, "list of gradients"),
        ((1.0, []), ValueError, "0 gradients for 1"),
        ((1.0, [np.ones(2), None]), ValueError, "2 gradients for 1"),
        ((1.0, [np.ones(3)]), ValueError, r"shape \(3,\) for var_list\[0\]"),
        ((1.0, ["ab"]), TypeError, r"grads\[0\]"),
        ((1.0, [np.array([1, 2])]), TypeError, "floating-point"),
        ((1.0, [IndexedSlices(np.ones((1,)), [0], (3,))]), ValueError, r"shape \(3,\)"),
    ],
)
def test_result_of_a_callable_backend_is_checked(answer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute_gradients(lambda: 0.0, [Variable([1.0, 2.0])], backend=lambda loss, values: answer)


@pytest.mark.parametrize("backend", ["tensorflow", "", 3, ("autograd",)])
def test_unknown_backend_is_refused(backend: Any) -> None:
    with pytest.raises(ValueError, match=r"backend is .*'autograd', 'jax', 'torch', or a callable"):
        compute_gradients(lambda: 0.0, [Variable([1.0])], backend=backend)


@pytest.mark.parametrize("engine", ["autograd", "jax", "torch"])
def test_error_for_a_backend_that_is_not_installed_names_its_extra(engine: str) -> None:
    fresh_python.run(
        f"""
        import sys
        sys.modules[{engine!r}] = None
        import importlib.abc
        import fastclip
        from fastclip._autodiff.gradients import compute_gradients
        w = fastclip.Variable([1.0])
        del sys.modules[{engine!r}]
        class Hidden(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {engine!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Hidden())
        try:
            compute_gradients(lambda: 0.0, [w], backend={engine!r})
        except ImportError as error:
            assert "pip install 'fastclip-grad[{engine}]'" in str(error), error
        else:
            raise SystemExit("no error")
        """
    )


def test_only_the_requested_backend_is_imported() -> None:
    fresh_python.run(
        """
        import sys
        import fastclip
        from fastclip._autodiff.gradients import compute_gradients
        w = fastclip.Variable([1.0])
        frameworks = {"autograd", "jax", "torch", "tensorflow"}
        compute_gradients(lambda: 0.0, [w], backend=lambda loss, values: (0.0, [None]))
        assert not frameworks & set(sys.modules)
        compute_gradients(lambda: w * w, [w])
        assert frameworks & set(sys.modules) == {"autograd"}
        """
    )
