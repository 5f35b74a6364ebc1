"""Forks in the middle of another thread's step, and forks whose child has the process id of its parent."""

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

SETUP = """
import ctypes, os, signal, sys, threading, time
import numpy as np
import fastclip
from fastclip.train import AdamOptimizer
from support.forking import fork_and_call, wait_for
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_child_forked_in_the_middle_of_a_step_can_step_with_the_same_optimizer(threads: int) -> None:
    fresh_python.run(
        SETUP
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
        assert wait_for(fork_and_call(steps), 20) == 0
finally:
    stop.set()
    for worker in workers:
        worker.join()
optimizer.apply_gradients(pairs, counter)
""",
        env=ENVIRONMENT,
        timeout=100,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PID namespaces")
def test_child_with_the_process_id_of_its_parent_starts_its_own_threads() -> None:
    """In another PID namespace the child of a fork can have its parent's process id."""
    done = fresh_python.run(
        SETUP
        + """
CLONE_NEWPID = 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
parent_id = os.getpid()
read_end, write_end = os.pipe()
helper = os.fork()
if helper == 0:
    # Creates the namespace; its child is the first process there, and keeps it alive.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if libc.unshare(CLONE_NEWPID):
        os.write(write_end, b"none\\n")
        os._exit(0)
    first = os.fork()
    if first == 0:
        try:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(parent_id - 1))
            os.write(write_end, b"set\\n")
        except OSError:
            os.write(write_end, b"none\\n")
        time.sleep(50)
        os._exit(0)
    os.write(write_end, f"{first}\\n".encode())
    os.waitpid(first, 0)
    os._exit(0)
os.close(write_end)
lines = []
with os.fdopen(read_end) as pipe:
    for line in pipe:
        lines.append(line.strip())
        if len(lines) == 2 or line == "none\\n":
            break
first = next((int(line) for line in lines if line.isdigit()), 0)
arrays = [np.random.default_rng(1).standard_normal(2_000_000).astype(np.float32)]
expected, norm = fastclip.clip_by_global_norm(arrays, 1.0)

def is_correct():
    if os.getpid() != parent_id:
        print("another id", os.getpid(), parent_id, flush=True)
    clipped, again = fastclip.clip_by_global_norm(arrays, 1.0)
    return again == norm and clipped[0].tobytes() == expected[0].tobytes()

try:
    if "none" in lines or not first:
        print("no namespaces")
    elif libc.setns(os.open(f"/proc/{first}/ns/pid", os.O_RDONLY), CLONE_NEWPID):
        print("no namespaces")
    else:
        assert wait_for(fork_and_call(is_correct), 20) == 0
        print("done")
finally:
    if first:
        os.kill(first, signal.SIGKILL)
    os.waitpid(helper, 0)
""",
        env=ENVIRONMENT,
        timeout=60,
    ).stdout
    if "no namespaces" in done or "another id" in done:
        pytest.skip(f"cannot fork a child with its parent's process id here: {done.splitlines()[0]}")
    assert done == "done\n"
