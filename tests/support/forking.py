"""Calls functions in forked children, for scripts that tests run in a fresh interpreter."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable


def fork_and_call(function: Callable[[], object]) -> int:
    """Forks; the child calls `function` and exits. Returns the child's process id.

    The child's exit status is 0 if the function returned something true, 2 if not, and 1 if it raised.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = 0 if function() else 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(pid: int, limit: float = 60) -> int:
    """Waits for a child and returns its exit status, the negative number of a signal that killed it.

    A child that still runs after `limit` seconds is killed, and SystemExit is raised.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise SystemExit(f"child {pid} hung")
