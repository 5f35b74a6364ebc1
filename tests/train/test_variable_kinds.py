"""Variables and gradients of other kinds than arrays: fastclip.Variable, torch, JAX and TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from support.training_cases import (
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    build,
    normal,
    some_gradients,
    some_variables,
)


@EVERY_OPTIMIZER
def test_variable_objects_are_updated_with_the_bits_of_arrays(variant: str) -> None:
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
def test_torch_parameters_are_updated_with_the_bits_of_arrays(variant: str) -> None:
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
def test_torch_bfloat16_gradients_are_accepted() -> None:
    torch = pytest.importorskip("torch")
    gradient = torch.randn(50, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    actual, expected = Training("Adam", [normal(1, 50)]), Training("Adam", [normal(1, 50)])
    actual.step([gradient])
    expected.step([gradient.to(torch.float32).numpy()])
    assert_same_training(actual, expected)


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
def test_torch_tensor_without_memory_is_refused() -> None:
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
def test_jax_arrays_are_accepted_as_gradients_and_refused_as_variables() -> None:
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
def test_tensorflow_tensors_are_accepted_as_gradients_and_refused_as_variables() -> None:
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
