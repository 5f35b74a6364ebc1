"""The check whether arrays share memory: its result, exceptions raised during it, and its speed.

Where the address ranges of two arrays overlap, fastclip may call ``np.shares_memory``. An exception raised
during that call is raised by fastclip; a problem that NumPy finds too hard is treated as an overlap; checking
many arrays takes negligible time.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.train import AdamOptimizer
from support import fresh_python

SETUP = """
import sys
import numpy as np
import fastclip
from fastclip import IndexedSlices
from fastclip.train import AdamOptimizer

class Own(Exception):
    pass

class OwnBase(BaseException):
    pass

kinds = [KeyboardInterrupt, MemoryError, Own, OwnBase, SystemExit, ValueError, TypeError, RecursionError]
kind = next(kind for kind in kinds if kind.__name__ == sys.argv[1])

def arrays():
    # The columns interleave, but have no element in common.
    buffer = np.linspace(1, 2, 100 * 64, dtype=np.float32).reshape(100, 64)
    return buffer, buffer[:, :30], buffer[:, 32:62]

def clip(buffer, left, right):
    fastclip.clip_by_global_norm([left], 1.0, out=[right])

def check_parameters(buffer, left, right):
    fastclip.adaptive_clip([left], [np.ones_like(left)], out=[right])

def step(buffer, left, right):
    optimizer.apply_gradients([(np.ones_like(left), left), (np.ones_like(right), right)])

def step_with_gradient(buffer, left, right):
    optimizer.apply_gradients([(left, right)])

def copy(buffer, left, right):
    optimizer.set_low_precision_copy(left, right.view(np.float16)[:, ::2])

def bounds(buffer, left, right):
    fastclip.clip_by_value(left, left, 2.0, out=right)

def load(buffer, left, right):
    optimizer.load_state_dict(AdamOptimizer().state_dict() | {
        "variables": np.array(2), "has_slots": np.zeros(2, np.uint8),
        "shape.0": np.array(left.shape), "shape.1": np.array(right.shape),
    }, [left, right])

calls = [clip, check_parameters, step, step_with_gradient, copy, bounds, load]
"""


@pytest.mark.parametrize(
    "kind",
    [
        "KeyboardInterrupt",
        "MemoryError",
        "Own",
        "OwnBase",
        "SystemExit",
        "ValueError",
        "TypeError",
        "RecursionError",
    ],
)
@pytest.mark.parametrize("how", ["profile", "replaced"])
def test_exception_raised_during_the_check_is_raised_unchanged(how: str, kind: str) -> None:
    """Like a profile function here, a signal handler may raise it when NumPy's function is entered."""
    fresh_python.run(
        SETUP
        + f"""
real = np.shares_memory
for call in calls:
    optimizer = AdamOptimizer()
    buffer, left, right = arrays()
    before, raised = buffer.copy(), []

    def refuse(*_, **__):
        raised.append(True)
        raise kind("unchanged")

    def hook(frame, event, argument):
        if event == "call" and frame.f_code.co_name in ("shares_memory", "may_share_memory"):
            sys.setprofile(None)
            refuse()

    try:
        if {how!r} == "profile":
            sys.setprofile(hook)
        else:
            np.shares_memory = refuse
        call(buffer, left, right)
    except BaseException as error:
        assert raised and type(error) is kind and str(error) == "unchanged", (call, repr(error))
        assert buffer.tobytes() == before.tobytes(), call
    else:
        assert not raised, f"{{call}}: the exception was lost"
    finally:
        sys.setprofile(None)
        np.shares_memory = real
    assert len(optimizer.variables()) == 0 or not raised
""",
        kind,
    )


def test_problem_that_is_too_hard_for_numpy_is_treated_as_an_overlap() -> None:
    fresh_python.run(
        SETUP
        + """
too_hard = getattr(np, "exceptions", np).TooHardError
calls_of_numpy = []

def refuse(*_, **__):
    calls_of_numpy.append(True)
    raise too_hard

np.shares_memory = refuse
for call in (clip, check_parameters, step):
    optimizer = AdamOptimizer()
    buffer, left, right = arrays()
    before = buffer.copy()
    calls_of_numpy.clear()
    try:
        call(buffer, left, right)
    except ValueError as error:
        assert calls_of_numpy and "shares memory" in str(error)
        assert buffer.tobytes() == before.tobytes()
    else:
        assert not calls_of_numpy
""",
        "ValueError",
    )


def test_strides_that_take_numpy_long_are_refused_or_handled_correctly_in_time() -> None:
    """The arrays have many axes whose strides have no common divisors."""
    memory = np.zeros(2_000_000, np.float32)

    def axes(start: int, steps: tuple[int, ...]) -> Any:
        shape = (7,) * len(steps)
        return np.lib.stride_tricks.as_strided(memory[start:], shape, [4 * step for step in steps])

    left, right = axes(0, (2, 15, 107, 751, 5261)), axes(37, (2, 15, 107, 751, 5263))
    left[...] = np.arange(7**5).reshape(left.shape)
    before = memory.copy()
    refused = False
    start = time.perf_counter()
    try:
        fastclip.clip_by_global_norm([left], 1.0, out=[right])
    except ValueError:
        refused = True
    assert time.perf_counter() - start < 10
    if refused:
        np.testing.assert_array_equal(memory, before)
    else:
        assert not np.shares_memory(left, right)


def columns(count: int) -> Any:
    buffer = np.ones((400, count), np.float32)
    return buffer, [buffer[:, i] for i in range(count)]


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer takes its time")
def test_check_of_many_columns_of_one_matrix_is_fast() -> None:
    buffer, tensors = columns(1200)
    times = []
    for _ in range(5):
        buffer[...] = 1.0
        start = time.perf_counter()
        fastclip.clip_by_global_norm(tensors, 1.0, out=tensors)
        times.append(time.perf_counter() - start)
    np.testing.assert_array_equal(buffer, np.float32(1.0 / np.sqrt(buffer.size)))
    assert min(times) < 0.1, times


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer takes its time")
def test_check_of_many_variables_that_are_columns_of_one_matrix_is_fast() -> None:
    _, variables = columns(1200)
    pairs = [(np.ones(400, np.float32), variable) for variable in variables]
    optimizer = AdamOptimizer()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        optimizer.apply_gradients(pairs)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2, times


def test_column_that_is_listed_twice_is_found() -> None:
    buffer, tensors = columns(300)
    tensors[200] = buffer[:, 17]
    before = buffer.copy()
    with pytest.raises(ValueError, match="shares memory"):
        fastclip.clip_by_global_norm(tensors, 1.0, out=tensors)
    np.testing.assert_array_equal(buffer, before)
