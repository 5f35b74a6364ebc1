"""The number of threads, and calls from several Python threads at once."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastclip
from support import fresh_python, oracle

PRINT_COUNT = "import fastclip; print(fastclip.get_num_threads())"


@pytest.fixture(autouse=True)
def _restore_number_of_threads() -> Any:
    count = fastclip.get_num_threads()
    yield
    fastclip.set_num_threads(count)


# --- the number of threads ----------------------------------------------------------------------


def test_set_and_get() -> None:
    for count in (1, 2, 5):
        fastclip.set_num_threads(count)
        assert fastclip.get_num_threads() == count
        assert fastclip.config()["threads"] == count
        array = np.ones(300_000, np.float32)
        assert fastclip.global_norm([array]) == np.float32(np.sqrt(300_000))
    numpy_integer: Any = np.int64(3)
    fastclip.set_num_threads(numpy_integer)
    assert fastclip.get_num_threads() == 3


def test_context_manager_restores() -> None:
    fastclip.set_num_threads(2)
    with fastclip.threads(4):
        assert fastclip.get_num_threads() == 4
        with fastclip.threads(1):
            assert fastclip.get_num_threads() == 1
        assert fastclip.get_num_threads() == 4
    assert fastclip.get_num_threads() == 2
    with pytest.raises(KeyError), fastclip.threads(3):
        raise KeyError
    assert fastclip.get_num_threads() == 2


@pytest.mark.parametrize("count", [0, -1, -(2**70)], ids=str)
def test_number_out_of_range(count: int) -> None:
    before = fastclip.get_num_threads()
    with pytest.raises(ValueError, match="n"):
        fastclip.set_num_threads(count)
    with pytest.raises(ValueError, match="n"), fastclip.threads(count):
        pass
    assert fastclip.get_num_threads() == before


def test_none_restores_the_default() -> None:
    fastclip.set_num_threads(None)
    default = fastclip.get_num_threads()
    fastclip.set_num_threads(default + 3)
    fastclip.set_num_threads(None)
    assert fastclip.get_num_threads() == default


@pytest.mark.parametrize("count", ["2", 1.5, 2.0], ids=repr)
def test_number_of_a_wrong_type(count: Any) -> None:
    with pytest.raises(TypeError, match="n"):
        fastclip.set_num_threads(count)
    with pytest.raises(TypeError, match="n"), fastclip.threads(count):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTCLIP_NUM_THREADS": "3"}, 3),
        ({"RAYON_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "7"}, 7),
        ({"FASTCLIP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "5", "OMP_NUM_THREADS": "7"}, 3),
        ({"RAYON_NUM_THREADS": "5", "OMP_NUM_THREADS": "7"}, 5),
        ({"FASTCLIP_NUM_THREADS": "3", "OMP_NUM_THREADS": "7"}, 3),
    ],
    ids=str,
)
def test_environment_sets_the_default(environment: dict[str, str], expected: int) -> None:
    assert int(fresh_python.run(PRINT_COUNT, env=environment).stdout) == expected


LAUNCHERS = ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"]


@pytest.mark.parametrize("variable", LAUNCHERS)
def test_processes_of_a_launcher_share_the_cores(variable: str) -> None:
    alone = int(fresh_python.run(PRINT_COUNT).stdout)
    for ranks in (1, 2, 1000):
        shared = fresh_python.run(PRINT_COUNT, env={variable: str(ranks)})
        assert int(shared.stdout) == max(alone // ranks, 1)
    by_name = {variable: "2", "FASTCLIP_NUM_THREADS": "7"}
    assert int(fresh_python.run(PRINT_COUNT, env=by_name).stdout) == 7


def test_the_one_thread_that_torchrun_sets_does_not_count() -> None:
    alone = int(fresh_python.run(PRINT_COUNT).stdout)
    torchrun = {"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    assert int(fresh_python.run(PRINT_COUNT, env=torchrun).stdout) == alone
    by_hand = {"OMP_NUM_THREADS": "1"}
    assert int(fresh_python.run(PRINT_COUNT, env=by_hand).stdout) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda pid: ())(0)) < 2, reason="one core")
def test_bound_processes_do_not_divide_their_cores_again() -> None:
    script = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import fastclip
    print(fastclip.get_num_threads(), fastclip.config()["threads_from"])
    """
    printed = fresh_python.run(script, env={"LOCAL_WORLD_SIZE": "1"}).stdout
    assert printed == "1 cores of this process\n"


def test_the_configuration_says_what_decides_the_number() -> None:
    script = "import fastclip; print(fastclip.config()['threads_from'])"
    for environment, expected in (
        ({}, "cores of this process"),
        ({"RAYON_NUM_THREADS": "2"}, "RAYON_NUM_THREADS"),
        ({"MPI_LOCALNRANKS": "2"}, "cores of this process divided by MPI_LOCALNRANKS=2"),
    ):
        assert fresh_python.run(script, env=environment).stdout == expected + "\n"
    fastclip.set_num_threads(2)
    try:
        assert fastclip.config()["threads_from"] == "set_num_threads"
    finally:
        fastclip.set_num_threads(None)


def test_set_num_threads_overrides_the_environment() -> None:
    script = "import fastclip; fastclip.set_num_threads(2); print(fastclip.get_num_threads())"
    assert fresh_python.run(script, env={"FASTCLIP_NUM_THREADS": "3"}).stdout == "2\n"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_default_is_the_number_of_cores_this_process_may_use() -> None:
    count = int(fresh_python.run(PRINT_COUNT).stdout)
    assert 1 <= count <= len(os.sched_getaffinity(0))
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + PRINT_COUNT
    assert fresh_python.run(script).stdout == "1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="counts tasks as Linux does")
def test_no_more_threads_are_started_than_configured() -> None:
    script = """
    import os
    import numpy as np
    import fastclip
    before = len(os.listdir("/proc/self/task"))
    array = np.ones(8_000_000, np.float32)
    fastclip.clip_by_global_norm([array], 1.0)
    print(len(os.listdir("/proc/self/task")) - before)
    """
    for count in (1, 3):
        environment = {"FASTCLIP_NUM_THREADS": str(count)}
        assert int(fresh_python.run(script, env=environment).stdout) <= count
    assert int(fresh_python.run(script, env={"FASTCLIP_NUM_THREADS": "1"}).stdout) == 0


# --- concurrent calls ---------------------------------------------------------------------------


def test_many_python_threads_at_once() -> None:
    rng = np.random.default_rng(1)
    inputs = [
        [rng.standard_normal(size).astype(np.float32) for size in (1000, 200_000 + i, 3)] for i in range(12)
    ]
    expected = [fastclip.clip_by_global_norm(arrays, 0.5) for arrays in inputs]
    together = threading.Barrier(6, timeout=60)

    def work(start: int) -> None:
        together.wait()
        for step in range(20):
            i = (start + step) % len(inputs)
            copies = [array.copy() for array in inputs[i]]
            clipped, norm = fastclip.clip_by_global_norm(copies, 0.5, out=copies)
            assert oracle.same_bits(norm, expected[i][1])
            for a, b in zip(clipped, expected[i][0], strict=True):
                assert oracle.same_bits(a, b)
            for a, b in zip(fastclip.clip_by_global_norm(inputs[i], 0.5)[0], expected[i][0], strict=True):
                assert oracle.same_bits(a, b)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, 2 * n) for n in range(6)]:
            done.result(timeout=120)


def test_number_of_threads_may_change_during_calls() -> None:
    arrays = [np.random.default_rng(2).standard_normal(300_000)]
    expected = fastclip.clip_by_global_norm(arrays, 0.5)
    stop = threading.Event()

    def change() -> int:
        changes = 0
        while not stop.is_set():
            fastclip.set_num_threads(changes % 4 + 1)
            changes += 1
        return changes

    def call() -> None:
        for _ in range(40):
            clipped, norm = fastclip.clip_by_global_norm(arrays, 0.5)
            assert oracle.same_bits(norm, expected[1])
            assert oracle.same_bits(clipped[0], expected[0][0])

    with ThreadPoolExecutor(4) as pool:
        changing = pool.submit(change)
        try:
            for done in [pool.submit(call) for _ in range(3)]:
                done.result(timeout=120)
        finally:
            stop.set()
        assert changing.result(timeout=60) > 0


def test_gil_is_released_during_large_calls() -> None:
    """Another thread runs during one of the calls: with a switch interval of minutes it can do so only if a
    call releases the GIL. Several calls are made, as the system may be slow to wake a thread.
    """
    array = np.ones(8_000_000, np.float32)
    started, ran = threading.Event(), []

    def other() -> None:
        started.wait(60)
        ran.append(True)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    sys.setswitchinterval(600)
    try:
        started.set()
        for _ in range(200):
            fastclip.global_norm([array])
            if ran:
                break
        ran_during_the_calls = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join(60)
    assert ran_during_the_calls
