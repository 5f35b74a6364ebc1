"""Signal handlers that use an optimizer in the middle of one of its methods.

A signal handler runs between two bytecode instructions, on the thread of the interrupted call, so that no
lock excludes it. Here a trace function takes its place: it runs code of the test before one line of
fastclip's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.train import AdagradDAOptimizer, AdamOptimizer, Optimizer
from support.line_tracing import call_with_action


def call_with_handler(
    call: Callable[[], Any], handler: Callable[[], Any], at: int
) -> tuple[bool, BaseException | None]:
    """Calls `call`, and `handler` before one of its lines; a RuntimeError of the call is returned."""
    return call_with_action(call, handler, at, catch=RuntimeError)


def adam_after(steps: int) -> tuple[AdamOptimizer, Any, Any]:
    """Returns an optimizer after some steps, its variable and the gradient of every step."""
    variable, gradient = np.ones(3, np.float32), np.array([1.0, -2.0, 3.0], np.float32)
    optimizer = AdamOptimizer(0.1)
    for _ in range(steps):
        optimizer.apply_gradients([(gradient, variable)])
    return optimizer, variable, gradient


def state_bytes(optimizer: Optimizer) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in optimizer.state_dict().items()}


def test_state_loaded_by_a_handler_during_a_step_is_loaded_before_or_after_the_step() -> None:
    early, variable, gradient = adam_after(2)
    saved, loaded = early.state_dict(), state_bytes(early)
    early.apply_gradients([(gradient, np.copy(variable))])
    follows, other, _ = adam_after(2)
    follows.apply_gradients([(gradient, other)])
    one_later = state_bytes(follows)
    outcomes = set()
    for at in range(400):
        optimizer, variable, gradient = adam_after(7)
        ran, error = call_with_handler(
            lambda o=optimizer, v=variable, g=gradient: o.apply_gradients([(g, v)]),
            lambda o=optimizer, v=variable: o.load_state_dict(saved, [v]),
            at,
        )
        if not ran:
            break
        state = state_bytes(optimizer)
        if error is not None:
            assert "in the middle" in str(error)
            outcomes.add("refused")
        else:
            # The moments and the powers of beta belong to the same number of steps.
            assert state in (loaded, one_later)
            outcomes.add("loaded" if state == loaded else "stepped")
    assert len(outcomes) > 1


@pytest.mark.parametrize("make", ["adam", "adagrad_da"])
def test_step_taken_by_a_handler_during_a_step_has_effect(make: str) -> None:
    def fresh() -> tuple[Any, Callable[[], None], Any]:
        variable, gradient = np.ones(3), np.array([1.0, -2.0, 3.0])
        counter = np.array(0)
        optimizer: Any
        optimizer = AdamOptimizer(0.1) if make == "adam" else AdagradDAOptimizer(0.1, counter, 0.1, 0.01)
        return optimizer, lambda: optimizer.apply_gradients([(gradient, variable)], counter), variable

    _, step, variable = fresh()
    start = variable.tobytes()
    step()
    step()
    two_steps = variable.tobytes()
    both = 0
    for at in range(400):
        _, step, variable = fresh()
        ran, error = call_with_handler(step, step, at)
        if not ran:
            break
        # An exception of the handler ends the interrupted step before the step has changed anything.
        assert variable.tobytes() == (two_steps if error is None else start)
        both += error is None
    assert both > 10


def test_state_saved_by_a_handler_during_a_step_is_consistent() -> None:
    for at in range(400):
        variables = [np.ones(2), np.ones(2)]
        optimizer = AdamOptimizer(0.1)

        def step(optimizer: Any = optimizer, variables: Any = variables) -> None:
            optimizer.apply_gradients([(np.full(2, 3.0), variable) for variable in variables])

        step()
        states: list[Any] = []
        ran, _ = call_with_handler(lambda o=optimizer, s=states: s.append(o.state_dict()), step, at)
        np.testing.assert_array_equal(states[0]["m.0"], states[0]["m.1"])
        np.testing.assert_allclose(states[0]["m.0"], 3.0 * (1.0 - states[0]["beta1_power"] / 0.9))
        if not ran:
            break
    else:
        raise AssertionError("the call has more lines than were tried")


def test_step_taken_by_a_handler_while_a_low_precision_copy_is_set_keeps_its_slots() -> None:
    for at in range(200):
        optimizer, variable = AdamOptimizer(0.1), np.ones(3, np.float32)
        other = np.ones(4, np.float32)

        def step(optimizer: Any = optimizer, other: Any = other) -> None:
            optimizer.apply_gradients([(np.ones(4, np.float32), other)])

        copy = np.zeros(3, np.float16)
        ran, _ = call_with_handler(
            lambda o=optimizer, v=variable, c=copy: o.set_low_precision_copy(v, c), step, at
        )
        if not ran:
            break
        assert optimizer.get_slot(other, "m") is not None
        AdamOptimizer(0.1).load_state_dict(optimizer.state_dict(), [other])


def test_global_step_that_shares_memory_with_the_optimizers_state_is_refused() -> None:
    optimizer, variable, gradient = adam_after(1)
    counter = optimizer.variables()[0].view(np.int64)
    before = variable.tobytes(), state_bytes(optimizer)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients([(gradient, variable)], counter)
    assert before == (variable.tobytes(), state_bytes(optimizer))


def test_negative_count_of_skipped_steps_is_refused() -> None:
    optimizer, _, _ = adam_after(1)
    with pytest.raises(ValueError, match="skipped_steps is -1"):
        optimizer.skipped_steps = -1
    optimizer.skipped_steps = 4
    assert optimizer.skipped_steps == 4


def test_stride_of_an_axis_of_one_element_is_ignored_when_memory_is_compared() -> None:
    x = np.ones(8)[::2][:, None]
    fastclip.clip_by_norm(x, 1.0, out=x[:, ::-1])
    np.testing.assert_allclose(x, 0.5)
