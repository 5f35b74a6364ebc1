"""compute_gradients with each library: values, variables without gradient, grad_loss, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import IndexedSlices, Variable
from fastclip._autodiff.gradients import compute_gradients
from support.autodiff_engines import (
    EVERY_ENGINE,
    Array,
    assert_gradient,
    library,
    regression,
    regression_gradients,
)
from support.strategies import PROPERTY

pytest.importorskip("autograd")

import autograd.numpy as anp


@EVERY_ENGINE
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


@EVERY_ENGINE
@pytest.mark.parametrize("how", READERS)
def test_every_way_to_read_a_variable_is_differentiated(engine: str, how: str) -> None:
    lib, read = library(engine), READERS[how]
    rng = np.random.default_rng(1)
    v0, m0, x0 = (rng.normal(size=s).astype(np.float32) for s in (3, (3, 3), 3))
    v, m = Variable(v0), Variable(m0)
    x = lib.asarray(x0)
    results = compute_gradients(lambda: read(lib, x, v, m), [v, m], backend=engine)

    class Wide(np.ndarray[Any, Any]):
        """A float64 array with the attribute `value` of a variable, for the same expression."""

        value = property(lambda self: self)

    numpy = library("numpy")
    for k, (start, (gradient, variable)) in enumerate(zip((v0, m0), results, strict=True)):
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
    assert results[0][0] is not None or how == "w @ x"


# Variables without gradient ----------------------------------------------------------------------


@EVERY_ENGINE
@pytest.mark.parametrize("closure", [True, False])
def test_gradient_is_none_for_unused_variables_and_zeros_for_used_ones(engine: str, closure: bool) -> None:
    lib = library(engine)
    used, zero, unused = Variable([1.0, 2.0]), Variable([3.0, 4.0]), Variable([5.0])

    def loss(used: Any, zero: Any, unused: Any) -> Any:
        _ = unused * 2
        return lib.sum(used * 3) + lib.sum(zero * 0.0)

    run: Any = (lambda: loss(used, zero, unused)) if closure else loss
    results = compute_gradients(run, [used, zero, unused], backend=engine)
    assert results[0][0].tolist() == [3.0, 3.0]
    assert results[1][0].tolist() == [0.0, 0.0]
    assert results[2][0] is None


@EVERY_ENGINE
def test_gradients_of_a_constant_loss_are_none(engine: str) -> None:
    w, v = Variable([1.0]), Variable([1.0])
    assert [g for g, _ in compute_gradients(lambda: 2.5, [w, v], backend=engine)] == [None, None]
    assert [g for g, _ in compute_gradients(lambda: w.numpy()[0], [w, v], backend=engine)] == [None, None]


@pytest.mark.interop("jax")
def test_gradient_that_jax_stops_is_none() -> None:
    import jax

    w, v = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    results = compute_gradients(lambda: (jax.lax.stop_gradient(w.value) * v).sum(), [w, v], backend="jax")
    assert results[0][0] is None
    assert results[1][0].tolist() == [1.0, 2.0]


def test_gradients_of_registered_integer_variables_are_none() -> None:
    step, w = Variable(3), Variable([1.0])
    results = {id(v): g for g, v in compute_gradients(lambda: anp.sum(w * w))}
    assert results[id(step)] is None
    assert results[id(w)].tolist() == [2.0]


# grad_loss ---------------------------------------------------------------------------------------


@EVERY_ENGINE
def test_gradients_are_multiplied_by_grad_loss(engine: str) -> None:
    lib = library(engine)
    w = Variable(np.array([1.0, 2.0, 3.0]))
    [(ones, _)] = compute_gradients(lambda: w * w, [w], backend=engine)
    np.testing.assert_array_equal(ones, [2.0, 4.0, 6.0])
    factors = np.array([1.0, 0.0, -0.5])
    for grad_loss in (factors, factors.astype(np.float32), factors.tolist(), Variable(factors)):
        [(gradient, _)] = compute_gradients(lambda: w * w, [w], grad_loss=grad_loss, backend=engine)
        np.testing.assert_array_equal(gradient, [2.0, 0.0, -3.0])
    [(gradient, _)] = compute_gradients(lambda: lib.sum(w * w), [w], grad_loss=2, backend=engine)
    np.testing.assert_array_equal(gradient, [4.0, 8.0, 12.0])
    # Where the loss is the variable itself, the gradient is a copy of grad_loss.
    [(gradient, _)] = compute_gradients(lambda: w, [w], grad_loss=factors, backend=engine)
    assert not np.shares_memory(gradient, factors)
    np.testing.assert_array_equal(gradient, factors)


@EVERY_ENGINE
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


# Memory and layouts ------------------------------------------------------------------------------


@EVERY_ENGINE
def test_gradients_share_no_memory(engine: str) -> None:
    lib = library(engine)
    a, b = Variable(np.ones((3, 2))), Variable(np.ones((3, 2)))
    results = compute_gradients(lambda: lib.sum(a + b), [a, b, a], backend=engine)
    arrays = [g for g, _ in results]
    for i, gradient in enumerate(arrays):
        assert gradient.flags.writeable
        assert 0 not in gradient.strides
        for other in [*arrays[:i], a.value, b.value]:
            assert not np.shares_memory(gradient, other)
    _, norm = fastclip.clip_by_global_norm(arrays, 1.0, out=arrays)
    assert norm == math.sqrt(18)


@EVERY_ENGINE
def test_variable_listed_twice_has_the_same_gradient_twice(engine: str) -> None:
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
    buffer = np.random.default_rng(seed).normal(size=[2 * n for n in shape]).astype(dtype)
    array = np.asarray(buffer, order=order)[(..., *(slice(0, None, step) for _ in shape))]
    check_tanh("autograd", array)


@EVERY_ENGINE
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_that_libraries_cannot_share(engine: str, dtype: Any) -> None:
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
def test_jax_computes_in_float64_and_its_configuration_is_restored() -> None:
    import jax
    import jax.numpy as jnp

    before = jax.config.jax_enable_x64
    w = Variable(np.array([1e-12, 1.0]))
    [(gradient, _)] = compute_gradients(lambda: jnp.sum((w + 1.0) ** 3), [w], backend="jax")
    np.testing.assert_allclose(gradient, 3 * (np.array([1e-12, 1.0]) + 1) ** 2, rtol=1e-15)
    assert gradient.dtype == np.float64
    assert jax.config.jax_enable_x64 == before
    assert jnp.ones(1).dtype == (jnp.float64 if before else jnp.float32)


# torch -------------------------------------------------------------------------------------------


@pytest.mark.interop("torch")
def test_torch_tensors_have_torch_gradients_without_a_backend_argument() -> None:
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
    results = compute_gradients(lambda: (leaf**3).sum(), [leaf, unused])
    assert results[0][0].tolist() == [3.0, 12.0]
    assert results[1][0] is None
    assert leaf.grad is None
    with pytest.raises(TypeError, match=r"var_list\[0\].*requires no gradient"):
        compute_gradients(lambda: (x**2).sum(), [x])
    with pytest.raises(TypeError, match=r"var_list\[1\].*backend='torch'"):
        compute_gradients(lambda a, b: a, [np.ones(1), x])
    with torch.no_grad():
        [(gradient, _)] = compute_gradients(lambda x: (x**2).sum(), [x])
    assert gradient.tolist() == [2.0, 4.0]


@pytest.mark.interop("torch")
def test_gradient_of_a_sparse_torch_embedding_is_indexed_slices() -> None:
    import torch

    w = Variable(np.arange(8, dtype=np.float32).reshape(4, 2))
    rows = torch.tensor([1, 3, 1])
    [(gradient, _)] = compute_gradients(
        lambda: torch.nn.functional.embedding(rows, w, sparse=True).sum(), [w], backend="torch"
    )
    assert isinstance(gradient, IndexedSlices)
    assert gradient.to_dense().tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]


@pytest.mark.interop("torch")
def test_torch_shares_the_memory_of_a_variable() -> None:
    import torch

    w = Variable(np.ones(3, np.float32))
    addresses: list[int] = []
    compute_gradients(lambda v: addresses.append(v.data_ptr()) or torch.sum(v), [w], backend="torch")
    assert addresses == [w.value.ctypes.data]
