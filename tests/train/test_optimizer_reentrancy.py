"""Optimizers used during one of their own steps: by hyper-parameters, signal handlers and other threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip.train import AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer

needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX's timers")


def test_callable_hyper_parameter_may_step_and_save() -> None:
    outer, inner = np.ones(2), np.ones(2)
    states: list[Any] = []

    def learning_rate() -> float:
        if not states:
            states.append(optimizer.state_dict())
            optimizer.apply_gradients([(np.ones(2), inner)])
        return 0.5

    optimizer = GradientDescentOptimizer(learning_rate)
    optimizer.apply_gradients([(np.ones(2), outer)])
    np.testing.assert_array_equal(outer, [0.5, 0.5])
    np.testing.assert_array_equal(inner, [0.5, 0.5])
    assert int(states[0]["variables"]) == 0


def test_constraint_may_save() -> None:
    states: list[Any] = []

    def project(variable: Any) -> Any:
        states.append(optimizer.state_dict())
        return np.clip(variable.value, 0.0, 1.0)

    optimizer = MomentumOptimizer(1.0, 0.9)
    optimizer.apply_gradients([(np.float32([3.0, -3.0]), Variable([0.5, 0.5], constraint=project))])
    assert int(states[0]["variables"]) == 1


@contextlib.contextmanager
def alarm_handler(handler: Callable[..., Any]) -> Iterator[None]:
    """Installs a handler of SIGALRM, and afterwards stops the timer and restores the previous handler."""
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def long_step() -> tuple[AdamOptimizer, list[Any], Any]:
    """Returns an optimizer, pairs and a counter whose step takes about 10 ms and computes a norm first."""
    variables = [np.zeros(3_000_000, np.float32) for _ in range(4)]
    optimizer = AdamOptimizer(1.0, global_clipnorm=1e30)
    return optimizer, [(np.ones_like(w), w) for w in variables], np.zeros((), np.int64)


@needs_signals
def test_signal_handler_may_save_in_the_middle_of_a_step() -> None:
    optimizer, pairs, counter = long_step()
    states: list[Any] = []
    with alarm_handler(lambda *_: states.append(optimizer.state_dict())):
        for delay in np.linspace(0.001, 0.02, 8):
            signal.setitimer(signal.ITIMER_REAL, float(delay))
            saved = len(states)
            while len(states) == saved:
                optimizer.apply_gradients(pairs, counter)
    powers = [float(state.get("beta1_power", 0.9)) for state in states]
    steps = [round(np.log(power) / np.log(0.9)) for power in powers]
    assert all(abs(power - 0.9**step) < 1e-12 for power, step in zip(powers, steps, strict=True))
    assert max(steps) <= int(counter) + 1


@needs_signals
def test_exception_of_a_signal_handler_leaves_variables_and_counters_consistent() -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    optimizer, pairs, counter = long_step()
    with alarm_handler(stop):
        for delay in np.linspace(0.001, 0.03, 25):
            start, taken = float(pairs[-1][1][-1]), int(counter)
            try:
                signal.setitimer(signal.ITIMER_REAL, float(delay))
                optimizer.apply_gradients(pairs, counter)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                pass
            moved = float(pairs[-1][1][-1]) != start
            assert moved == (int(counter) == taken + 1), delay
            assert len({float(w[0]) for _, w in pairs}) == 1
            powers = optimizer.state_dict().get("beta1_power")
            assert int(counter) == 0 or powers is not None
            if powers is not None:
                assert abs(float(powers) - 0.9 ** (int(counter) + 1)) < 1e-12


@needs_signals
def test_signal_handler_may_not_step_in_the_middle_of_a_step() -> None:
    optimizer, pairs, counter = long_step()
    refused: list[str] = []

    def step(*_: Any) -> None:
        try:
            optimizer.apply_gradients([(np.ones(2), np.zeros(2))])
        except RuntimeError as error:
            refused.append(str(error))

    with alarm_handler(step):
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        for _ in range(300):
            optimizer.apply_gradients(pairs, counter)
            if refused:
                break
    assert all("in the middle of a step" in text for text in refused)
    optimizer.apply_gradients(pairs, counter)


def test_other_threads_may_read_state_during_a_step() -> None:
    optimizer, pairs, counter = long_step()
    optimizer.apply_gradients(pairs, counter)
    errors: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert optimizer.get_slot(pairs[0][1], "m") is not None
                assert optimizer.get_slot_names() == ["m", "v"]
                assert len(optimizer.variables()) == 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        optimizer.apply_gradients(pairs, counter)
    done.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert int(counter) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_step_after_a_fork_works() -> None:
    from support import fresh_python

    fresh_python.run(
        """
        import os, warnings
        import numpy as np
        from fastclip.train import AdamOptimizer
        warnings.simplefilter("ignore")  # Python warns of forks in processes with several threads
        w = np.zeros(2_000_000, np.float32)
        optimizer = AdamOptimizer(1.0, global_clipnorm=1.0)
        optimizer.apply_gradients([(np.ones_like(w), w)])
        child = os.fork()
        optimizer.apply_gradients([(np.ones_like(w), w)])
        assert len(set(w.tolist())) == 1
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


@needs_signals
@pytest.mark.parametrize("call", ["load_state_dict", "set_low_precision_copy"])
def test_signal_handler_may_not_change_state_in_the_middle_of_a_step(call: str) -> None:
    optimizer, pairs, counter = long_step()
    optimizer.apply_gradients(pairs, counter)
    state, refused = optimizer.state_dict(), []

    def change(*_: Any) -> None:
        try:
            if call == "load_state_dict":
                optimizer.load_state_dict(state)
            else:
                optimizer.set_low_precision_copy(pairs[0][1], None)
        except RuntimeError as error:
            refused.append(str(error))

    with alarm_handler(change):
        for delay in np.linspace(0.001, 0.02, 40):
            signal.setitimer(signal.ITIMER_REAL, float(delay))
            optimizer.apply_gradients(pairs, counter)
            if refused:
                break
    assert all(call in text and "in the middle of a step" in text for text in refused)
    first = optimizer.get_slot(pairs[0][1], "m")
    power = next(float(value) for value in optimizer.variables() if value.ndim == 0)
    # With gradients of ones, m is 1 - beta1**steps.
    assert first is not None
    assert abs((1 - float(first[0])) * 0.9 - power) < 1e-5


@needs_signals
def test_variable_whose_shape_changes_during_the_first_step_keeps_valid_slots() -> None:
    for delay in np.linspace(0.0005, 0.01, 12):
        optimizer, _, _ = long_step()
        variable = np.zeros((2, 3_000_000), np.float32)

        def reshape(*_: Any, variable: Any = variable) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy deprecates assigning to `shape`
                variable.shape = (3_000_000, 2)

        with alarm_handler(reshape):
            signal.setitimer(signal.ITIMER_REAL, float(delay))
            # If the shape changes before the step has read it, the gradient's shape differs.
            with contextlib.suppress(ValueError):
                optimizer.apply_gradients([(np.ones((2, 3_000_000), np.float32), variable)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            variable.shape = (3_000_000, 2)
        optimizer.apply_gradients([(np.ones((2, 3_000_000), np.float32).T, variable)])
        slot = optimizer.get_slot(variable, "m")
        assert slot is not None
        assert slot.shape == variable.shape


def test_step_taken_by_a_hyper_parameter_has_effect() -> None:
    taken: list[int] = []

    def learning_rate() -> float:
        if not taken:
            taken.append(1)
            optimizer.apply_gradients([(np.ones(2), np.zeros(2))])
        return 0.1

    optimizer = AdamOptimizer(learning_rate)
    optimizer.apply_gradients([(np.ones(2), np.zeros(2))])
    assert abs(float(optimizer.variables()[0]) - 0.9**3) < 1e-12
