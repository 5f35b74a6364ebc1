"""Code that runs during a call takes the memory of torch tensors away: the call raises, or read them before.

Each test runs in a process of its own, because reading memory that is gone ends the process.
"""

from __future__ import annotations

import os

import pytest

from support import fresh_python

pytestmark = pytest.mark.interop("torch")

#: Ways to take the memory of a tensor away, or to put other memory in its place.
TAKE = """
import gc, os, signal, sys, threading, time
import numpy as np
import torch
import fastclip
from support.dlpack_capsules import Exporter, ManagedTensor

torch.set_num_threads(1)
TAKE = {
    "freed": lambda t: t.untyped_storage().resize_(0),
    "other storage": lambda t: t.set_(torch.zeros(3)),
    "other data": lambda t: setattr(t, "data", torch.zeros(3)),
    "resized": lambda t: t.resize_(5),
    "enlarged": lambda t: t.resize_(2 * t.numel()),
    "transposed": lambda t: t.t_() if t.dim() == 2 else None,
}
REFUSALS = (TypeError, ValueError, RuntimeError, BufferError)
"""


def test_exporters_that_take_the_memory_of_tensors_away() -> None:
    """``__dlpack__`` of one entry runs before any other entry is read."""
    script = (
        TAKE
        + """
array = np.ones(4, np.float32)
for name, take in TAKE.items():
    for place in (0, 1):
        for in_place in (False, True):
            for shape in ((1_000_000,), (1000, 1000)):
                victim = torch.full(shape, 3.0)

                class Taking(Exporter):
                    def __dlpack__(self, **options):
                        take(victim)
                        gc.collect()
                        return super().__dlpack__(**options)

                source = Taking(lambda: ManagedTensor.over(array))
                tensors = [victim]
                tensors.insert(place, source)
                out = tensors if in_place else None
                try:
                    clipped, norm = fastclip.clip_by_global_norm(tensors, 0.5, out=out)
                except REFUSALS:
                    norm = None
                else:
                    assert clipped[1 - place].shape == victim.shape or not in_place, (name, place)
                    # What torch adds to a tensor that is enlarged has any values.
                    assert name == "enlarged" or np.isfinite(norm), (name, place)
                source.close()
print("done")
"""
    )
    assert fresh_python.run(script, timeout=280).stdout == "done\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals as POSIX does")
def test_signal_handlers_that_take_the_memory_of_tensors_away() -> None:
    """The handler runs between the passes; the call then raises, and has written nothing."""
    script = (
        TAKE
        + """
start = threading.Event()

def send():
    while True:
        start.wait()
        start.clear()
        os.kill(os.getpid(), signal.SIGUSR1)

threading.Thread(target=send, daemon=True).start()
fastclip.set_num_threads(1)
interval = sys.getswitchinterval()
raised = 0
for name, take in TAKE.items():
    for trial in range(6):
        victim = torch.full((4000, 4000), 2.0)
        other = torch.full((1000,), 2.0)
        handled = []

        def handle(number, frame):
            take(victim)
            gc.collect(0)
            handled.append(name)

        signal.signal(signal.SIGUSR1, handle)
        sys.setswitchinterval(600)
        try:
            start.set()
            fastclip.clip_by_global_norm([other, victim], 0.5, out=[other, victim])
        except REFUSALS as error:
            assert handled, error
            assert "t_list[1]" in str(error) or "out[1]" in str(error) or "memory" in str(error), error
            assert bool((other == 2.0).all()), name
            raised += 1
        finally:
            sys.setswitchinterval(interval)
        while not handled:
            time.sleep(0.01)  # until a late signal
        if raised and trial > 1:
            break
assert raised, "no handler ran between the passes"
print("done")
"""
    )
    assert fresh_python.run(script, timeout=280).stdout == "done\n"


def test_deleter_and_results_when_torch_frees_memory_in_other_threads() -> None:
    """Results of torch are freed by whichever thread drops them, and their memory is used again meanwhile."""
    script = """
import queue, threading
import torch
import fastclip
tensors = [torch.full((n,), 2.0) for n in (10, 10_000, 200_000)]
dropped = queue.Queue(maxsize=4)

def drop():
    while (result := dropped.get()) is not None:
        assert bool((result[1] == result[1][0]).all())
        del result

threads = [threading.Thread(target=drop) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(300):
    clipped, _ = fastclip.clip_by_global_norm(tensors, 0.5)
    dropped.put(clipped)
for _ in threads:
    dropped.put(None)
for thread in threads:
    thread.join()
print("done")
"""
    assert fresh_python.run(script, timeout=280).stdout == "done\n"
