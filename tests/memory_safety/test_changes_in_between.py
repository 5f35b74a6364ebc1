"""What the handler of a signal does to an optimizer that is in the middle of something.

A handler runs between two steps of the interpreter, on the thread that the call is on, so that no lock keeps
it out. `sys.settrace` stands for it: it runs code of the test before each line of fastclip's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.train import AdagradDAOptimizer, AdamOptimizer, Optimizer


def call_with_handler(call: Callable[[], Any], handler: Callable[[], Any], at: int) -> tuple[bool, Any]:
    """Call, with the handler before the line of that number.

    Returns whether there was such a line, and what was raised.
    """
    left, ran = at, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left, ran
        if "fastclip" not in frame.f_code.co_filename:
            return None
        if event == "line":
            if left == 0:
                sys.settrace(None)
                ran = True
                handler()
                return None
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except RuntimeError as error:
        return ran, error
    finally:
        sys.settrace(before)
    return ran, None


def adam(steps: int) -> tuple[AdamOptimizer, Any, Any]:
    variable, gradient = np.ones(3, np.float32), np.array([1.0, -2.0, 3.0], np.float32)
    optimizer = AdamOptimizer(0.1)
    for _ in range(steps):
        optimizer.apply_gradients([(gradient, variable)])
    return optimizer, variable, gradient


def moving(optimizer: Optimizer) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in optimizer.state_dict().items()}


def test_state_that_a_handler_loads_in_a_step_is_whole_before_or_after_it() -> None:
    early, variable, gradient = adam(2)
    saved, loaded = early.state_dict(), moving(early)
    early.apply_gradients([(gradient, np.copy(variable))])
    follows, other, _ = adam(2)
    follows.apply_gradients([(gradient, other)])
    one_later = moving(follows)
    outcomes = set()
    for at in range(400):
        optimizer, variable, gradient = adam(7)
        ran, error = call_with_handler(
            lambda o=optimizer, v=variable, g=gradient: o.apply_gradients([(g, v)]),
            lambda o=optimizer, v=variable: o.load_state_dict(saved, [v]),
            at,
        )
        if not ran:
            break
        state = moving(optimizer)
        if error is not None:
            assert "in the middle" in str(error)
            outcomes.add("refused")
        else:
            # Loaded before the step or after it: the moments and the powers are of the same number of steps.
            assert state in (loaded, one_later)
            outcomes.add("loaded" if state == loaded else "stepped")
    assert len(outcomes) > 1


@pytest.mark.parametrize("make", ["adam", "adagrad_da"])
def test_step_that_a_handler_takes_in_a_step_counts(make: str) -> None:
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
        # What a handler raises ends the step that it came into, before that has changed anything.
        assert variable.tobytes() == (two_steps if error is None else start)
        both += error is None
    assert both > 10


def test_state_that_is_saved_while_a_handler_steps_is_of_one_moment() -> None:
    for at in range(400):
        variables = [np.ones(2), np.ones(2)]
        optimizer = AdamOptimizer(0.1)

        def step(optimizer: Any = optimizer, variables: Any = variables) -> None:
            optimizer.apply_gradients([(np.full(2, 3.0), variable) for variable in variables])

        step()
        found: list[Any] = []
        ran, _ = call_with_handler(lambda o=optimizer, f=found: f.append(o.state_dict()), step, at)
        np.testing.assert_array_equal(found[0]["m.0"], found[0]["m.1"])
        np.testing.assert_allclose(found[0]["m.0"], 3.0 * (1.0 - found[0]["beta1_power"] / 0.9))
        if not ran:
            break
    else:
        raise AssertionError("the call has more lines than were tried")


def test_step_of_a_handler_while_a_copy_is_set_keeps_its_slots() -> None:
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


def test_step_counter_in_what_the_optimizer_keeps_is_refused() -> None:
    optimizer, variable, gradient = adam(1)
    counter = optimizer.variables()[0].view(np.int64)
    before = variable.tobytes(), moving(optimizer)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients([(gradient, variable)], counter)
    assert before == (variable.tobytes(), moving(optimizer))


def test_negative_count_of_skipped_steps_is_refused() -> None:
    optimizer, _, _ = adam(1)
    with pytest.raises(ValueError, match="skipped_steps is -1"):
        optimizer.skipped_steps = -1
    optimizer.skipped_steps = 4
    assert optimizer.skipped_steps == 4


def test_axis_of_one_element_makes_no_difference_to_whether_memory_is_the_same() -> None:
    x = np.ones(8)[::2][:, None]
    fastclip.clip_by_norm(x, 1.0, out=x[:, ::-1])
    np.testing.assert_allclose(x, 0.5)
