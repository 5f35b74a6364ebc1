"""Forking after the thread pool was used, in interpreters of their own and with a time limit."""

from __future__ import annotations

import os

import pytest

from support import fresh_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

ENVIRONMENT = {"FASTCLIP_NUM_THREADS": "3", "PYTHONWARNINGS": "ignore::DeprecationWarning"}

SETUP = """
import os, sys, threading, time
import numpy as np
import fastclip

arrays = [np.random.default_rng(1).standard_normal(2_000_000).astype(np.float32), np.ones(5)]
expected, expected_norm = fastclip.clip_by_global_norm(arrays, 1.0)

def right():
    clipped, norm = fastclip.clip_by_global_norm(arrays, 1.0)
    same = all(a.tobytes() == b.tobytes() for a, b in zip(clipped, expected))
    copies = [a.copy() for a in arrays]
    fastclip.clip_by_global_norm(copies, 1.0, out=copies)
    return same and norm == expected_norm and copies[0].tobytes() == expected[0].tobytes()

def child(function):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = 0 if function() else 2
    finally:
        os._exit(code)

def reap(pid, limit=60):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise SystemExit(f"child {pid} hung")

assert right()
"""


def run(script: str) -> None:
    assert fresh_python.run(SETUP + script, env=ENVIRONMENT).stdout.endswith("done\n")


def test_child_after_use_in_the_parent() -> None:
    run(
        """
assert reap(child(right)) == 0
assert right()
print("done")
"""
    )


def test_several_children_at_once_and_the_parent_beside_them() -> None:
    run(
        """
pids = [child(right) for _ in range(4)]
assert right()
assert [reap(pid) for pid in pids] == [0] * 4
assert right()
print("done")
"""
    )


def test_grandchild() -> None:
    run(
        """
def middle():
    return right() and reap(child(right)) == 0 and right()
assert reap(child(middle)) == 0
print("done")
"""
    )


def test_fork_while_other_threads_are_within_a_call() -> None:
    run(
        """
stop = threading.Event()
def busy():
    while not stop.is_set():
        fastclip.clip_by_global_norm(arrays, 1.0)
workers = [threading.Thread(target=busy) for _ in range(2)]
for worker in workers:
    worker.start()
try:
    for _ in range(6):
        assert reap(child(right)) == 0
finally:
    stop.set()
    for worker in workers:
        worker.join()
assert right()
print("done")
"""
    )


def test_child_sets_its_own_count_of_threads() -> None:
    run(
        """
def other_count():
    fastclip.set_num_threads(2)
    return fastclip.get_num_threads() == 2 and right()
assert reap(child(other_count)) == 0
assert fastclip.get_num_threads() == 3
print("done")
"""
    )


def test_child_that_ends_normally() -> None:
    """Through interpreter shutdown, with the parent's pool in its memory but not its threads."""
    run(
        """
pid = os.fork()
if pid == 0:
    assert right()
    sys.exit(0)
assert reap(pid) == 0
print("done")
"""
    )


def test_outputs_of_the_parent_in_the_child() -> None:
    run(
        """
def use_and_free():
    global expected
    kept = expected[0].tobytes()
    expected[0][:] = 0
    expected = None
    fastclip.free_cached_memory()
    again, _ = fastclip.clip_by_global_norm(arrays, 1.0)
    return again[0].tobytes() == kept
assert reap(child(use_and_free)) == 0
assert expected[0].any()
assert right()
print("done")
"""
    )


def test_multiprocessing_pool_that_forks() -> None:
    run(
        """
import multiprocessing

def norm(seed):
    array = np.random.default_rng(seed).standard_normal(500_000).astype(np.float32)
    return float(fastclip.clip_by_global_norm([array], 1.0)[1])

with multiprocessing.get_context("fork").Pool(2) as pool:
    got = pool.map_async(norm, range(6)).get(timeout=60)
assert got == [norm(seed) for seed in range(6)]
print("done")
"""
    )
