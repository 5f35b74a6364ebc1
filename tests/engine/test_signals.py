"""Ctrl-C during a call."""

from __future__ import annotations

import os

import pytest

from support import fresh_python

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals as POSIX does")

# A second thread sends the signal. With a switch interval of minutes it can run only once the main
# thread lets go of the interpreter lock, which it does within the call: so the signal comes during
# the first pass. On a slow day it comes later, and is raised when all is written: such a trial counts
# for nothing but consistency.
SENDER = """
import os, signal, sys, threading, time
import numpy as np
import fastclip

start = threading.Event()

def send():
    while True:
        start.wait()
        start.clear()
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=send, daemon=True).start()
"""

TRIALS = (
    SENDER
    + """
{handler}
fastclip.set_num_threads(1)
array = np.full(16_000_000, 2.0, np.float32)
out = np.empty_like(array)
norms = np.empty(1)
fastclip.global_norm([array])
interval = sys.getswitchinterval()
honoured = 0
for trial in range(20):
    array[:] = 2.0
    out[:] = 2.0
    norms[:] = -1.0
    interrupted = False
    sys.setswitchinterval(600)
    try:
        start.set()
        {call}
        for _ in range(600):
            time.sleep(0.1)  # a late signal
    except Interrupt:
        interrupted = True
    finally:
        sys.setswitchinterval(interval)
    assert interrupted, "the signal was lost"
    written = [not (memory == initial).any() for memory, initial in {memory}]
    untouched = [(memory == initial).all() for memory, initial in {memory}]
    assert all(written) or all(untouched), "a part was written"
    honoured += all(untouched)
    if honoured == 3:
        break
assert honoured > 0, "no call was interrupted before it wrote"
array[:] = 2.0
fastclip.set_num_threads(2)
_, norm = fastclip.clip_by_global_norm([array], 4000.0, out=[array])
assert norm == 8000
assert (array == 1.0).all()
print("done")
"""
)

DEFAULT = "Interrupt = KeyboardInterrupt; signal.signal(signal.SIGINT, signal.default_int_handler)"
OWN = """
class Interrupt(Exception):
    pass

def handler(*_):
    raise Interrupt

signal.signal(signal.SIGINT, handler)
"""
IN_PLACE = "[(array, 2.0)]"


@pytest.mark.parametrize(
    ("handler", "call", "memory"),
    [
        (DEFAULT, "fastclip.clip_by_global_norm([array], 1.0, out=[array])", IN_PLACE),
        (
            DEFAULT,
            "fastclip.clip_by_global_norm([array], 1.0, out=[out], norms=norms)",
            "[(out, 2.0), (norms, -1.0)]",
        ),
        (DEFAULT, "fastclip.clip_by_norm(array, 1.0, out=array)", IN_PLACE),
        (DEFAULT, "fastclip.clip_by_average_norm(array, 1e-9, out=array)", IN_PLACE),
        (DEFAULT, "fastclip.clip_by_block_rms([array], 0.5, out=[array])", IN_PLACE),
        (OWN, "fastclip.clip_by_global_norm([array], 1.0, out=[array])", IN_PLACE),
    ],
    ids=["global_norm", "out_and_norms", "norm", "average_norm", "block_rms", "own_exception"],
)
def test_interrupted_between_passes_with_nothing_written(handler: str, call: str, memory: str) -> None:
    script = TRIALS.format(handler=handler, call=call, memory=memory)
    assert fresh_python.run(script).stdout == "done\n"


@pytest.mark.parametrize(
    "call",
    [
        "fastclip.clip_by_global_norm([array], 1.0)",
        "fastclip.clip_by_value(array, 0.0, 1.0)",
        "fastclip.adaptive_clip([array], [array])",
    ],
)
def test_interrupted_in_the_first_call_of_all(call: str) -> None:
    """What a first call sets up may be cut short at any Python function that it enters: that gives the
    interrupt, and the next call works."""
    script = f"""
import sys
import numpy as np
import fastclip
array = np.ones(10, np.float32)
left = int(sys.argv[1])

def interrupt(frame, event, argument):
    global left
    left -= 1
    if left == 0:
        sys.settrace(None)
        raise KeyboardInterrupt

sys.settrace(interrupt)
try:
    {call}
except KeyboardInterrupt:
    assert left == 0
sys.settrace(None)
{call}
assert fastclip.global_norm([np.array([3.0, 4.0])]) == 5
print("interrupted" if left == 0 else "whole")
"""
    interrupted = 0
    for entered in range(1, 100):
        if fresh_python.run(script, str(entered)).stdout == "whole\n":
            break
        interrupted += 1
    assert 1 <= interrupted < 99


def test_handler_that_returns_does_not_disturb_the_call() -> None:
    script = """
    import signal
    import numpy as np
    import fastclip
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    array = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float32)
    expected, expected_norm = fastclip.clip_by_global_norm([array], 1.0)
    for _ in range(100):
        clipped, norm = fastclip.clip_by_global_norm([array], 1.0)
        assert norm == expected_norm
        assert clipped[0].tobytes() == expected[0].tobytes()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert seen
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"
