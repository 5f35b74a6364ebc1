"""Subclasses of ndarray whose methods return something else: their own memory is read, or they are refused.

A subclass may override `copy`, `view`, its attributes and ``__array_function__``. fastclip must not read an
object that these return as if it had the size of the array. The arrays are large, so that reading so many
elements of a one-element result ends the process; each test runs in a process of its own.
"""

from __future__ import annotations

import pytest

from support import fresh_python

SETUP = """
import sys, warnings
import numpy as np
import fastclip
from fastclip import IndexedSlices, _core
from fastclip.train import AdamOptimizer, GradientDescentOptimizer

warnings.simplefilter("ignore")
DOCUMENTED = (TypeError, ValueError, IndexError, RuntimeError)
ROWS, COLUMNS = 1500, 400
SHAPE = (ROWS, COLUMNS)
ONE = np.float32([7.0])
active = False

class Copy(np.ndarray):
    def copy(self, *_, **__):
        return ONE
    __copy__ = __deepcopy__ = astype = copy

class View(np.ndarray):
    def view(self, *_, **__):
        return ONE
    reshape = ravel = transpose = view

class Nothing(np.ndarray):
    def copy(self, *_, **__):
        return None
    view = copy

class Function(np.ndarray):
    def __array_function__(self, *_, **__):
        return ONE if active else NotImplemented
    def __array_ufunc__(self, *_, **__):
        return ONE if active else NotImplemented

class Overlap(np.ndarray):
    def __array_function__(self, function, types, args, kwargs):
        return False

class Finalize(np.ndarray):
    def __array_finalize__(self, parent):
        if active and self.size > 1:
            try:
                self.shape = (1, self.size)
            except (AttributeError, ValueError):
                pass

class Attributes(np.ndarray):
    def __getattribute__(self, name):
        if active and name in ("shape", "strides", "dtype", "size", "ndim", "flags", "base", "T", "real"):
            return getattr(ONE, name)
        return np.ndarray.__getattribute__(self, name)

class Properties(np.ndarray):
    shape = property(lambda self: (3,))
    dtype = property(lambda self: np.dtype(np.float64))
    size = property(lambda self: 10**9)
    ndim = property(lambda self: 7)
    flags = property(lambda self: None)

class Convert(np.ndarray):
    def __array__(self, *_, **__):
        return ONE
    def __array_wrap__(self, *_, **__):
        return ONE
    def __getitem__(self, _):
        return ONE

class Length(np.ndarray):
    def __len__(self):
        return 10**9
    def __iter__(self):
        raise KeyError
    def __bool__(self):
        raise KeyError
    def __eq__(self, other):
        raise KeyError
    __hash__ = None

kinds = [Copy, View, Nothing, Function, Overlap, Finalize, Attributes, Properties, Convert, Length]
kind = next(kind for kind in kinds if kind.__name__ == sys.argv[1])

def numbers(dtype=np.float32, offset=0.0):
    return np.linspace(offset - 1, offset + 1, ROWS * COLUMNS).astype(dtype).reshape(SHAPE)

def subclassed(array):
    return np.ndarray.view(array, kind)

def plain(array):
    return np.ndarray.view(array, np.ndarray)

def attempt(call):
    global active
    active = True
    try:
        return call()
    except DOCUMENTED:
        return None
    finally:
        active = False

def assert_same(result, expected):
    result = plain(result) if isinstance(result, np.ndarray) else result
    assert result.dtype == expected.dtype and np.ndarray.tobytes(result) == expected.tobytes()

def assert_unchanged(array, expected):
    assert np.ndarray.tobytes(plain(array)) == expected.tobytes(), "the array was changed"
"""

CLIPS = (
    SETUP
    + """
for layout in (lambda a: a, lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1]):
    x = layout(numbers())
    flat = [x.copy(order="K")]
    expected = {
        "global": fastclip.clip_by_global_norm([x], 1.0)[0][0],
        "norm": fastclip.clip_by_norm(x, 1.0),
        "rows": fastclip.clip_by_norm(x, 0.1, axes=[1]),
        "average": fastclip.clip_by_average_norm(x, 1e-6),
        "value": fastclip.clip_by_value(x, -0.5, 0.5),
        "rms": fastclip.clip_by_block_rms([x], 0.5)[0],
        "adaptive": fastclip.adaptive_clip([x], [x], 0.01)[0],
    }
    calls = {
        "global": lambda t, out: fastclip.clip_by_global_norm([t], 1.0, out=out)[0][0],
        "norm": lambda t, out: fastclip.clip_by_norm(t, 1.0, out=out and out[0]),
        "rows": lambda t, out: fastclip.clip_by_norm(t, 0.1, axes=[1], out=out and out[0]),
        "average": lambda t, out: fastclip.clip_by_average_norm(t, 1e-6, out=out and out[0]),
        "value": lambda t, out: fastclip.clip_by_value(t, -0.5, 0.5, out=out and out[0]),
        "rms": lambda t, out: fastclip.clip_by_block_rms([t], 0.5, out=out)[0],
        "adaptive": lambda t, out: fastclip.adaptive_clip([t], [t], 0.01, out=out)[0],
    }
    for name, call in calls.items():
        t = subclassed(layout(numbers()))
        result = attempt(lambda: call(t, None))
        if result is not None:
            assert_same(result, expected[name])
        assert_unchanged(t, x)
        out = subclassed(layout(np.zeros(SHAPE, np.float32)))
        zeros = plain(out).copy()
        if attempt(lambda: call(t, [out])) is not None:
            assert_same(out, expected[name])
        else:
            assert_unchanged(out, zeros)
        if name == "adaptive":
            continue
        if attempt(lambda: call(t, [t])) is not None:
            assert_same(t, expected[name])
        else:
            assert_unchanged(t, x)
    norm = attempt(lambda: fastclip.global_norm([subclassed(layout(numbers()))]))
    assert norm is None or norm == fastclip.global_norm([x])
    rows = subclassed(layout(numbers()))
    slices = lambda: IndexedSlices(rows, np.arange(x.shape[0]))
    result = attempt(lambda: fastclip.clip_by_global_norm([slices()], 1.0)[0][0])
    if result is not None:
        assert_same(result.values, expected["global"])
    # Bounds, and the array for norms.
    bound = layout(numbers(offset=1.5))
    want = fastclip.clip_by_value(x, -bound, bound)
    result = attempt(lambda: fastclip.clip_by_value(x, subclassed(-bound), subclassed(bound.copy())))
    if result is not None:
        assert_same(result, want)
    want = fastclip.clip_by_norm(x, bound, axes=[1])
    result = attempt(lambda: fastclip.clip_by_norm(x, subclassed(bound.copy()), axes=[1]))
    if result is not None:
        assert_same(result, want)
    guarded = np.full(300, -1.0)
    attempt(lambda: fastclip.clip_by_global_norm([x] * 100, 1e9, norms=subclassed(guarded[100:200])))
    assert (guarded[:100] == -1).all() and (guarded[200:] == -1).all()
print("done")
"""
)

CORE = (
    SETUP
    + """
def opened(array, name="t"):
    return _core.open_tensor(array, name)

x, zeros = numbers(), np.zeros(SHAPE, np.float32)
want = fastclip.clip_by_global_norm([x], 1.0)[0][0]
t = subclassed(numbers())
result = attempt(lambda: _core.clip_by_global_norm([t], 1.0, None, 2.0, None, "propagate", None))
if result is not None:
    assert_same(result[0][0], want)
out = subclassed(zeros.copy())
result = attempt(lambda: _core.clip_by_global_norm([t], 1.0, None, 2.0, [out], "propagate", None))
assert_same(out, want) if result is not None else assert_unchanged(out, zeros)
guarded = np.full(300, -1.0)
norms = subclassed(guarded[100:200])
attempt(lambda: _core.clip_by_global_norm([t] * 100, 1e9, None, 2.0, None, "propagate", norms))
assert (guarded[:100] == -1).all() and (guarded[200:] == -1).all()
result = attempt(lambda: _core.global_norm([t], 2.0))
assert result is None or result == fastclip.global_norm([x])
attempt(lambda: _core.tensor_norms([t], 2.0))
attempt(lambda: _core.partial_sums([t], 2.0))
result = attempt(lambda: _core.clip_tensor(t, 1.0, "one", 2.0, None))
if result is not None:
    assert_same(result, want)
low, high = subclassed(np.full(SHAPE, -0.5, np.float32)), subclassed(np.full(SHAPE, 0.5, np.float32))
result = attempt(lambda: _core.clip_by_value(t, low, high, None))
if result is not None:
    assert_same(result, x.clip(-0.5, 0.5))
attempt(lambda: _core.check_no_overlap(opened(t), opened(out)))
# Interleaved in memory, so that the overlap check compares more than the address ranges.
buffer = numbers(offset=3.0)
left, right = subclassed(buffer[:, :150]), subclassed(buffer[:, 200:350])
before = buffer.copy()
result = attempt(lambda: _core.clip_tensor(left, 1.0, "one", 2.0, right))
if result is not None:
    assert_same(right, fastclip.clip_by_norm(before[:, :150], 1.0))
else:
    assert_unchanged(buffer, before)
assert buffer[:, :200].tobytes() == before[:, :200].tobytes()
assert buffer[:, 350:].tobytes() == before[:, 350:].tobytes()
guarded = np.full(3 * ROWS, -1.0)
norms = subclassed(guarded[ROWS : 2 * ROWS].reshape(ROWS, 1))
attempt(lambda: _core.slice_norms(opened(t), [[False, True]], 2.0, [norms]))
assert (guarded[:ROWS] == -1).all() and (guarded[2 * ROWS :] == -1).all()
bounds = subclassed(np.full((ROWS, 1), 0.1))
result = attempt(lambda: _core.clip_slices(opened(t), [[False, True]], [bounds], 2.0, None))
if result is not None:
    assert_same(result, fastclip.clip_by_norm(x, 0.1, axes=[1]))
bounds = subclassed(np.full((1, x.shape[1]), 0.1))
result = attempt(lambda: _core.clip_elements(opened(t), [[False, True]], [bounds], 2.0, None))
if result is not None:
    assert_same(result, fastclip.clip_by_norm(x, 0.1, axes=[1]))
out = subclassed(zeros.copy())
result = attempt(lambda: _core.clip_elements(opened(t), [[False, True]], [bounds], 2.0, opened(out)))
if result is not None:
    assert_same(out, fastclip.clip_by_norm(x, 0.1, axes=[1]))
else:
    assert_unchanged(out, zeros)
attempt(lambda: _core.check_variables([t], "variables"))
for name in ("bandwidth_read", "bandwidth_scale", "bandwidth_copy"):
    more = {"bandwidth_read": (), "bandwidth_scale": (1.0,), "bandwidth_copy": (out, 1.0)}[name]
    attempt(lambda: getattr(_core, name)(t, *more))
slots = _core.Slots("momentum", [0.0])
attempt(lambda: slots.set_copy(subclassed(numbers()), subclassed(np.zeros(SHAPE, np.float16))))
attempt(lambda: slots.refresh_copy(t))
slots = _core.Slots("momentum", [0.0])
loaded = attempt(lambda: slots.load([t], [True]))
assert loaded is None or [array.size for arrays in loaded for array in arrays] == [ROWS * COLUMNS]
attempt(lambda: slots.get(t))
slots = _core.Slots("gradient_descent", [])
callers = _core.CallerSlots("momentum")
unclipped = _core.GradientClipping("none", np.inf, "propagate")
for variable in (subclassed(numbers()), numbers(), buffer[:, :150], subclassed(buffer[:, :150])):
    gradient = variable if variable is not t else subclassed(numbers())
    start = plain(variable).copy()
    numbers_of_step = lambda: ([[0.5]], [], np.array(0), np.zeros(3), None)
    request = _core.StepRequest(slots, [(subclassed(gradient), variable)], numbers_of_step, unclipped, 1.0)
    result = attempt(lambda: _core.take_step(request))
    if result is not None:
        np.testing.assert_array_equal(plain(variable), start * np.float32(0.5))
    else:
        assert_unchanged(variable, start)
    slot, count = subclassed(np.ones(variable.shape, np.float32)), subclassed(np.zeros(()))
    start = plain(variable).copy()
    request = _core.StepRequest(
        callers,
        [(subclassed(np.ones(variable.shape, np.float32)), variable, (slot,), None, 0, count)],
        lambda: ([[0.5, 0.5, 0.0]], [], np.array(0), np.zeros(3), None),
        unclipped,
        1.0,
    )
    if attempt(lambda: _core.take_step(request)) is not None:
        np.testing.assert_array_equal(plain(slot), np.full(variable.shape, 1.5, np.float32))
        np.testing.assert_array_equal(plain(variable), start - np.float32(0.75))
        assert plain(count) == 1
    else:
        assert_unchanged(variable, start)
print("done")
"""
)

STEPS = (
    SETUP
    + """
half = lambda shape: np.zeros(shape, np.float16)
for layout in (lambda a: a, lambda a: a.T, lambda a: a[:, ::2]):
    for make in (lambda: GradientDescentOptimizer(0.5), lambda: AdamOptimizer(0.5, global_clipnorm=1.0)):
        def trained(wrap_variable, wrap_gradient, wrap_copy, rows, shared):
            variable = layout(numbers(offset=2.0))
            narrow = half(variable.shape)
            gradient = variable[::-1] if shared else layout(numbers())
            if rows:
                gradient = IndexedSlices(wrap_gradient(gradient[:3].copy()), [5, 0, 5])
            else:
                gradient = wrap_gradient(gradient)
            optimizer = make()
            start = variable.copy()
            passed = wrap_variable(variable)
            if attempt(lambda: (optimizer.set_low_precision_copy(passed, wrap_copy(narrow)), True)) is None:
                optimizer = make()
            for _ in range(2):
                if attempt(lambda: (optimizer.apply_gradients([(gradient, passed)]), True)) is None:
                    return None
            slots = [optimizer.get_slot(variable, name) for name in optimizer.get_slot_names()]
            attempt(lambda: optimizer.get_slot(passed, "m"))
            state = optimizer.state_dict()
            attempt(lambda: optimizer.load_state_dict(state, [passed]))
            return [variable.copy(), *(slot.copy() for slot in slots if slot is not None)]

        unwrapped = lambda a: a
        for rows in (False, True):
            for shared in (False, True):
                if rows and shared:
                    continue
                expected = trained(*[unwrapped] * 3, rows, shared)
                for which in range(3):
                    wraps = [unwrapped] * 3
                    wraps[which] = subclassed
                    result = trained(*wraps, rows, shared)
                    if result is not None:
                        assert len(result) == len(expected)
                        for a, b in zip(result, expected):
                            assert_same(a, b)
print("done")
"""
)

KINDS = [
    "Copy",
    "View",
    "Nothing",
    "Function",
    "Overlap",
    "Finalize",
    "Attributes",
    "Properties",
    "Convert",
    "Length",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", [CLIPS, CORE, STEPS], ids=["clips", "core", "steps"])
def test_memory_of_a_subclass_is_read_or_the_array_is_refused(script: str, kind: str) -> None:
    assert fresh_python.run(script, kind, env={"RUST_BACKTRACE": "0"}).stdout == "done\n"
