"""Forks after the thread pool was used, each in a fresh interpreter and with a time limit."""

from __future__ import annotations

import os

import pytest

from support import fresh_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

ENVIRONMENT = {"FASTCLIP_NUM_THREADS": "3", "PYTHONWARNINGS": "ignore::DeprecationWarning"}

SETUP = """
import os, sys, threading
import numpy as np
import fastclip
from support.forking import fork_and_call, wait_for

arrays = [np.random.default_rng(1).standard_normal(2_000_000).astype(np.float32), np.ones(5)]
expected, expected_norm = fastclip.clip_by_global_norm(arrays, 1.0)

def is_correct():
    clipped, norm = fastclip.clip_by_global_norm(arrays, 1.0)
    same = all(a.tobytes() == b.tobytes() for a, b in zip(clipped, expected))
    copies = [a.copy() for a in arrays]
    fastclip.clip_by_global_norm(copies, 1.0, out=copies)
    return same and norm == expected_norm and copies[0].tobytes() == expected[0].tobytes()

assert is_correct()
"""


def run(script: str) -> None:
    assert fresh_python.run(SETUP + script, env=ENVIRONMENT).stdout.endswith("done\n")


def test_child_after_use_in_the_parent() -> None:
    run(
        """
assert wait_for(fork_and_call(is_correct)) == 0
assert is_correct()
print("done")
"""
    )


def test_several_children_and_the_parent_at_once() -> None:
    run(
        """
pids = [fork_and_call(is_correct) for _ in range(4)]
assert is_correct()
assert [wait_for(pid) for pid in pids] == [0] * 4
assert is_correct()
print("done")
"""
    )


def test_grandchild() -> None:
    run(
        """
def middle():
    return is_correct() and wait_for(fork_and_call(is_correct)) == 0 and is_correct()
assert wait_for(fork_and_call(middle)) == 0
print("done")
"""
    )


def test_fork_while_other_threads_are_in_a_call() -> None:
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
        assert wait_for(fork_and_call(is_correct)) == 0
finally:
    stop.set()
    for worker in workers:
        worker.join()
assert is_correct()
print("done")
"""
    )


def test_child_sets_its_own_number_of_threads() -> None:
    run(
        """
def other_count():
    fastclip.set_num_threads(2)
    return fastclip.get_num_threads() == 2 and is_correct()
assert wait_for(fork_and_call(other_count)) == 0
assert fastclip.get_num_threads() == 3
print("done")
"""
    )


def test_child_that_ends_normally() -> None:
    """The interpreter shuts down with the parent's thread pool in its memory, but without its threads."""
    run(
        """
pid = os.fork()
if pid == 0:
    assert is_correct()
    sys.exit(0)
assert wait_for(pid) == 0
print("done")
"""
    )


def test_child_uses_and_frees_outputs_of_the_parent() -> None:
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
assert wait_for(fork_and_call(use_and_free)) == 0
assert expected[0].any()
assert is_correct()
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
