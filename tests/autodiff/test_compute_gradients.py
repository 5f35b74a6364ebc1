"""Gradients of losses by real engines, against closed forms and finite differences."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import IndexedSlices, Variable
from fastclip._autodiff.gradients import compute_gradients
from support import fresh_python
from support.strategies import PROPERTY

pytest.importorskip("autograd")

import autograd
import autograd.numpy as anp

Array = np.ndarray[Any, Any]

ENGINES = [
    pytest.param("autograd"),
    pytest.param("jax", marks=pytest.mark.interop("jax")),
    pytest.param("torch", marks=pytest.mark.interop("torch")),
]
TOLERANCE = {4: 2e-5, 8: 1e-12}


def library(engine: str) -> Any:
    """An engine's functions under the names that the tests use."""
    if engine == "autograd":
        return SimpleNamespace(
            asarray=np.asarray,
            sum=anp.sum,
            dot=anp.dot,
            exp=anp.exp,
            tanh=anp.tanh,
            where=anp.where,
            stack=anp.stack,
        )
    if engine == "jax":
        import jax.numpy as jnp

        # Arrays stay NumPy's: they become JAX's inside, in its precision of the moment.
        return SimpleNamespace(
            asarray=np.asarray,
            sum=jnp.sum,
            dot=jnp.dot,
            exp=jnp.exp,
            tanh=jnp.tanh,
            where=jnp.where,
            stack=jnp.stack,
        )
    import torch

    return SimpleNamespace(
        asarray=lambda a: torch.from_numpy(np.asarray(a)),
        sum=torch.sum,
        dot=torch.matmul,
        exp=torch.exp,
        tanh=torch.tanh,
        where=torch.where,
        stack=torch.stack,
    )


def regression(dtype: Any, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(5, 3)).astype(dtype),
        rng.normal(size=5).astype(dtype),
        rng.normal(size=3).astype(dtype),
        np.array(rng.normal(), dtype),
    )


def regression_gradients(x: Array, y: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """Of ``sum((x w + b - y)**2)``, in float64."""
    x, y, w, b = (np.asarray(a, np.float64) for a in (x, y, w, b))
    residual = x @ w + b - y
    return 2 * x.T @ residual, 2 * residual.sum()


def assert_gradient(actual: Any, expected: Any, variable: Any) -> None:
    assert type(actual) is np.ndarray
    assert actual.dtype == variable.dtype
    assert actual.shape == variable.shape
    assert actual.flags.writeable
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype.itemsize] * scale)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["closure", "parameters", "arrays", "registered"])
def test_linear_regression(engine: str, dtype: Any, kind: str) -> None:
    lib = library(engine)
    x, y, w0, b0 = regression(dtype)
    expected = regression_gradients(x, y, w0, b0)
    xs, ys = lib.asarray(x), lib.asarray(y)
    w: Any = Variable(w0) if kind != "arrays" else w0
    b: Any = Variable(b0) if kind != "arrays" else b0

    def loss(w: Any, b: Any) -> Any:
        return lib.sum((lib.dot(xs, w) + b - ys) ** 2)

    if kind == "registered":
        listed = compute_gradients(lambda: loss(w, b), backend=engine)
        assert [v for _, v in listed] == fastclip.trainable_variables()
        pairs = [next(pair for pair in listed if pair[1] is v) for v in (w, b)]
        assert all(g is None for g, v in listed if v is not w and v is not b)
    else:
        pairs = compute_gradients((lambda: loss(w, b)) if kind == "closure" else loss, [w, b], backend=engine)
    assert [v is u for (_, v), u in zip(pairs, (w, b), strict=True)] == [True, True]
    for (gradient, variable), truth in zip(pairs, expected, strict=True):
        assert_gradient(gradient, truth, variable)
    np.testing.assert_array_equal(np.asarray(w), w0)


READERS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "dot": lambda lib, x, v, m: lib.sum(lib.dot(x, v)),
    "x @ w": lambda lib, x, v, m: lib.sum(x @ v),
    "w @ x": lambda lib, x, v, m: lib.sum(m @ lib.asarray(np.ones(3, np.float32))),
    "w @ w": lambda lib, x, v, m: lib.sum(m @ v),
    "sum(w)": lambda lib, x, v, m: lib.sum(v),
    "w.sum()": lambda lib, x, v, m: v.sum() + m.T.sum(),
    "w[0]": lambda lib, x, v, m: v[0] + m[1, 1],
    "iteration": lambda lib, x, v, m: sum(e * e for e in v),
    "len": lambda lib, x, v, m: lib.sum(v) / len(v),
    "exp": lambda lib, x, v, m: lib.sum(lib.exp(v)),
    "w - x": lambda lib, x, v, m: lib.sum((v - x) ** 2 / 2),
    "x - w": lambda lib, x, v, m: lib.sum((x - v) ** 2 / 2),
    "number": lambda lib, x, v, m: lib.sum(2.0 / (1.0 + v**2) - 3 * v),
    "np number": lambda lib, x, v, m: lib.sum(v * 2.5 + v / 2),
    "-w, +w": lambda lib, x, v, m: lib.sum(-v * +v),
    "abs": lambda lib, x, v, m: lib.sum(abs(v)),
    "value": lambda lib, x, v, m: lib.sum(v.value * v.value),
    "stack": lambda lib, x, v, m: lib.sum(lib.stack([v.value, v.value]) ** 2),
    "where": lambda lib, x, v, m: lib.sum(lib.where((v > 0), v.value, 2 * v)),
    "branch": lambda lib, x, v, m: lib.sum(v * 3) if v[0] > -100 else lib.sum(v),
    "the variable itself": lambda lib, x, v, m: v,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", READERS)
def test_every_way_to_read_a_variable_is_differentiated(engine: str, how: str) -> None:
    lib, read = library(engine), READERS[how]
    rng = np.random.default_rng(1)
    v0, m0, x0 = (rng.normal(size=s).astype(np.float32) for s in (3, (3, 3), 3))
    v, m = Variable(v0), Variable(m0)
    x = lib.asarray(x0)
    found = compute_gradients(lambda: read(lib, x, v, m), [v, m], backend=engine)

    class Wide(np.ndarray[Any, Any]):
        """What a variable has and an array has not, for the same expression in float64."""

        value = property(lambda self: self)

    numpy = SimpleNamespace(
        asarray=np.asarray, sum=np.sum, dot=np.dot, exp=np.exp, tanh=np.tanh, where=np.where, stack=np.stack
    )
    for k, (start, (gradient, variable)) in enumerate(zip((v0, m0), found, strict=True)):
        numeric = np.zeros(start.shape)
        for at in np.ndindex(*start.shape):
            ends = []
            for sign in (1, -1):
                moved = [v0.astype(np.float64), m0.astype(np.float64)]
                moved[k][at] += sign * 1e-6
                wide = [a.view(Wide) for a in moved]
                ends.append(np.sum(np.asarray(read(numpy, x0.astype(np.float64), *wide))))
            numeric[at] = (ends[0] - ends[1]) / 2e-6
        if gradient is None:
            assert not numeric.any(), "a variable that the loss depends on has no gradient"
        else:
            assert gradient.dtype == variable.dtype
            np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)
    assert found[0][0] is not None or how == "w @ x"


def test_numpys_array_on_the_left_defers_to_the_variable() -> None:
    x, y, w0, b0 = regression(np.float64)
    w, b = Variable(w0), Variable(b0)
    found = compute_gradients(lambda: anp.sum((x @ w + b - y) ** 2), [w, b])
    for (gradient, variable), truth in zip(found, regression_gradients(x, y, w0, b0), strict=True):
        assert_gradient(gradient, truth, variable)
    [(gradient, _)] = compute_gradients(lambda: anp.sum(np.float64(3) * np.exp(w)), [w])
    np.testing.assert_allclose(gradient, 3 * np.exp(w0))


@pytest.mark.interop("jax")
def test_numpys_array_on_the_left_defers_to_the_variable_under_jax() -> None:
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
def test_autograds_functions_take_variables(name: str) -> None:
    w = Variable(np.array([1.5, 2.5]))
    expected = autograd.grad(lambda v: anp.sum(FUNCTIONS[name](v) ** 2))(w.numpy())
    [(gradient, _)] = compute_gradients(lambda: FUNCTIONS[name](w) ** 2, [w])
    np.testing.assert_allclose(gradient, expected, rtol=1e-15)
    # As constants too, before and after.
    np.testing.assert_array_equal(FUNCTIONS[name](w), FUNCTIONS[name](w.numpy()))
    by = np.ones(())
    [(gradient, _)] = compute_gradients(lambda x: anp.sum(FUNCTIONS[name](w) * x), [by])
    np.testing.assert_allclose(gradient, np.sum(FUNCTIONS[name](w.numpy())))


@pytest.mark.interop("jax")
def test_jaxs_functions_take_variables() -> None:
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
def test_torchs_functions_take_variables() -> None:
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
def test_functions_that_jax_compiles_take_variables() -> None:
    import jax
    import jax.numpy as jnp

    w = Variable([1.0, 2.0])
    double = jax.jit(lambda v: jnp.sum(v * v))
    for _ in range(2):
        [(gradient, _)] = compute_gradients(lambda: double(w), [w], backend="jax")
        assert gradient.tolist() == (2 * w.value).tolist()
        w.assign_add([1.0, 1.0])


# Nothing connected is silently taken for a constant ----------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
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
def test_what_would_take_a_variable_for_a_constant_raises(engine: str, take: Callable[[Any], Any]) -> None:
    w = Variable([1.0, 2.0, 3.0])
    with pytest.raises(TypeError):
        compute_gradients(lambda: take(w), [w], backend=engine)
    assert w.value.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.interop("torch")
@pytest.mark.parametrize("name", ["tensor", "as_tensor", "asarray"])
def test_torch_makes_no_constant_of_a_variable(name: str) -> None:
    import torch

    w = Variable([1.0, 2.0])
    with pytest.raises(TypeError):
        compute_gradients(lambda: getattr(torch, name)(w).sum(), [w], backend="torch")
    assert getattr(torch, name)(w).tolist() == [1.0, 2.0]


@pytest.mark.interop("jax", "torch")
def test_one_library_does_not_read_what_another_traces() -> None:
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


def test_a_message_says_what_to_write_where_numpys_functions_meet_autograds_values() -> None:
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


# None and zeros ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("closure", [True, False])
def test_unconnected_gives_none_and_connected_gives_zeros(engine: str, closure: bool) -> None:
    lib = library(engine)
    used, zero, unused = Variable([1.0, 2.0]), Variable([3.0, 4.0]), Variable([5.0])

    def loss(used: Any, zero: Any, unused: Any) -> Any:
        _ = unused * 2
        return lib.sum(used * 3) + lib.sum(zero * 0.0)

    run: Any = (lambda: loss(used, zero, unused)) if closure else loss
    found = compute_gradients(run, [used, zero, unused], backend=engine)
    assert found[0][0].tolist() == [3.0, 3.0]
    assert found[1][0].tolist() == [0.0, 0.0]
    assert found[2][0] is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_depends_on_nothing_gives_none_for_all(engine: str) -> None:
    w, v = Variable([1.0]), Variable([1.0])
    assert [g for g, _ in compute_gradients(lambda: 2.5, [w, v], backend=engine)] == [None, None]
    assert [g for g, _ in compute_gradients(lambda: w.numpy()[0], [w, v], backend=engine)] == [None, None]


@pytest.mark.interop("jax")
def test_what_jax_stops_is_unconnected() -> None:
    import jax

    w, v = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    found = compute_gradients(lambda: (jax.lax.stop_gradient(w.value) * v).sum(), [w, v], backend="jax")
    assert found[0][0] is None
    assert found[1][0].tolist() == [1.0, 2.0]


def test_counters_among_the_registered_variables_have_no_gradient() -> None:
    step, w = Variable(3), Variable([1.0])
    found = {id(v): g for g, v in compute_gradients(lambda: anp.sum(w * w))}
    assert found[id(step)] is None
    assert found[id(w)].tolist() == [2.0]


# The incoming gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_grad_loss_comes_in(engine: str) -> None:
    lib = library(engine)
    w = Variable(np.array([1.0, 2.0, 3.0]))
    [(ones, _)] = compute_gradients(lambda: w * w, [w], backend=engine)
    np.testing.assert_array_equal(ones, [2.0, 4.0, 6.0])
    incoming = np.array([1.0, 0.0, -0.5])
    for given_as in (incoming, incoming.astype(np.float32), incoming.tolist(), Variable(incoming)):
        [(gradient, _)] = compute_gradients(lambda: w * w, [w], grad_loss=given_as, backend=engine)
        np.testing.assert_array_equal(gradient, [2.0, 0.0, -3.0])
    [(gradient, _)] = compute_gradients(lambda: lib.sum(w * w), [w], grad_loss=2, backend=engine)
    np.testing.assert_array_equal(gradient, [4.0, 8.0, 12.0])
    # The gradient of the variable itself is what comes in, and a copy of it.
    [(gradient, _)] = compute_gradients(lambda: w, [w], grad_loss=incoming, backend=engine)
    assert not np.shares_memory(gradient, incoming)
    np.testing.assert_array_equal(gradient, incoming)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("grad_loss", "error"),
    [(np.ones(2), ValueError), (1.0, ValueError), ("a", TypeError), ([1j] * 3, TypeError)],
)
def test_grad_loss_of_another_shape_or_type_is_refused(
    engine: str, grad_loss: Any, error: type[Exception]
) -> None:
    w = Variable([1.0, 2.0, 3.0])
    with pytest.raises(error, match="grad_loss"):
        compute_gradients(lambda: w * w, [w], grad_loss=grad_loss, backend=engine)


# What comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_share_no_memory(engine: str) -> None:
    lib = library(engine)
    a, b = Variable(np.ones((3, 2))), Variable(np.ones((3, 2)))
    found = compute_gradients(lambda: lib.sum(a + b), [a, b, a], backend=engine)
    arrays = [g for g, _ in found]
    for i, gradient in enumerate(arrays):
        assert gradient.flags.writeable
        assert 0 not in gradient.strides
        for other in [*arrays[:i], a.value, b.value]:
            assert not np.shares_memory(gradient, other)
    _, norm = fastclip.clip_by_global_norm(arrays, 1.0, out=arrays)
    assert norm == math.sqrt(18)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_variable_that_stands_twice_is_one_variable(engine: str) -> None:
    lib = library(engine)
    w = Variable([3.0])
    first, second = compute_gradients(lambda a, b: lib.sum(a * b * b), [w, w], backend=engine)
    assert first[0].tolist() == second[0].tolist() == [27.0]


@given(
    shape=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from([np.float32, np.float64]),
    step=st.sampled_from([1, 2, -1]),
    seed=st.integers(0, 2**32 - 1),
)
@PROPERTY
def test_any_shape_and_layout(shape: tuple[int, ...], order: Any, dtype: Any, step: int, seed: int) -> None:
    whole = np.random.default_rng(seed).normal(size=[2 * n for n in shape]).astype(dtype)
    array = np.asarray(whole, order=order)[(..., *(slice(0, None, step) for _ in shape))]
    check_tanh("autograd", array)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_that_libraries_copy(engine: str, dtype: Any) -> None:
    array = np.linspace(-2, 2, 24).astype(dtype).reshape(4, 6)
    read_only = array.copy()
    read_only.flags.writeable = False
    swapped = array.astype(array.dtype.newbyteorder())
    for layout in (array.T, array[::-1], array[:, ::2], array[0, 0, ...], array[:0], read_only):
        check_tanh(engine, layout)
    if engine == "torch":
        check_tanh(engine, swapped)


def check_tanh(engine: str, array: Array) -> None:
    lib = library(engine)

    def loss(values: Any) -> Any:
        return lib.sum(lib.tanh(values))

    [(gradient, _)] = compute_gradients(loss, [array], backend=engine)
    assert_gradient(gradient, 1 - np.tanh(array.astype(np.float64)) ** 2, array)


@pytest.mark.interop("jax")
def test_jax_computes_in_float64_and_its_configuration_stays() -> None:
    import jax
    import jax.numpy as jnp

    before = jax.config.jax_enable_x64
    w = Variable(np.array([1e-12, 1.0]))
    [(gradient, _)] = compute_gradients(lambda: jnp.sum((w + 1.0) ** 3), [w], backend="jax")
    np.testing.assert_allclose(gradient, 3 * (np.array([1e-12, 1.0]) + 1) ** 2, rtol=1e-15)
    assert gradient.dtype == np.float64
    assert jax.config.jax_enable_x64 == before
    assert jnp.ones(1).dtype == (jnp.float64 if before else jnp.float32)


# torch's tensors ---------------------------------------------------------------------------------


@pytest.mark.interop("torch")
def test_tensors_of_torch_give_tensors_and_choose_torch() -> None:
    import torch

    x = torch.tensor([1.0, 2.0])
    [(gradient, variable)] = compute_gradients(lambda x: (x**2).sum(), [x])
    assert variable is x
    assert isinstance(gradient, torch.Tensor)
    assert gradient.tolist() == [2.0, 4.0]
    assert not x.requires_grad
    assert x.grad is None

    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.tensor([1.0], requires_grad=True)
    found = compute_gradients(lambda: (leaf**3).sum(), [leaf, unused])
    assert found[0][0].tolist() == [3.0, 12.0]
    assert found[1][0] is None
    assert leaf.grad is None
    with pytest.raises(TypeError, match=r"var_list\[0\].*requires no gradient"):
        compute_gradients(lambda: (x**2).sum(), [x])
    with pytest.raises(TypeError, match=r"var_list\[1\].*backend='torch'"):
        compute_gradients(lambda a, b: a, [np.ones(1), x])
    with torch.no_grad():
        [(gradient, _)] = compute_gradients(lambda x: (x**2).sum(), [x])
    assert gradient.tolist() == [2.0, 4.0]


@pytest.mark.interop("torch")
def test_a_sparse_embedding_of_torch_gives_slices() -> None:
    import torch

    w = Variable(np.arange(8, dtype=np.float32).reshape(4, 2))
    rows = torch.tensor([1, 3, 1])
    [(gradient, _)] = compute_gradients(
        lambda: torch.nn.functional.embedding(rows, w, sparse=True).sum(), [w], backend="torch"
    )
    assert isinstance(gradient, IndexedSlices)
    assert gradient.to_dense().tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]


@pytest.mark.interop("torch")
def test_torch_reads_the_memory_of_a_variable() -> None:
    import torch

    w = Variable(np.ones(3, np.float32))
    seen: list[int] = []
    compute_gradients(lambda v: seen.append(v.data_ptr()) or torch.sum(v), [w], backend="torch")
    assert seen == [w.value.ctypes.data]


# A user's engine ---------------------------------------------------------------------------------


def finite_differences(loss: Callable[..., Any], values: list[Array]) -> tuple[Any, list[Array]]:
    """Moves the variables themselves, so that it serves losses of both kinds."""
    takes = bool(inspect.signature(loss).parameters)

    def call() -> float:
        return float(np.sum(loss(*values) if takes else loss()))

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
def test_a_callable_differentiates(closure: bool) -> None:
    x, y, w0, b0 = regression(np.float64)
    w, b = Variable(w0), Variable(b0)

    def loss(w: Any, b: Any) -> Any:
        return np.sum((x @ w + b - y) ** 2)

    run: Any = (lambda: loss(w, b)) if closure else loss
    found = compute_gradients(run, [w, b], backend=finite_differences)
    for (gradient, _), truth in zip(found, regression_gradients(x, y, w0, b0), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-6)
    doubled = compute_gradients(run, [w, b], grad_loss=2.0, backend=finite_differences)
    np.testing.assert_array_equal(doubled[0][0], 2 * found[0][0])


def test_a_callable_gets_the_loss_and_the_memory() -> None:
    w, a = Variable([1.0, 2.0]), np.ones((2, 2))
    got: list[Any] = []

    def backend(loss: Any, values: Any) -> Any:
        got.extend([loss, *values])
        return 1.0, [np.array([1.0, 2.0]), None]

    def loss(w: Any, a: Any) -> Any:
        raise AssertionError

    found = compute_gradients(loss, [w, a], backend=backend)
    assert got[0] is loss
    assert got[1] is w.value
    assert got[2] is a
    assert found[0][0].dtype == np.float32
    assert found[1][0] is None


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
def test_an_answer_of_a_callable_is_checked(answer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute_gradients(lambda: 0.0, [Variable([1.0, 2.0])], backend=lambda loss, values: answer)


# Which losses take values ------------------------------------------------------------------------


class Model:
    def __init__(self) -> None:
        self.w = Variable([1.0, 2.0])

    def closure(self) -> Any:
        return anp.sum(self.w * self.w)

    def parametrised(self, w: Any) -> Any:
        return anp.sum(w * w)

    def __call__(self) -> Any:
        return self.closure()


def test_losses_of_every_signature() -> None:
    model = Model()
    w = model.w
    losses: list[Any] = [
        model.closure,
        model.parametrised,
        model,
        functools.partial(model.parametrised, w),
        functools.partial(lambda scale, w: anp.sum(w * w) * scale, 1.0),
        lambda x=1.0: anp.sum(w * w) * x,
        lambda w, x=1.0: anp.sum(w * w) * x,
        lambda *values: anp.sum(values[0] ** 2),
        lambda *, scale=1.0: anp.sum(w * w) * scale,
        lambda w, /: anp.sum(w * w),
        lambda **kwargs: anp.sum(w * w),
        # A loss with parameters may read a variable under its own name as well.
        lambda v: anp.sum(v * w),
    ]
    for loss in losses:
        [(gradient, _)] = compute_gradients(loss, [w])
        assert gradient.tolist() == [2.0, 4.0]
    pairs = compute_gradients(lambda a, b=None: anp.sum(a * b), [w, Variable([1.0, 1.0])])
    assert pairs[1][0].tolist() == [1.0, 2.0]


def test_a_loss_that_tells_no_signature_gets_the_values() -> None:
    class Opaque:
        __signature__ = "none"

        def __call__(self, w: Any) -> Any:
            return anp.sum(w * w)

    with pytest.raises((ValueError, TypeError)):
        inspect.signature(Opaque())
    [(gradient, _)] = compute_gradients(Opaque(), [np.array([1.0])])
    assert gradient.tolist() == [2.0]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda a, b: a, "loss takes 2 values, and var_list has 1"),
        (lambda a, b, c=1: a, "2 to 3 values"),
        (lambda a, b, *c: a, "2 or more values"),
        (lambda *, scale: scale, "'scale'"),
    ],
)
def test_a_loss_of_another_number_of_parameters_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        compute_gradients(loss, [np.ones(1)])


# Arguments ---------------------------------------------------------------------------------------


def test_var_list_may_be_nested_or_one_variable() -> None:
    a, b, c = Variable([1.0]), Variable([2.0]), np.array([3.0])
    nested = {"layer": [a, (b,)], "c": c}
    found = compute_gradients(lambda x, y, z: anp.sum(x * y * z), nested)
    assert [v for _, v in found] == [a, b, c]
    assert [g.tolist() for g, _ in found] == [[6.0], [3.0], [2.0]]
    assert compute_gradients(lambda: a * a, a)[0][0].tolist() == [2.0]
    assert compute_gradients(lambda x: x * x, c)[0][0].tolist() == [6.0]


@pytest.mark.parametrize("loss", [None, 3.0, np.ones(2), Variable([1.0])])
def test_a_loss_that_is_no_function_raises_as_tensorflow(loss: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"^`loss` passed to Optimizer\.compute_gradients should be a function"
    ):
        compute_gradients(loss, [np.ones(1)])


@pytest.mark.parametrize("gate", [3, -1, "GATE_OP", None])
def test_an_unknown_gate_raises_as_tensorflow(gate: Any) -> None:
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
def test_no_variables_raises_as_tensorflow(var_list: Any) -> None:
    with pytest.raises(ValueError, match=r"^No variables to optimize\.$"):
        compute_gradients(lambda: 0.0, var_list)


def test_no_registered_variables_raises_as_tensorflow() -> None:
    fresh_python.run(
        """
        from fastclip._autodiff.gradients import compute_gradients
        try:
            compute_gradients(lambda: 0.0)
        except ValueError as error:
            assert str(error) == "No variables to optimize.", error
        else:
            raise SystemExit("taken")
        """
    )


@pytest.mark.parametrize("entry", [1.0, "w", None, [[1.0, 2.0]], object(), np.ma.masked_array([1.0]), b"w"])
def test_an_entry_that_is_no_variable_is_named(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"var_list\['a'\]\[1\]"):
        compute_gradients(lambda *values: 0.0, {"a": [np.ones(1), entry]})


def test_an_array_needs_a_parameter_and_floats() -> None:
    with pytest.raises(
        TypeError, match=r"var_list\[1\] is an array.*use a fastclip\.Variable, or give the loss"
    ):
        compute_gradients(lambda: 0.0, [Variable([1.0]), np.ones(1)])
    with pytest.raises(TypeError, match=r"var_list\[0\] is an array of dtype int64"):
        compute_gradients(lambda x: x, [np.array([1, 2], np.int64)])
    with pytest.raises(TypeError, match=r"var_list\[0\] is an array of dtype complex64"):
        compute_gradients(lambda: 0.0, [Variable(np.ones(1, np.complex64))])


@pytest.mark.parametrize("backend", ["tensorflow", "", 3, ("autograd",)])
def test_an_unknown_backend_is_refused(backend: Any) -> None:
    with pytest.raises(ValueError, match=r"backend is .*'autograd', 'jax', 'torch', or a callable"):
        compute_gradients(lambda: 0.0, [Variable([1.0])], backend=backend)


@pytest.mark.parametrize("engine", ["autograd", "jax", "torch"])
def test_an_engine_that_is_not_installed_names_its_extra(engine: str) -> None:
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
            assert "pip install 'fastclip[{engine}]'" in str(error), error
        else:
            raise SystemExit("taken")
        """
    )


def test_imports_the_engine_that_was_asked_for_and_no_other() -> None:
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


# What goes wrong in a loss -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "value", [None, "loss", object(), [1.0], {"loss": 1.0}, 3, True, 1j, np.array([1]), np.array([None])]
)
def test_a_loss_that_returns_no_number_is_refused(engine: str, value: Any) -> None:
    w = Variable([1.0])
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: value, [w], backend=engine)
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: w > 0, [w], backend=engine)
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: [w * w], [w], backend=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_loss_raises_comes_through_and_nothing_stays_traced(engine: str) -> None:
    w = Variable([1.0])
    failure = KeyError("of the loss")

    def loss() -> Any:
        _ = w * 2
        raise failure

    with pytest.raises(KeyError) as caught:
        compute_gradients(loss, [w], backend=engine)
    assert caught.value is failure
    assert type(w.value) is np.ndarray
    assert type(w * 2) is np.ndarray
    assert np.asarray(w) is w.value
    assert type(anp.sum(w)) is np.float32
    w.assign([2.0])


@pytest.mark.parametrize("engine", ENGINES)
def test_assigning_inside_the_loss_is_refused(engine: str) -> None:
    w, other = Variable([1.0]), Variable([1.0])
    with pytest.raises(RuntimeError, match="assigned to inside the loss"):
        compute_gradients(lambda: w.assign([2.0]), [w], backend=engine)
    assert w.value.tolist() == [1.0]
    compute_gradients(lambda: (other.assign([5.0]), w * w)[1], [w], backend=engine)
    assert other.value.tolist() == [5.0]


def test_gradients_inside_a_loss() -> None:
    w, v = Variable(np.array([2.0])), Variable(np.array([3.0]))
    with pytest.raises(RuntimeError, match="would be constants"):
        compute_gradients(lambda: compute_gradients(lambda: w * w, [w])[0][0], [w])
    with pytest.raises(TypeError, match="another differentiation"):
        compute_gradients(lambda: compute_gradients(lambda: w * v * v, [v])[0][0], [w])
    with pytest.raises(TypeError, match="another differentiation"):
        autograd.grad(lambda x: compute_gradients(lambda: w * x, [w])[0][0])(1.0)
    # autograd's own: d/dw (w**3)' = 6 w.
    [(gradient, _)] = compute_gradients(lambda: autograd.grad(lambda x: x**3)(w[0]), [w])
    assert gradient.tolist() == [12.0]
    [(gradient, _)] = compute_gradients(
        lambda: anp.sum(autograd.grad(lambda x: anp.sum(w * x**2))(v.value)), [w]
    )
    assert gradient.tolist() == [6.0]


def test_threads_may_differentiate_at_once() -> None:
    w = Variable(np.ones(4))
    start = threading.Barrier(4)
    wrong: list[Any] = []

    def work(scale: float) -> None:
        start.wait()
        for _ in range(50):
            [(gradient, _)] = compute_gradients(lambda: anp.sum(w * w * scale), [w])
            if gradient.tolist() != [2.0 * scale] * 4:
                wrong.append(gradient)
            if type(w.value) is not np.ndarray:
                wrong.append(w.value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
