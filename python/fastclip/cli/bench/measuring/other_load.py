"""How busy other processes keep the machine while something is measured."""

from __future__ import annotations

import os
import time


class OtherLoad:
    """Measures, from when it is made, how many cores do not work for this process.

    A benchmark on a busy machine times the others too; whoever reads its numbers should
    know. Only Linux tells how busy the whole machine is.
    """

    def __init__(self) -> None:
        self._start = _moments()

    def cores(self) -> float | None:
        """Return how many cores others have kept busy on average; None where it is not known."""
        start, now = self._start, _moments()
        if start is None or now is None or now[0] <= start[0]:
            return None
        wall, everyone, own = (later - earlier for later, earlier in zip(now, start, strict=True))
        return max(0.0, (everyone - own) / wall)


def _moments() -> tuple[float, float, float] | None:
    """Return the seconds of the clock, of CPU time of the machine, and of this process."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    everyone = (user + nice + system + interrupts + soft_interrupts + stolen) / ticks
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return time.monotonic(), everyone, own
