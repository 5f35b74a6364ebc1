"""Derivatives of the clip functions by autograd."""

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
from support import fresh_python
from support.clip_calls import UNIT_BOUND
from support.recorders import gradients as recorded
from support.recorders.gradients import Case
from support.strategies import PROPERTY

pytest.importorskip("autograd")

import autograd
import autograd.numpy as anp

Array = np.ndarray[Any, Any]

CASES = recorded.build_cases()
RECORDED = recorded.load()
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}


def weighted(case: Case, *arrays: Any) -> Any:
    """Returns the weighted sum of a case's outputs, which is differentiated."""
    outputs = case.call(fastclip, *arrays)
    scales = recorded.weights([np.shape(output) for output in outputs])
    return sum(anp.sum(output * scale) for output, scale in zip(outputs, scales, strict=True))


def assert_agrees(actual: Any, expected: Array, tolerance: float) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1.0))


def tolerance_of(case: Case) -> float:
    # TensorFlow computes the average norm in float32.
    return 2e-6 if "average" in case.id else TOLERANCE[case.arrays[0].dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_agree_with_tensorflow(case: Case) -> None:
    results = autograd.grad(lambda arrays: weighted(case, *arrays))(list(case.arrays))
    for gradient, expected in zip(results, RECORDED[case.id], strict=True):
        assert_agrees(gradient, expected, tolerance_of(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_compute_gradients_agrees_with_tensorflow(case: Case) -> None:
    variables = [Variable(array) for array in case.arrays]
    results = compute_gradients(lambda: weighted(case, *variables), variables)
    for (gradient, _), expected in zip(results, RECORDED[case.id], strict=True):
        if gradient is None:
            assert not expected.any()
        else:
            assert_agrees(gradient, expected, tolerance_of(case))


@pytest.mark.interop("tensorflow")
@pytest.mark.filterwarnings("ignore")
def test_installed_tensorflow_agrees_with_the_recorded_gradients() -> None:
    import tensorflow as tf

    for case in CASES:
        for live, expected in zip(recorded.run_tensorflow(tf, case), RECORDED[case.id], strict=True):
            np.testing.assert_allclose(live, expected, rtol=1e-4, atol=1e-6, err_msg=case.id)


def traced_outputs(function: Callable[..., Any], *arrays: Any) -> list[Any]:
    """Calls a function with traced arrays and returns the arrays inside its traced outputs."""
    values: list[Any] = []

    def loss(arrays: Any) -> Any:
        outputs = function(*arrays)
        values.extend(autograd.tracer.getval(output) for output in outputs)
        return sum(anp.sum(output) for output in outputs)

    autograd.grad(loss)(list(arrays))
    return values


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    bound=st.sampled_from([0.0, 1e-3, 1.0, 3.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
    zeros=st.booleans(),
)
@PROPERTY
def test_traced_outputs_have_the_bits_of_untraced_ones(
    shape: tuple[int, ...], dtype: Any, bound: float, seed: int, zeros: bool
) -> None:
    rng = np.random.default_rng(seed)
    t, u = (rng.normal(size=shape).astype(dtype) * (not zeros) for _ in range(2))
    functions: list[Callable[..., list[Any]]] = [
        lambda t, u: [fastclip.clip_by_norm(t, bound)],
        lambda t, u: [fastclip.clip_by_norm(t, bound, axes=[0])],
        lambda t, u: [fastclip.clip_by_average_norm(t, bound)],
        lambda t, u: [fastclip.clip_by_value(t, -bound, bound / 2)],
        lambda t, u: [*fastclip.clip_by_global_norm([t, u], bound)[0], fastclip.global_norm([t, u])],
        lambda t, u: [fastclip.clip_by_global_norm([t, u], bound)[1], fastclip.tensor_norms([t, u])],
        lambda t, u: fastclip.clip_by_block_rms([t, u], bound),
        lambda t, u: [fastclip.clip_by_norm(t, bound, ord=1), fastclip.clip_by_norm(t, bound, ord=np.inf)],
        lambda t, u: fastclip.adaptive_clip([t], [u], 0.1),
    ]
    for function in functions:
        for value, expected in zip(traced_outputs(function, t, u), function(t, u), strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("name", UNIT_BOUND)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradient_at_a_tensor_of_zeros_is_1(name: str, dtype: Any) -> None:
    gradient = autograd.grad(lambda t: anp.sum(UNIT_BOUND[name](t)))(np.zeros((3, 2), dtype))
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, np.ones((3, 2)))


def test_gradient_of_the_norm_at_zeros_is_0() -> None:
    gradient = autograd.grad(lambda t: fastclip.global_norm([t]) + anp.sum(fastclip.tensor_norms([t])))
    np.testing.assert_array_equal(gradient(np.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_gradients_do_not_overflow_or_underflow_in_intermediate_results(scale: float) -> None:
    t = np.array([3.0, 4.0]) * scale
    jacobian = autograd.jacobian(lambda t: fastclip.clip_by_norm(t, 1e-308))(t)
    np.testing.assert_allclose(
        jacobian, 1e-308 / (5 * scale) * np.array([[0.64, -0.48], [-0.48, 0.36]]), rtol=1e-6, atol=5e-324
    )
    np.testing.assert_allclose(autograd.grad(lambda t: fastclip.global_norm([t]))(t), [0.6, 0.8], rtol=1e-14)
    narrow = np.float32([3e30, 4e30])
    gradient = autograd.grad(lambda t: anp.sum(fastclip.clip_by_global_norm([t], 1.0)[0][0]))(narrow)
    np.testing.assert_allclose(gradient, np.array([0.16, -0.12]) / 5e30, rtol=1e-6)


def numeric(function: Callable[[Array], Any], at: Array) -> Array:
    result = np.zeros(at.shape)
    for i in np.ndindex(*at.shape):
        step = np.zeros(at.shape)
        step[i] = 1e-6
        result[i] = (np.sum(function(at + step)) - np.sum(function(at - step))) / 2e-6
    return result


RULES: dict[str, Callable[[Any], Any]] = {
    "order 1": lambda t: fastclip.clip_by_norm(t, 0.5, ord=1) ** 2,
    "order 3": lambda t: fastclip.clip_by_norm(t, 0.5, ord=3) ** 2,
    "order 1.5, axes": lambda t: fastclip.clip_by_norm(t, 0.5, axes=[1], ord=1.5) ** 2,
    "order inf": lambda t: fastclip.clip_by_norm(t, 0.5, ord=np.inf) ** 2,
    "order inf, axes": lambda t: fastclip.clip_by_norm(t, 0.5, axes=[0], ord=np.inf) ** 2,
    "global, order 3": lambda t: fastclip.clip_by_global_norm([t[:1], t[1:]], 0.5, ord=3)[0][1] ** 2,
    "global, order inf": lambda t: fastclip.clip_by_global_norm([t[:1], t[1:]], 0.5, ord=np.inf)[0][0] ** 2,
    "norms": lambda t: fastclip.tensor_norms({"a": t[0], "b": [t[1:] * 2, None]}) ** 3,
    "block rms": lambda t: fastclip.clip_by_block_rms([t, t[0]], 0.2)[0] ** 2,
    "adaptive, gradients": lambda t: (
        fastclip.adaptive_clip([np.cos(np.arange(12.0)).reshape(4, 3)], [t])[0] ** 2
    ),
    "adaptive, parameters": lambda t: fastclip.adaptive_clip([t], [np.ones((4, 3))], 0.1)[0] ** 2,
    "average": lambda t: fastclip.clip_by_average_norm(t, 0.05) ** 2,
    "value": lambda t: fastclip.clip_by_value(t, t[0] * 0.3, 0.5) ** 2,
    "use_norm": lambda t: fastclip.clip_by_global_norm([t], 0.5, use_norm=anp.sum(t**2))[0][0] ** 2,
}


@pytest.mark.parametrize("name", RULES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    rule = RULES[name]
    t = np.random.default_rng(5).normal(size=(4, 3))
    gradient = autograd.grad(lambda t: anp.sum(rule(t)))(t)
    np.testing.assert_allclose(gradient, numeric(rule, t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in RULES if "inf" not in name])
def test_second_derivatives_agree_with_finite_differences(name: str) -> None:
    rng = np.random.default_rng(6)
    t, direction = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    gradient = autograd.grad(lambda t: anp.sum(RULES[name](t)))
    product = autograd.grad(lambda t: anp.sum(gradient(t) * direction))(t)
    expected = (gradient(t + 1e-6 * direction) - gradient(t - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6)


def test_largest_elements_share_the_gradient_of_the_infinite_order() -> None:
    gradient = autograd.grad(lambda t: fastclip.global_norm([t, t[:1] * 0], ord=np.inf))(
        np.array([2.0, -2.0, 1.0])
    )
    np.testing.assert_array_equal(gradient, [0.5, -0.5, 0.0])


def test_containers_of_traced_values_keep_their_structure() -> None:
    t = {"w": np.array([3.0]), "b": [np.array([4.0]), None]}

    def loss(w: Any, b: Any) -> Any:
        clipped, norm = fastclip.clip_by_global_norm({"w": w, "b": [b, None]}, 1.0)
        assert list(clipped) == ["w", "b"]
        assert clipped["b"][1] is None
        return anp.sum(clipped["w"]) + anp.sum(clipped["b"][0]) * 2 + 0 * norm

    results = compute_gradients(loss, [t["w"], t["b"][0]])  # type: ignore[index]
    np.testing.assert_allclose([g[0] for g, _ in results], [0.2 * (1 - 0.6 * 2.2), 0.2 * (2 - 0.8 * 2.2)])


def test_traced_and_untraced_values_in_one_list() -> None:
    w, frozen = Variable(np.array([3.0])), Variable(np.array([4.0]), trainable=False)
    rows = IndexedSlices(np.array([[0.0]]), [1], (3, 1))

    def loss() -> Any:
        (a, b, _, d), norm = fastclip.clip_by_global_norm([w, frozen, np.zeros(2), rows], 1.0)
        assert norm._value == 5
        assert isinstance(d, IndexedSlices)
        return anp.sum(a) + anp.sum(b)

    [(gradient, _)] = compute_gradients(loss, [w])
    np.testing.assert_allclose(gradient, [0.2 * (1 - 0.6 * 1.4)])


def test_traced_lists_and_dicts_are_accepted() -> None:
    results = autograd.grad(lambda ws: fastclip.global_norm(ws))([np.array([3.0]), np.array([4.0])])
    assert [g.tolist() for g in results] == [[0.6], [0.8]]
    results = autograd.grad(lambda ws: fastclip.global_norm(ws))({"a": np.array([3.0]), "b": np.array([4.0])})
    assert results["b"].tolist() == [0.8]


@pytest.mark.parametrize(
    ("on_nonfinite", "expected"), [("propagate", [math.nan, math.nan]), ("zero", [0.0, 0.0])]
)
def test_gradients_with_a_nonfinite_norm(on_nonfinite: Any, expected: list[float]) -> None:
    def loss(t: Any) -> Any:
        return anp.sum(fastclip.clip_by_global_norm([t], 1.0, on_nonfinite=on_nonfinite)[0][0])

    np.testing.assert_array_equal(autograd.grad(loss)(np.array([1.0, math.nan])), expected)
    with pytest.raises(fastclip.NonFiniteError):
        autograd.grad(lambda t: anp.sum(fastclip.clip_by_global_norm([t], 1.0, on_nonfinite="raise")[0][0]))(
            np.array([1.0, math.inf])
        )


REFUSED: dict[str, Callable[[Any], Any]] = {
    "out=": lambda t: fastclip.clip_by_norm(t, 1.0, out=np.empty(2)),
    "out= ": lambda t: fastclip.clip_by_value(t, 0.0, 1.0, out=np.empty(2)),
    "out=  ": lambda t: fastclip.clip_by_global_norm([t], 1.0, out=[np.empty(2)])[0][0],
    "norms=": lambda t: fastclip.clip_by_global_norm([t], 1.0, norms=np.empty(1))[0][0],
    "comm=": lambda t: fastclip.global_norm([t], comm=object()),
    "orders below 1": lambda t: fastclip.clip_by_norm(t, 1.0, ord=0.5),
    "complex": lambda t: fastclip.clip_by_norm(t * 1j, 1.0),
    "t_list is an array": lambda t: fastclip.global_norm(t),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_cannot_be_differentiated_raise(name: str) -> None:
    with pytest.raises(TypeError, match=name.strip()):
        autograd.grad(lambda t: anp.sum(anp.real(REFUSED[name](t))))(np.array([3.0, 4.0]))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: fastclip.clip_by_norm(t, -math.nan), ValueError),
        (lambda t: fastclip.clip_by_norm(t, 1.0, axes=[5]), ValueError),
        (lambda t: fastclip.clip_by_global_norm([t], -1.0), ValueError),
        (lambda t: fastclip.clip_by_value(t, "a", 1.0), TypeError),
        (lambda t: fastclip.clip_by_norm(t, np.ones((2, 2))), ValueError),
    ],
)
def test_arguments_are_checked_with_traced_values(call: Callable[[Any], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(np.array([3.0, 4.0]))
    with pytest.raises(error):
        autograd.grad(lambda t: call(t))(np.array([3.0, 4.0]))


@pytest.mark.interop("jax")
def test_jax_is_refused() -> None:
    w = Variable([3.0, 4.0])
    for call in (lambda w: fastclip.clip_by_norm(w, 1.0), lambda w: fastclip.global_norm([w])):
        with pytest.raises(TypeError):
            compute_gradients(lambda: call(w), [w], backend="jax")  # noqa: B023
        with pytest.raises(TypeError):
            compute_gradients(lambda w: call(w), [w], backend="jax")  # noqa: B023


def test_clipping_arrays_and_variables_imports_no_autograd() -> None:
    fresh_python.run(
        """
        import sys
        import numpy as np
        import fastclip
        fastclip.clip_by_norm(fastclip.Variable([3.0, 4.0]), 1.0)
        fastclip.clip_by_global_norm([np.ones(2), fastclip.Variable([3.0])], 1.0)
        assert "autograd" not in sys.modules
        assert "fastclip._autodiff.differentiation_rules" not in sys.modules
        """
    )
