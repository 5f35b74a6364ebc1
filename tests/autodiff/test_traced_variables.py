"""Functions of autograd, JAX, torch and NumPy called with variables inside a loss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip._autodiff.gradients import compute_gradients
from support.autodiff_engines import (
    EVERY_ENGINE,
    assert_gradient,
    regression,
    regression_gradients,
)

pytest.importorskip("autograd")

import autograd
import autograd.numpy as anp


def test_operators_of_a_numpy_array_on_the_left_are_differentiated() -> None:
    x, y, w0, b0 = regression(np.float64)
    w, b = Variable(w0), Variable(b0)
    results = compute_gradients(lambda: anp.sum((x @ w + b - y) ** 2), [w, b])
    for (gradient, variable), truth in zip(results, regression_gradients(x, y, w0, b0), strict=True):
        assert_gradient(gradient, truth, variable)
    [(gradient, _)] = compute_gradients(lambda: anp.sum(np.float64(3) * np.exp(w)), [w])
    np.testing.assert_allclose(gradient, 3 * np.exp(w0))


@pytest.mark.interop("jax")
def test_operators_of_a_numpy_array_on_the_left_are_differentiated_by_jax() -> None:
    x, _, w0, _ = regression(np.float32)
    w = Variable(w0)
    [(gradient, _)] = compute_gradients(lambda: ((x @ w) ** 2).sum() + (2 - w).sum(), [w], backend="jax")
    np.testing.assert_allclose(gradient, 2 * x.T @ (x @ w0) - 1, rtol=1e-5)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "array of two": lambda w: anp.array([w, w]),
    "array": lambda w: anp.array(w),
    "concatenate": lambda w: anp.concatenate([w, w]),
    "stack": lambda w: anp.stack([w, w]),
    "vstack": lambda w: anp.vstack([w, w]),
    "einsum": lambda w: anp.einsum("i,j", w, w),
    "outer": lambda w: anp.outer(w, np.ones(2)),
    "linalg.norm": lambda w: anp.linalg.norm(w),
    "where": lambda w: anp.where(np.array([True, False]), w, 0.0),
    "reshape": lambda w: anp.reshape(w, (2, 1)),
    "mean": lambda w: anp.mean(w),
    "logaddexp": lambda w: anp.logaddexp(w, 1.0),
    "tensordot": lambda w: anp.tensordot(np.ones((3, 2)), w, axes=1),
    "broadcast_to": lambda w: anp.broadcast_to(w, (2,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autograd_functions_accept_variables(name: str) -> None:
    w = Variable(np.array([1.5, 2.5]))
    expected = autograd.grad(lambda v: anp.sum(FUNCTIONS[name](v) ** 2))(w.numpy())
    [(gradient, _)] = compute_gradients(lambda: FUNCTIONS[name](w) ** 2, [w])
    np.testing.assert_allclose(gradient, expected, rtol=1e-15)
    # Outside a loss, and where only another variable is differentiated, they are constants.
    np.testing.assert_array_equal(FUNCTIONS[name](w), FUNCTIONS[name](w.numpy()))
    by = np.ones(())
    [(gradient, _)] = compute_gradients(lambda x: anp.sum(FUNCTIONS[name](w) * x), [by])
    np.testing.assert_allclose(gradient, np.sum(FUNCTIONS[name](w.numpy())))


@pytest.mark.interop("jax")
def test_jax_functions_accept_variables() -> None:
    import jax
    import jax.numpy as jnp

    w = Variable([1.5, 2.5])
    functions: list[Callable[[Any], Any]] = [
        lambda w: jnp.concatenate([w, w]),
        lambda w: jnp.stack([w, w]),
        lambda w: jnp.einsum("i,j", w, w),
        jnp.linalg.norm,
        lambda w: jnp.where(jnp.array([True, False]), w, 0.0),
        jax.nn.softmax,
        jax.scipy.special.logsumexp,
        lambda w: jnp.ones((3, 2)) @ w,
        lambda w: jnp.ones(2) - w,
    ]
    for function in functions:
        expected = jax.grad(lambda v: jnp.sum(function(v) ** 2))(jnp.array(w.numpy()))  # noqa: B023
        [(gradient, _)] = compute_gradients(lambda: function(w) ** 2, [w], backend="jax")  # noqa: B023
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.interop("torch")
def test_torch_functions_accept_variables() -> None:
    import torch

    w = Variable(np.array([1.5, 2.5]))
    functions: list[Callable[[Any], Any]] = [
        lambda w: torch.cat([w, w]),
        lambda w: torch.stack((w, w)),
        lambda w: torch.einsum("i,j", w, w),
        lambda w: torch.linalg.vector_norm(w),
        lambda w: torch.nn.functional.softmax(w, dim=0),
        lambda w: torch.nn.functional.linear(torch.ones(3, 2, dtype=torch.float64), w),
        lambda w: torch.ones(3, 2, dtype=torch.float64) @ w,
        lambda w: torch.ones(2, dtype=torch.float64) - w,
        lambda w: torch.add(torch.ones(2), other=w),
    ]
    for function in functions:
        leaf = torch.from_numpy(w.numpy()).requires_grad_()
        (function(leaf) ** 2).sum().backward()
        [(gradient, _)] = compute_gradients(lambda: function(w) ** 2, [w], backend="torch")  # noqa: B023
        np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-12)


@pytest.mark.interop("jax")
def test_functions_compiled_by_jax_accept_variables() -> None:
    import jax
    import jax.numpy as jnp

    w = Variable([1.0, 2.0])
    double = jax.jit(lambda v: jnp.sum(v * v))
    for _ in range(2):
        [(gradient, _)] = compute_gradients(lambda: double(w), [w], backend="jax")
        assert gradient.tolist() == (2 * w.value).tolist()
        w.assign_add([1.0, 1.0])


# Functions that would treat a variable as a constant raise ---------------------------------------


@EVERY_ENGINE
@pytest.mark.parametrize(
    "take",
    [
        lambda w: np.dot(np.ones(3), w),
        lambda w: np.asarray(w).sum(),
        lambda w: np.array([w, w]).sum(),
        lambda w: np.concatenate([w, w]).sum(),
        lambda w: float(w[0:1].sum() * 0 + Variable.__float__(w)),
        lambda w: np.linalg.norm(w),
        lambda w: np.multiply.outer(np.ones(2), w).sum(),
    ],
)
def test_functions_that_would_lose_the_gradient_raise(engine: str, take: Callable[[Any], Any]) -> None:
    w = Variable([1.0, 2.0, 3.0])
    with pytest.raises(TypeError):
        compute_gradients(lambda: take(w), [w], backend=engine)
    assert w.value.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.interop("torch")
@pytest.mark.parametrize("name", ["tensor", "as_tensor", "asarray"])
def test_conversion_of_a_variable_to_a_torch_constant_raises(name: str) -> None:
    import torch

    w = Variable([1.0, 2.0])
    with pytest.raises(TypeError):
        compute_gradients(lambda: getattr(torch, name)(w).sum(), [w], backend="torch")
    assert getattr(torch, name)(w).tolist() == [1.0, 2.0]


@pytest.mark.interop("jax", "torch")
def test_functions_of_another_library_than_the_backend_raise() -> None:
    import jax.numpy as jnp
    import torch

    w = Variable([1.0, 2.0])
    functions: dict[str, Callable[[], Any]] = {
        "autograd": lambda: anp.sum(anp.sin(w)),
        "jax": lambda: jnp.sum(w),
        "torch": lambda: torch.sum(w),
    }
    for engine in functions:
        for other, function in functions.items():
            if engine == other:
                [(gradient, _)] = compute_gradients(function, [w], backend=engine)
                assert gradient is not None
            else:
                with pytest.raises((TypeError, NotImplementedError)):
                    compute_gradients(function, [w], backend=engine)


def test_error_for_numpy_functions_on_traced_values_recommends_autograd_numpy() -> None:
    w = Variable([1.0, 2.0])
    with pytest.raises(TypeError) as caught:
        compute_gradients(lambda: float((w * 2)[0]), [w])
    if sys.version_info >= (3, 11):
        assert "import autograd.numpy as np" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError, match=r"dtype object.*autograd\.numpy"):
        compute_gradients(lambda: np.concatenate([w * 2, w * 2]), [w])
    v = Variable([1.0], name="w")
    with pytest.raises(TypeError, match=r"'w'.*autograd\.numpy"):
        compute_gradients(lambda: np.dot(np.ones(1), v), [v])
