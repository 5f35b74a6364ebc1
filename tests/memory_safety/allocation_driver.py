"""Calls functions while allocations fail: run by itself, with `fail_allocation.c` loaded before it.

``python allocation_driver.py LIBRARY GROUP MODE`` writes a line of JSON for each trial that goes wrong, and one
with what was tried. Trials run in child processes, so that one that dies is told from the others.

Modes: ``one``, only the n-th allocation fails; ``all``, all from the n-th on; ``anywhere``, the n-th of all threads
together; ``cold``, as ``one``, but each in a process that has called nothing yet. "strict" is about what an exception
leaves behind: nothing may have changed. Otherwise it may be as if the call had succeeded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

#: So many seconds for the trials of a case in one mode.
LIMIT = 40
#: Deaths after which no more of a case is tried.
DEATHS = 3


def armed_calls(library: str) -> tuple[Callable[..., Any], Callable[[], int]]:
    """The functions of the library that is loaded: one that calls, and one that tells how many failed."""
    loaded = ctypes.PyDLL(library)
    call = loaded.call_armed
    call.restype = ctypes.py_object
    call.argtypes = [ctypes.py_object, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    failures = loaded.failures
    failures.restype = ctypes.c_long
    return call, failures


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What a call comes to: its result, or its exception."""
    from allocation_cases import fingerprint

    try:
        result = call()
    except MemoryError:
        return ("MemoryError", None)
    except BaseException as error:
        return (type(error).__name__, None)
    return ("result", fingerprint(result))


class Trials:
    """The trials of one case in one mode."""

    def __init__(self, library: str, case: Callable[[], Any], mode: str, strict: bool) -> None:
        self.call_armed, self.failures = armed_calls(library)
        self.case, self.mode, self.strict = case, mode, strict
        prepared = case()
        self.expected = outcome(prepared.call)
        self.after = prepared.watched()

    def run(self, n: int) -> tuple[list[str], bool]:
        """What went wrong when allocation `n` failed, and whether one failed at all."""
        prepared = self.case()
        before = prepared.watched()
        everywhere, all_after = self.mode == "anywhere", self.mode == "all"
        kind, result = outcome(lambda: self.call_armed(prepared.call, n, all_after, everywhere))
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
                if again != self.expected:
                    wrong.append(f"the call after it gives {again[0]}, not the {self.expected[0]} it should")
                elif prepared.watched() != self.after:
                    wrong.append("the call after it leaves something else behind")
        elif kind != self.expected[0]:
            wrong.append(f"{kind} where {self.expected[0]} or MemoryError is due")
        else:
            if result != self.expected[1]:
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


def main(library: str, group: str, mode: str) -> None:
    from allocation_cases import GROUPS, LARGE_KINDS

    import fastclip

    strict = os.environ.get("PYTHONMALLOC", "") != "malloc"
    # Small objects have room in memory that Python has already.
    spare: list[Any] = [bytes(size) for size in range(0, 480, 16) for _ in range(1000)]
    del spare[::2]
    tried = failed = 0
    for name, case in GROUPS[group].items():
        large = any(kind in name for kind in LARGE_KINDS)
        if mode in ("anywhere", "cold") and not large:
            continue
        if mode == "cold":
            fastclip.set_num_threads(1)
        numbers: Iterable[int] = range(1000)
        if not strict:
            numbers = [*range(0, 40), *range(40, 400, 9), *range(400, 20_000, 97)]
        left, deaths = list(numbers), 0
        # Everything lazy is imported, and for cold calls the expected result is known, before a child starts.
        known = Trials(library, case, mode, strict) if mode == "cold" else None
        if known is None:
            case().call  # noqa: B018
        while left and deaths < DEATHS:

            def work(say: Callable[[str], None], left: list[int] = left, known: Any = known) -> None:
                fastclip.set_num_threads(2)
                trials = known or Trials(library, case, mode, strict)  # noqa: B023
                for n in left[:1] if mode == "cold" else left:
                    say(f"{n}")
                    wrong, any_failed = trials.run(n)
                    if wrong:
                        say(f"{n} {'; '.join(wrong)}")
                    if not any_failed:
                        say("end")
                        return

            lines, code = in_child(work)
            last = -1
            for line in lines:
                number, _, wrong = line.partition(" ")
                if line == "end":
                    left = []
                elif not wrong:
                    last, tried = int(number), tried + 1
                else:
                    failed += 1
                    print(json.dumps({"case": name, "n": int(number), "wrong": wrong}), flush=True)
            if code:
                deaths, failed = deaths + 1, failed + 1
                how = f"died by signal {-code}" if code < 0 else f"ended with status {code}"
                print(json.dumps({"case": name, "n": last, "wrong": how}), flush=True)
                if last < 0:
                    break
            left = [n for n in left if n > last]
    print(json.dumps({"tried": tried, "failed": failed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
