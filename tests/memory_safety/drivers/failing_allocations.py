"""Calls functions while allocations fail: run by itself, with `fail_allocation.c` loaded before it.

``python allocation_driver.py LIBRARY GROUP MODE MOST`` writes a line of JSON for each trial that goes
wrong, and one with what was tried; MOST is how many allocations of a case fail in turn. Trials run in child
processes, so that one that dies is told from the others.

Modes: ``one``, only the n-th allocation fails; ``all``, all from the n-th on; ``anywhere``, the n-th of all
threads together; ``cold``, as ``one``, but each in a process that has no helper threads yet; ``objects``,
as ``one``, where Python's objects come from malloc too. In that mode the interpreter itself needs memory to
raise an exception, so what it raises may come when everything is written, and may be its SystemError that
an exception got lost.
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

#: So many seconds for the trials of a case in one mode.
LIMIT = 40
#: What the interpreter says when it had no memory for an exception.
LOST = ("error return without exception set", "returned NULL without setting an exception")
#: Deaths after which no more of a case is tried.
DEATHS = 3
#: Deaths after which no more is tried at all.
ALL_DEATHS = 60


def armed_calls(library: str) -> tuple[Callable[..., Any], Callable[[], int], Callable[[], int]]:
    """What calls a function, and what tells how many allocations failed then, and of how many."""
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
    """Which of so many allocations fail: the first, the last, some between, and a few besides."""
    if total <= most:
        return list(range(total + 3))
    third = most // 3
    step = (total - 2 * third) // third + 1
    return [*range(third), *range(third, total - third, step), *range(total - third, total + 3)]


def outcome(call: Callable[[], Any], tolerant: bool = False) -> tuple[str, Any]:
    """What a call comes to: its result, or its exception."""
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
    """The last line of Python that an exception came from."""
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
        self.after = prepared.watched()
        prepared = case()
        # Not to be disturbed by memory that is kept for the next call, as in the first trial.
        outcome(lambda: self.call_armed(prepared.call, -1, 0, mode == "anywhere"))
        self.total = count()

    def run(self, n: int) -> tuple[list[str], bool]:
        """What went wrong when allocation `n` failed, and whether one failed at all."""
        prepared = self.case()
        before = prepared.watched()
        everywhere, all_after = self.mode == "anywhere", self.mode == "all"
        call = lambda: self.call_armed(prepared.call, n, all_after, everywhere)  # noqa: E731
        kind, result = outcome(call, tolerant=not self.strict)
        any_failed = self.failures() > 0
        left = prepared.watched()
        wrong: list[str] = []
        if kind == "MemoryError":
            if not any_failed:
                wrong.append("MemoryError although nothing failed")
            if left != before and (self.strict or left != self.after):
                wrong.append("something was written" if left == self.after else "a part was written")
            if left == before:
                again = outcome(prepared.call)
                if again[0] != self.expected[0] or (again[0] == "result" and again != self.expected):
                    wrong.append(f"the call after it gives {again[0]}, not the {self.expected[0]} it should")
                elif prepared.watched() != self.after:
                    wrong.append("the call after it leaves something else behind")
        elif kind != self.expected[0]:
            wrong.append(f"{kind} where {self.expected[0]} or MemoryError is due: {result}")
        else:
            if kind == "result" and result != self.expected[1]:
                wrong.append("another result")
            if left != self.after:
                wrong.append("it leaves something else behind")
        return wrong, any_failed


def in_child(work: Callable[[Callable[[str], None]], None]) -> tuple[list[str], int]:
    """Run `work` in a child. Returns the lines it wrote, and its exit code (negative: the signal)."""
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

    # Small objects have room in memory that Python has already.
    spare: list[Any] = [bytes(size) for size in range(0, 480, 16) for _ in range(1000)]
    del spare[::2]
    tried = failed = all_deaths = 0

    def report(case: str, n: int, wrong: str) -> None:
        nonlocal failed
        failed += 1
        print(json.dumps({"case": case, "n": n, "wrong": wrong}), flush=True)

    def try_all(name: str, case: Callable[[], Any]) -> None:
        nonlocal tried, all_deaths
        # What a call finds out once for all is found out here; a cold call may not even have had helpers yet.
        fastclip.set_num_threads(1)
        known = Trials(library, case, mode)
        # Helpers are started in a cold call: that takes allocations of its own.
        numbers = chosen(known.total + (64 if mode == "cold" else 0), int(most))
        reached, deaths = -1, 0

        def work(say: Callable[[str], None]) -> None:
            fastclip.set_num_threads(2)
            trials = known if mode == "cold" else Trials(library, case, mode)
            for n in numbers:
                if n <= reached:
                    continue
                say(f"{n}")
                wrong, any_failed = trials.run(n)
                if wrong:
                    say(f"{n} {'; '.join(wrong)}")
                if not any_failed and mode != "anywhere":
                    break
                if mode == "cold":
                    return
            say("end")

        while deaths < DEATHS:
            lines, code = in_child(work)
            for line in lines:
                number, _, wrong = line.partition(" ")
                if wrong:
                    report(name, int(number), wrong)
                elif line != "end":
                    reached, tried = int(number), tried + 1
            if code:
                how = f"died by signal {-code}" if code < 0 else f"ended with status {code}"
                report(name, reached, how)
                deaths, all_deaths = deaths + 1, all_deaths + 1
            if not lines or lines[-1] == "end":
                break

    cases = list(GROUPS[group].items())
    if mode in ("anywhere", "cold"):
        cases = [(name, case) for name, case in cases if any(kind in name for kind in LARGE_KINDS)]
    for position, (name, case) in enumerate(cases):
        if mode != "one" and int(most) < 100 and position % 3 and len(cases) > 3:
            # Where not all is tried, two thirds of the cases are left to the other modes.
            continue
        if all_deaths < ALL_DEATHS:
            try_all(name, case)
    print(json.dumps({"tried": tried, "failed": failed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
