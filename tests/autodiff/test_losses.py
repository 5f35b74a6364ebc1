"""Losses: their signatures, their results, and exceptions and assignments inside them."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip._autodiff.gradients import compute_gradients
from support.autodiff_engines import (
    EVERY_ENGINE,
)

pytest.importorskip("autograd")

import autograd
import autograd.numpy as anp

# Signatures --------------------------------------------------------------------------------------


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
        # A loss with parameters may also read the variable itself.
        lambda v: anp.sum(v * w),
    ]
    for loss in losses:
        [(gradient, _)] = compute_gradients(loss, [w])
        assert gradient.tolist() == [2.0, 4.0]
    pairs = compute_gradients(lambda a, b=None: anp.sum(a * b), [w, Variable([1.0, 1.0])])
    assert pairs[1][0].tolist() == [1.0, 2.0]


def test_loss_without_a_signature_is_called_with_the_values() -> None:
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
def test_loss_with_another_number_of_parameters_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        compute_gradients(loss, [np.ones(1)])


# Results, exceptions and assignments -------------------------------------------------------------


@EVERY_ENGINE
@pytest.mark.parametrize(
    "value", [None, "loss", object(), [1.0], {"loss": 1.0}, 3, True, 1j, np.array([1]), np.array([None])]
)
def test_loss_that_returns_no_number_is_refused(engine: str, value: Any) -> None:
    w = Variable([1.0])
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: value, [w], backend=engine)
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: w > 0, [w], backend=engine)
    with pytest.raises(TypeError, match="loss returned"):
        compute_gradients(lambda: [w * w], [w], backend=engine)


@EVERY_ENGINE
def test_exception_of_a_loss_is_raised_and_variables_are_no_longer_traced(engine: str) -> None:
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


@EVERY_ENGINE
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
    # With autograd's own function: d/dw (w**3)' = 6 w.
    [(gradient, _)] = compute_gradients(lambda: autograd.grad(lambda x: x**3)(w[0]), [w])
    assert gradient.tolist() == [12.0]
    [(gradient, _)] = compute_gradients(
        lambda: anp.sum(autograd.grad(lambda x: anp.sum(w * x**2))(v.value)), [w]
    )
    assert gradient.tolist() == [6.0]


def test_threads_may_differentiate_at_once() -> None:
    w = Variable(np.ones(4))
    start = threading.Barrier(4)
    errors: list[Any] = []

    def work(scale: float) -> None:
        start.wait()
        for _ in range(50):
            [(gradient, _)] = compute_gradients(lambda: anp.sum(w * w * scale), [w])
            if gradient.tolist() != [2.0 * scale] * 4:
                errors.append(gradient)
            if type(w.value) is not np.ndarray:
                errors.append(w.value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
