"""A program that calls functions while allocations fail, with the library `fail_allocation.c` preloaded.

``python -m drivers.failing_allocations LIBRARY GROUP MODE MOST`` prints a line of JSON for each trial that
fails, and one with the numbers of trials and failures. MOST is the number of allocations of a case that fail
in turn. Trials run in child processes, so that a crash is attributed to its trial.

The modes are:

``one``
    Only the n-th allocation fails.
``all``
    All allocations from the n-th on fail.
``anywhere``
    The n-th allocation of all threads together fails.
``cold``
    As ``one``, each trial in a process that has not started its threads yet.
``objects``
    As ``one``, where Python allocates its objects with malloc too. The interpreter then needs memory to raise
    an exception, so an exception may be raised after everything was written, and may be replaced by a
    SystemError.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Time limit in seconds for the trials of a case in one mode.
LIMIT = 40
#: Messages of the SystemError that the interpreter raises when it had no memory for an exception.
LOST = ("error return without exception set", "returned NULL without setting an exception")
#: Number of crashes after which a case is abandoned.
CRASHES = 3
#: Number of crashes after which all further cases are skipped.
ALL_CRASHES = 60


def armed_calls(library: str) -> tuple[Callable[..., Any], Callable[[], int], Callable[[], int]]:
    """Returns the library's functions `call_armed`, `failures` and `count`."""
    loaded = ctypes.PyDLL(library)
    call = loaded.call_armed
    call.restype = ctypes.py_object
    call.argtypes = [ctypes.py_object, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    failures = loaded.failures
    failures.restype = ctypes.c_long
    count = loaded.count
    count.restype = ctypes.c_long
    return call, failures, count


def chosen(total: int, most: int) -> list[int]:
    """Returns the numbers of allocations to fail: the first, the last, some between, some past the end."""
    if total <= most:
        return list(range(total + 3))
    third = most // 3
    step = (total - 2 * third) // third + 1
    return [*range(third), *range(third, total - third, step), *range(total - third, total + 3)]


def outcome(call: Callable[[], Any], tolerant: bool = False) -> tuple[str, Any]:
    """Returns ``result`` and the fingerprint of a call's result, or the name and message of its exception."""
    from drivers.allocation_cases import fingerprint

    try:
        result = call()
    except MemoryError:
        return ("MemoryError", None)
    except SystemError as error:
        if tolerant and any(text in str(error) for text in LOST):
            return ("MemoryError", None)
        return ("SystemError", str(error) + _where(error))
    except BaseException as error:
        return (type(error).__name__, f"{error}"[:300] + _where(error))
    return ("result", fingerprint(result))


def _where(error: BaseException) -> str:
    """Returns the file and line that raised an exception."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else f" ({Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno})"


class Trials:
    """The trials of one case in one mode."""

    def __init__(self, library: str, case: Callable[[], Any], mode: str) -> None:
        self.call_armed, self.failures, count = armed_calls(library)
        self.case, self.mode, self.strict = case, mode, mode != "objects"
        prepared = case()
        self.expected = outcome(prepared.call)
        self.after = prepared.contents()
        prepared = case()
        # The second call is counted, as the first may allocate memory that fastclip keeps for later calls.
        outcome(lambda: self.call_armed(prepared.call, -1, 0, mode == "anywhere"))
        self.total = count()

    def run(self, n: int) -> tuple[list[str], bool]:
        """Makes allocation `n` fail. Returns descriptions of errors, and whether an allocation failed."""
        prepared = self.case()
        before = prepared.contents()
        everywhere, all_after = self.mode == "anywhere", self.mode == "all"
        call = lambda: self.call_armed(prepared.call, n, all_after, everywhere)  # noqa: E731
        kind, result = outcome(call, tolerant=not self.strict)
        any_failed = self.failures() > 0
        state = prepared.contents()
        errors: list[str] = []
        if kind == "MemoryError":
            if not any_failed:
                errors.append("MemoryError although no allocation failed")
            if state != before and (self.strict or state != self.after):
                errors.append("everything was written" if state == self.after else "a part was written")
            if state == before:
                again = outcome(prepared.call)
                if again[0] != self.expected[0] or (again[0] == "result" and again != self.expected):
                    errors.append(f"the next call gives {again[0]} instead of {self.expected[0]}")
                elif prepared.contents() != self.after:
                    errors.append("the next call writes something else")
        elif kind != self.expected[0]:
            errors.append(f"{kind} instead of {self.expected[0]} or MemoryError: {result}")
        else:
            if kind == "result" and result != self.expected[1]:
                errors.append("another result")
            if state != self.after:
                errors.append("something else was written")
        return errors, any_failed


def in_child(work: Callable[[Callable[[str], None]], None]) -> tuple[list[str], int]:
    """Runs `work` in a child. Returns the lines it wrote and its exit status, negative for a signal."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            signal.alarm(LIMIT)
            work(lambda line: (os.write(writer, line.encode() + b"\n"), None)[1])
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    return lines, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(library: str, group: str, mode: str, most: str) -> None:
    import fastclip
    from drivers.allocation_cases import GROUPS, LARGE_KINDS

    # Python has free memory for small objects, which are then allocated without malloc.
    spare: list[Any] = [bytes(size) for size in range(0, 480, 16) for _ in range(1000)]
    del spare[::2]
    tried = failed = all_crashes = 0

    def report(case: str, n: int, error: str) -> None:
        nonlocal failed
        failed += 1
        print(json.dumps({"case": case, "n": n, "error": error}), flush=True)

    def try_all(name: str, case: Callable[[], Any]) -> None:
        nonlocal tried, all_crashes
        # These calls fill the caches of the parent on one thread, so that no threads have been started in a
        # cold trial.
        fastclip.set_num_threads(1)
        in_parent = Trials(library, case, mode)
        # A cold call also starts threads, which needs further allocations.
        numbers = chosen(in_parent.total + (64 if mode == "cold" else 0), int(most))
        reached, crashes = -1, 0

        def work(write: Callable[[str], None]) -> None:
            fastclip.set_num_threads(2)
            trials = in_parent if mode == "cold" else Trials(library, case, mode)
            for n in numbers:
                if n <= reached:
                    continue
                write(f"{n}")
                errors, any_failed = trials.run(n)
                if errors:
                    write(f"{n} {'; '.join(errors)}")
                if not any_failed and mode != "anywhere":
                    break
                if mode == "cold":
                    return
            write("end")

        while crashes < CRASHES:
            lines, status = in_child(work)
            for line in lines:
                number, _, error = line.partition(" ")
                if error:
                    report(name, int(number), error)
                elif line != "end":
                    reached, tried = int(number), tried + 1
            if status:
                how = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
                report(name, reached, how)
                crashes, all_crashes = crashes + 1, all_crashes + 1
            if not lines or lines[-1] == "end":
                break

    cases = list(GROUPS[group].items())
    if mode in ("anywhere", "cold"):
        cases = [(name, case) for name, case in cases if any(kind in name for kind in LARGE_KINDS)]
    for position, (name, case) in enumerate(cases):
        if mode != "one" and int(most) < 100 and position % 3 and len(cases) > 3:
            # Unless every allocation is tried, modes other than `one` run a third of the cases.
            continue
        if all_crashes < ALL_CRASHES:
            try_all(name, case)
    print(json.dumps({"tried": tried, "failed": failed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
