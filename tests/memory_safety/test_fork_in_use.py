"""Forks at awkward moments: in the middle of another thread's step, and into a process of the same number."""

from __future__ import annotations

import os
import sys

import pytest

from support import fresh_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

ENVIRONMENT = {
    "FASTCLIP_NUM_THREADS": "3",
    "PYTHONWARNINGS": "ignore::DeprecationWarning",
    "RUST_BACKTRACE": "0",
}

REAP = """
import ctypes, os, signal, sys, threading, time
import numpy as np
import fastclip
from fastclip.train import AdamOptimizer

def child(function):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = 0 if function() else 2
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

def reap(pid, limit=20):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise SystemExit(f"child {pid} hung")
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_child_of_a_fork_in_the_middle_of_a_step_steps_with_the_same_optimizer(threads: int) -> None:
    fresh_python.run(
        REAP
        + f"""
sys.setswitchinterval(1e-4)
variables = [np.zeros(1_000_000, np.float32) for _ in range(2)]
pairs = [(np.ones_like(w), w) for w in variables]
optimizer = AdamOptimizer(0.1, global_clipnorm=1.0)
counter = np.zeros((), np.int64)
optimizer.apply_gradients(pairs, counter)
stop = threading.Event()
begun = threading.Barrier({threads} + 1)

def busy():
    begun.wait()
    while not stop.is_set():
        optimizer.apply_gradients(pairs, counter)

def steps():
    before = int(counter)
    for _ in range(2):
        optimizer.apply_gradients(pairs, counter)
    optimizer.state_dict()
    optimizer.get_slot(variables[0], "m")
    optimizer.load_state_dict(optimizer.state_dict())
    fresh = np.zeros(5, np.float32)
    optimizer.apply_gradients([(np.ones(5, np.float32), fresh)], counter)
    return int(counter) == before + 3 and fresh.any()

workers = [threading.Thread(target=busy, daemon=True) for _ in range({threads})]
for worker in workers:
    worker.start()
begun.wait()
try:
    for trial in range(12):
        time.sleep(0.001 * trial)
        assert reap(child(steps)) == 0
finally:
    stop.set()
    for worker in workers:
        worker.join()
optimizer.apply_gradients(pairs, counter)
""",
        env=ENVIRONMENT,
        timeout=100,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="process numbers have namespaces on Linux alone")
def test_child_that_has_the_number_of_its_parent_has_helpers_of_its_own() -> None:
    """In another namespace of process numbers the child of a fork can have its parent's number."""
    done = fresh_python.run(
        REAP
        + """
CLONE_NEWPID = 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
here = os.getpid()
ready, told = os.pipe()
helper = os.fork()
if helper == 0:
    # It makes the namespace; its child is the first process there, and keeps it alive.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if libc.unshare(CLONE_NEWPID):
        os.write(told, b"none\\n")
        os._exit(0)
    first = os.fork()
    if first == 0:
        try:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(here - 1))
            os.write(told, b"set\\n")
        except OSError:
            os.write(told, b"none\\n")
        time.sleep(50)
        os._exit(0)
    os.write(told, f"{first}\\n".encode())
    os.waitpid(first, 0)
    os._exit(0)
os.close(told)
lines = []
with os.fdopen(ready) as pipe:
    for line in pipe:
        lines.append(line.strip())
        if len(lines) == 2 or line == "none\\n":
            break
first = next((int(line) for line in lines if line.isdigit()), 0)
arrays = [np.random.default_rng(1).standard_normal(2_000_000).astype(np.float32)]
expected, norm = fastclip.clip_by_global_norm(arrays, 1.0)

def right():
    if os.getpid() != here:
        print("another number", os.getpid(), here, flush=True)
    clipped, again = fastclip.clip_by_global_norm(arrays, 1.0)
    return again == norm and clipped[0].tobytes() == expected[0].tobytes()

try:
    if "none" in lines or not first:
        print("no namespaces")
    elif libc.setns(os.open(f"/proc/{first}/ns/pid", os.O_RDONLY), CLONE_NEWPID):
        print("no namespaces")
    else:
        assert reap(child(right)) == 0
        print("done")
finally:
    if first:
        os.kill(first, signal.SIGKILL)
    os.waitpid(helper, 0)
""",
        env=ENVIRONMENT,
        timeout=60,
    ).stdout
    if "no namespaces" in done or "another number" in done:
        pytest.skip(f"a child with its parent's number cannot be made here: {done.splitlines()[0]}")
    assert done == "done\n"
