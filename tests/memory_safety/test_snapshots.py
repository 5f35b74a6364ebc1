"""Arrays and lists that change during a call, which uses the snapshot that it took when it started.

They are changed by code that may run in the middle of a call: the caller's all-reduce, another thread, a
signal handler, or a function of ``sys.setprofile``. The arrays are views of larger ones whose other elements
must not change. Each test runs in a process of its own, since a defect may end the process.
"""

from __future__ import annotations

import sys

import pytest

from support import fresh_python

SETUP = """
import signal, sys, threading, time, warnings
import numpy as np
import fastclip
from fastclip import IndexedSlices
from fastclip.train import AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer

warnings.simplefilter("ignore")  # NumPy deprecates assigning to shape and strides
fastclip.set_num_threads(2)
DOCUMENTED = (TypeError, ValueError, IndexError, RuntimeError)
CANARY = -7777.0

def attempt(call):
    try:
        return call()
    except DOCUMENTED:
        return None
"""


def run(script: str, *arguments: str) -> None:
    assert fresh_python.run(SETUP + script, *arguments, env={"RUST_BACKTRACE": "0"}).stdout == "done\n"


# --- comm= ----------------------------------------------------------------------------------------

CHANGES = {
    "clear": "tensors.clear()",
    "pop": "tensors.pop()",
    "grow": "tensors.extend([np.ones(3, np.float32)] * 5000)",
    "replace": "tensors[:] = [np.ones(100, np.float64) for _ in tensors]",
    "replace by none": "tensors[:] = [None] * len(tensors)",
    "reverse": "tensors.reverse()",
}


@pytest.mark.parametrize("fits", ["before", "after"])
@pytest.mark.parametrize("where", ["fresh", "in_place", "out"])
@pytest.mark.parametrize("change", CHANGES)
def test_allreduce_that_changes_the_callers_list(change: str, where: str, fits: str) -> None:
    """`norms` has an element for each tensor of the list before the change, or after it."""
    run(
        f"""
originals = [np.arange(i + 1, i + 6, dtype=np.float32) for i in range(20)]
expected, expected_norms = fastclip.clip_by_global_norm(originals, 1.0)[0], fastclip.tensor_norms(originals)
guarded = np.full(12000, CANARY)
tensors = list(originals)
if {fits!r} == "after":
    {CHANGES[change]}
count = sum(tensor is not None for tensor in tensors)
for trial in range(20):
    tensors = [original.copy() for original in originals]
    arrays, norms = list(tensors), guarded[100 : 100 + count]

    class Comm:
        def allreduce(self, sums):
            sums = sums.copy()
            {CHANGES[change]}
            return sums

    outs = [np.full(5, CANARY, np.float32) for _ in originals]
    out = {{"fresh": None, "in_place": tensors, "out": outs}}[{where!r}]
    clipped = attempt(
        lambda: fastclip.clip_by_global_norm(tensors, 1.0, comm=Comm(), norms=norms, out=out)
    )
    if clipped is not None:
        written = {{"fresh": clipped[0], "in_place": arrays, "out": outs}}[{where!r}]
        assert [a.tobytes() for a in written] == [a.tobytes() for a in expected]
        np.testing.assert_array_equal(norms.astype(np.float32), expected_norms)
    else:
        assert (norms == CANARY).all(), "norms was written"
        assert [a.tobytes() for a in arrays] == [a.tobytes() for a in originals]
    norms[...] = CANARY
    assert (guarded == CANARY).all(), "memory beside norms was written"
print("done")
"""
    )


# --- norms= ---------------------------------------------------------------------------------------

NORMS = """
tensors = [np.full(1_000_000, 2.0, np.float32) for _ in range(4)]
guarded = np.full(4096, CANARY)
outside = np.ones(4096, bool)
outside[1000:1004] = False
lay_out = {
    "shape": lambda norms: setattr(norms, "shape", (1, 4)),
    "reversed": lambda norms: setattr(norms, "strides", (-8,)),
    "wider": lambda norms: setattr(norms, "strides", (800,)),
    "no step": lambda norms: setattr(norms, "strides", (0,)),
    "type": lambda norms: setattr(norms, "dtype", np.float32),
}[sys.argv[1]]

def check(result):
    assert (guarded[outside] == CANARY).all(), "memory beside norms was written"
    inside = guarded[1000:1004]
    assert (inside == 2000.0).all() if result is not None else True
    assert (inside == 2000.0).all() or (inside == CANARY).all(), inside
    inside[...] = CANARY
"""
KINDS = ["shape", "reversed", "wider", "no step", "type"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's timers")
@pytest.mark.parametrize("kind", KINDS)
def test_signal_handler_that_changes_the_layout_of_norms_during_a_call(kind: str) -> None:
    run(
        NORMS
        + """
def handler(*_):
    try:
        lay_out(norms)
    except (ValueError, AttributeError):
        pass

signal.signal(signal.SIGALRM, handler)
for delay in np.linspace(0.0002, 0.004, 40):
    norms = guarded[1000:1004]
    signal.setitimer(signal.ITIMER_REAL, float(delay))
    result = attempt(lambda: fastclip.clip_by_global_norm(tensors, 1e9, norms=norms))
    signal.setitimer(signal.ITIMER_REAL, 0)
    # If the handler ran before the call took its snapshot, the norms are written to other elements.
    if result is None or norms.strides == (8,) and norms.shape == (4,) and norms.dtype == np.float64:
        check(result)
    else:
        if (guarded[1000:1004] == 2000.0).all():
            check(result)
        guarded[...] = CANARY
print("done")
""",
        kind,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_thread_that_changes_the_layout_of_norms_during_a_call(kind: str) -> None:
    """The other thread runs when the call releases the GIL, after it has taken its snapshot."""
    run(
        NORMS
        + """
sys.setswitchinterval(100)
go, done = threading.Event(), threading.Event()

def other():
    while True:
        go.wait()
        go.clear()
        try:
            lay_out(norms)
        except (ValueError, AttributeError):
            pass
        done.set()

threading.Thread(target=other, daemon=True).start()
for _ in range(30):
    norms = guarded[1000:1004]
    done.clear()
    go.set()
    result = attempt(lambda: fastclip.clip_by_global_norm(tensors, 1e9, norms=norms))
    done.wait()
    check(result)
print("done")
""",
        kind,
    )


# --- changes at each call of a Python function --------------------------------------------------

HOOK = """
class Hook:
    '''A profile function that calls `change` at the n-th call or return of a function.'''

    def __init__(self, n, change):
        self.remaining, self.change = n, change

    def __call__(self, frame, event, argument):
        if self.remaining == 0:
            self.remaining = -1
            sys.setprofile(None)
            try:
                self.change()
            except (ValueError, AttributeError, IndexError, TypeError):
                pass
        elif self.remaining > 0:
            self.remaining -= 1

def attempt_with_change(n, change, call):
    '''Returns the result of the call, and whether it made so many calls that `change` was called.'''
    hook = Hook(n, change)
    sys.setprofile(hook)
    try:
        return attempt(call), hook.remaining < 0
    finally:
        sys.setprofile(None)
"""

CLIPS = (
    HOOK
    + """
# Two arrays whose columns interleave, so that the overlap check compares more than their address ranges.
buffer = np.empty((64, 256), np.float32)
columns = np.zeros(buffer.shape, bool)
columns[:, 128:158] = True
changes = {
    "axes of the output": lambda: setattr(out, "strides", (4, 1024)),
    "no step in the output": lambda: setattr(out, "strides", (0, 0)),
    "more axes in the output": lambda: setattr(out, "shape", (64, 5, 6)),
    "axes of the input": lambda: setattr(tensor, "strides", (4, 1024)),
    "more axes in the input": lambda: setattr(tensor, "shape", (64, 5, 6)),
    "list": lambda: tensors.clear(),
    "longer list": lambda: outs.extend([np.ones(3)] * 100),
    "types": lambda: setattr(out, "dtype", np.int32),
}
call = {
    "global_norm": lambda: fastclip.clip_by_global_norm(tensors, 1.0, out=outs),
    "norm": lambda: fastclip.clip_by_norm(tensor, 1.0, out=out),
    "rows": lambda: fastclip.clip_by_norm(tensor, 1.0, axes=[1], out=out),
    "columns": lambda: fastclip.clip_by_norm(tensor, 1.0, axes=[0], out=out),
    "elements": lambda: fastclip.clip_by_norm(tensor, np.ones((64, 30)), axes=[1], out=out),
    "average_norm": lambda: fastclip.clip_by_average_norm(tensor, 1e-3, out=out),
    "value": lambda: fastclip.clip_by_value(tensor, -0.5, np.full((64, 30), 0.5, np.float32), out=out),
    "block_rms": lambda: fastclip.clip_by_block_rms(tensors, 0.5, out=outs),
    "adaptive": lambda: fastclip.adaptive_clip(outs, tensors, 0.01),
}[sys.argv[1]]
for change in changes.values():
    for n in range(2000):
        buffer[...] = CANARY
        tensor, out = buffer[:, :30], buffer[:, 128:158]
        tensor[...] = np.linspace(-1, 1, tensor.size).reshape(tensor.shape)
        before = buffer.copy()
        tensors, outs = [tensor], [out]
        _, was_changed = attempt_with_change(n, change, call)
        changed = (buffer != before) & ~columns
        if changed.any():
            # If the layout changed before the call took its snapshot, the output has other elements.
            reach = np.zeros(buffer.shape, bool)
            reach.reshape(-1)[128 : 128 + 30 * 256 + 64] = True
            assert not (changed & ~reach).any(), (sys.argv[1], n)
        if not was_changed:
            break
    else:
        raise SystemExit("the call enters more functions than were tried")
print("done")
"""
)


@pytest.mark.parametrize(
    "call",
    [
        "global_norm",
        "norm",
        "rows",
        "columns",
        "elements",
        "average_norm",
        "value",
        "block_rms",
        "adaptive",
    ],
)
def test_arrays_that_change_at_any_function_call_of_a_clip_function(call: str) -> None:
    run(CLIPS, call)


STEPS = (
    HOOK
    + """
kinds = {
    "gradient_descent": lambda: GradientDescentOptimizer(0.5),
    "momentum": lambda: MomentumOptimizer(0.5, 0.9, global_clipnorm=1.0),
    "adam": lambda: AdamOptimizer(0.5, on_nonfinite="skip"),
}
gradients = {
    "interleaved": lambda: np.ones((60, 30), np.float32),
    "overlapping": lambda: buffer[1:61, 1:31],
    "rows": lambda: IndexedSlices(np.ones((3, 30), np.float32), [59, 0, 59]),
}
changes = {
    "shape": lambda: setattr(variable, "shape", (30, 60)),
    "axes": lambda: setattr(variable, "strides", (4, 1024)),
    "more axes": lambda: setattr(variable, "shape", (60, 5, 6)),
    "fewer rows": lambda: setattr(variable, "shape", (1, 1800)),
    "gradient": lambda: setattr(gradient, "shape", (30, 60)),
    "gradient's axes": lambda: setattr(gradient, "strides", (4, 1024)),
    "rows": lambda: setattr(gradient.values, "shape", (1, 90)),
    "indices": lambda: gradient.indices.__setitem__(slice(None), 10**6),
    "indices' shape": lambda: setattr(gradient.indices, "shape", (1, 3)),
    "pairs": lambda: pairs.clear(),
    "other pairs": lambda: pairs.extend([(np.ones(3), np.ones(4))] * 50),
}
kind, layout = sys.argv[1:3]
for name, make in gradients.items():
    for change in changes.values():
        for n in range(2000):
            buffer = np.full((64, 256), CANARY, np.float32)
            other = np.full(3 * 1800, CANARY, np.float32)
            if layout == "strided":
                variable = buffer[:60, :30]
            else:
                if name == "overlapping":
                    break
                variable = other[1800:3600].reshape(60, 30)
            beside = buffer[:60, 100:130]
            variable[...] = 1.0
            beside[...] = 1.0
            gradient = make()
            pairs = [(gradient, variable), (np.ones((60, 30), np.float32), beside)]
            optimizer = kinds[kind]()
            _, was_changed = attempt_with_change(n, change, lambda: optimizer.apply_gradients(pairs))
            # The next step is correct, whether this one was taken or refused.
            variable2 = np.ones((60, 30), np.float32)
            optimizer.apply_gradients([(np.ones((60, 30), np.float32), variable2)])
            assert np.isfinite(variable2).all() and (variable2 < 1.0).all(), (name, n)
            assert (buffer[:, 130:] == CANARY).all() and (buffer[61:, 100:130] == CANARY).all(), (name, n)
            assert (other[:1800] == CANARY).all() and (other[3600:] == CANARY).all()
            if not was_changed:
                break
        else:
            raise SystemExit("the step enters more functions than were tried")
print("done")
"""
)


@pytest.mark.parametrize("layout", ["strided", "dense"])
@pytest.mark.parametrize("kind", ["gradient_descent", "momentum", "adam"])
def test_arrays_that_change_at_any_function_call_of_a_step(kind: str, layout: str) -> None:
    run(STEPS, kind, layout)


@pytest.mark.parametrize("array", ["variable", "gradient"])
def test_thread_that_reshapes_arrays_while_a_gradient_is_copied(array: str) -> None:
    """A gradient that shares memory with its variable is copied first, while other threads may run."""
    run(
        f"""
sys.setswitchinterval(1e-6)
stop = threading.Event()
guarded = np.full(3_000_000, CANARY, np.float32)
variable = guarded[1_000_000:1_600_000].reshape(600, 1000)
gradient = guarded[1_000_100:1_600_100].reshape(600, 1000)
reshaped = {array}

def reshape():
    while not stop.is_set():
        for shape in [(1, 600_000), (1000, 600), (600, 1000)]:
            reshaped.shape = shape

thread = threading.Thread(target=reshape)
thread.start()
try:
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        guarded[1_000_000:1_600_100] = 1e-3
        for optimizer in (GradientDescentOptimizer(0.5), AdamOptimizer(0.5, global_clipnorm=1.0)):
            attempt(lambda: optimizer.apply_gradients([(gradient, variable)]))
        assert (guarded[:1_000_000] == CANARY).all() and (guarded[1_600_100:] == CANARY).all()
        assert np.isfinite(guarded).all()
finally:
    stop.set()
    thread.join()
print("done")
"""
    )


@pytest.mark.parametrize("layout", ["[:, ::2]", "[:, 1:].T", "[::-1, :600]"])
def test_thread_that_reshapes_a_strided_variable_with_a_sparse_gradient(layout: str) -> None:
    run(
        f"""
sys.setswitchinterval(1e-6)
stop = threading.Event()
guarded = np.full((1300, 1300), CANARY, np.float32)
inner = lambda array: array[100:1100, 100:1100]{layout}
variable = inner(guarded)
inside = np.zeros(guarded.shape, bool)
inner(inside)[...] = True
shape = variable.shape
shapes = [(shape[0] // 2, 2, shape[1]), (shape[0], 1, shape[1]), shape]
rows = IndexedSlices(np.ones((3, shape[1]), np.float32), [shape[0] - 1, 0, 3])

def reshape():
    while not stop.is_set():
        for other in shapes:
            try:
                variable.shape = other
            except (ValueError, AttributeError):
                pass

thread = threading.Thread(target=reshape)
thread.start()
try:
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        guarded[inside] = 1.0
        optimizer = AdamOptimizer(0.5, global_clipnorm=1.0)
        for _ in range(2):
            attempt(lambda: optimizer.apply_gradients([(rows, variable)]))
        assert (guarded[~inside] == CANARY).all(), 'memory beside the variable was written'
finally:
    stop.set()
    thread.join()
print("done")
"""
    )
