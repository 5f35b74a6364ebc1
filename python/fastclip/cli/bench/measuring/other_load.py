"""Measures how busy other processes keep the machine."""

from __future__ import annotations

import os
import time
from typing import NamedTuple


class OtherLoad:
    """Measures the CPU time of other processes, from the creation of this object.

    The times of a benchmark are not reliable if other processes use the CPU meanwhile. Only Linux reports
    the CPU time of the whole machine.
    """

    def __init__(self) -> None:
        self._start = _read_clocks()

    def cores(self) -> float | None:
        """Return the average number of cores that other processes kept busy; None if it is unknown."""
        start, now = self._start, _read_clocks()
        if start is None or now is None or now.wall <= start.wall:
            return None
        others = (now.machine_cpu - start.machine_cpu) - (now.process_cpu - start.process_cpu)
        return max(0.0, others / (now.wall - start.wall))


class _Clocks(NamedTuple):
    """Clock readings, in seconds.

    Attributes
    ----------
    wall : float
        The monotonic clock.
    machine_cpu : float
        CPU time of all processes on all cores.
    process_cpu : float
        CPU time of this process and its children that have ended.
    """

    wall: float
    machine_cpu: float
    process_cpu: float


def _read_clocks() -> _Clocks | None:
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    machine_cpu = (user + nice + system + interrupts + soft_interrupts + stolen) / ticks
    times = os.times()
    process_cpu = times.user + times.system + times.children_user + times.children_system
    return _Clocks(time.monotonic(), machine_cpu, process_cpu)
