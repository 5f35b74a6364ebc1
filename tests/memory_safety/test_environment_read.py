"""The environment is read when fastclip is imported, and not afterwards.

Reading it while another thread changes it is undefined behaviour in C, and a setting read by the first call
would depend on what else the process has done before.
"""

from __future__ import annotations

import pytest

from support import fresh_python


@pytest.mark.parametrize("name", ["FASTCLIP_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"])
def test_number_of_threads_is_that_of_the_environment_at_import(name: str) -> None:
    script = f"""
    import os
    import fastclip
    os.environ[{name!r}] = "5"
    assert fastclip.get_num_threads() == 3, fastclip.get_num_threads()
    assert fastclip.config()["threads"] == 3
    fastclip.global_norm([__import__("numpy").ones(3)])
    fastclip.set_num_threads(2)
    fastclip.set_num_threads(None)
    assert fastclip.get_num_threads() == 3
    print("done")
    """
    assert fresh_python.run(script, env={name: "3"}).stdout == "done\n"


def test_variables_set_after_the_import_have_no_effect() -> None:
    script = """
    import os
    import fastclip
    os.environ["FASTCLIP_NUM_THREADS"] = "777"
    os.environ["FASTCLIP_ISA"] = "scalar"
    assert fastclip.get_num_threads() != 777
    config = fastclip.config()
    assert config["isa"] == config["isa_detected"]
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"


def test_simd_level_is_that_of_the_environment_at_import() -> None:
    script = """
    import os
    import fastclip
    del os.environ["FASTCLIP_ISA"]
    assert fastclip.config()["isa"] == "scalar"
    print("done")
    """
    assert fresh_python.run(script, env={"FASTCLIP_ISA": "scalar"}).stdout == "done\n"


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="no fork here")
def test_child_of_a_fork_uses_the_environment_at_import_too() -> None:
    script = """
    import os
    import fastclip
    os.environ["FASTCLIP_NUM_THREADS"] = "5"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if fastclip.get_num_threads() == 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    print("done")
    """
    assert fresh_python.run(script, env={"FASTCLIP_NUM_THREADS": "3"}).stdout == "done\n"


@pytest.mark.skipif("__import__('os').name != 'posix'", reason="calls setenv")
def test_first_call_while_another_thread_changes_the_environment() -> None:
    script = """
    import ctypes, os, threading
    import numpy as np
    import fastclip
    libc = ctypes.CDLL(None)
    stop = threading.Event()
    begun = threading.Event()

    def change():
        i = 0
        while not stop.is_set():
            libc.setenv(b"FASTCLIP_TEST_%d" % i, b"x" * (i % 1000), 1)
            libc.unsetenv(b"FASTCLIP_TEST_%d" % (i - 3000))
            i += 1
            if i == 2000:
                begun.set()

    threads = [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        for _ in range(20):
            assert fastclip.global_norm([np.ones(1_000_000, np.float32)]) == 1000
            fastclip.config()
            fastclip.set_num_threads(2)
            fastclip.set_num_threads(None)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print("done")
    """
    for _ in range(3):
        assert fresh_python.run(script).stdout == "done\n"
