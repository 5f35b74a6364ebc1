"""Times several contenders in one process, in interleaved rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Pause before each turn, in seconds. OpenMP and BLAS threads spin for up to about 25 ms after a call and
# would take CPU time from the next contender.
PAUSE_SECONDS = 0.03
# Duration of a turn of short calls, in seconds. Calls that take longer are made once per turn.
TURN_SECONDS = 0.005
MAX_CALLS_PER_TURN = 64


@dataclass
class Contender:
    """One implementation of the work of a row.

    Attributes
    ----------
    name : str
        The key of the results: "fastclip", "numpy", "torch", "limit", ...
    label : str
        The function or expression that is timed, for the JSON output and error messages.
    call : callable
        Does the work. Only this function is timed.
    refresh : callable
        Restores the input before each call.
    result : object
        The return value of the last call. It is kept until the next call has returned, as in a training
        loop, so the memory of an out-of-place result is not free for reuse during that call.
    device_seconds : callable, optional
        Does the work in place of `call`, and returns how many seconds it took by the clock of a device.
    """

    name: str
    label: str
    call: Callable[[], object]
    refresh: Callable[[], None] = lambda: None
    result: object = None
    device_seconds: Callable[[], float] | None = None


@dataclass
class Timing:
    """Times of one contender, in seconds.

    Attributes
    ----------
    rounds : list of float
        The median of the calls in each round.
    calls : list of float
        Every timed call.
    """

    rounds: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.rounds)

    @property
    def minimum(self) -> float:
        """The time of the fastest round, in seconds."""
        return min(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the rounds, in seconds."""
        return quartiles(self.rounds)

    @property
    def spread(self) -> float:
        """The 90th percentile of the calls divided by their median."""
        if len(self.calls) < 2:
            return 1.0
        return statistics.quantiles(self.calls, n=10, method="inclusive")[-1] / statistics.median(self.calls)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def turn_order(count: int, turn: int) -> list[int]:
    """Return the indices of `count` contenders in the order in which they run in round `turn`.

    The order is rotated by one each round, so that over `count` rounds each contender has each position
    once. It is a Williams design: within 2 * `count` rounds each contender also runs equally often after
    each of the others, so that no contender always inherits the caches and the spinning threads of the
    same predecessor.
    """
    zigzag = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    order = [(index + turn) % count for index in zigzag]
    return order[::-1] if count % 2 and (turn // count) % 2 else order


def measure(
    contenders: Sequence[Contender],
    *,
    seconds: float,
    rounds: int | None = None,
    min_rounds: int = 5,
    max_rounds: int = 200,
    pause: float = PAUSE_SECONDS,
    on_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Timing]:
    """Time all contenders in interleaved rounds.

    Parameters
    ----------
    contenders : sequence of Contender
        The contenders. Each one must have been called before, so that it is compiled and warm.
    seconds : float
        Duration of the measurement, in seconds: no round starts after it.
    rounds : int, optional
        The exact number of rounds. If given, `seconds`, `min_rounds` and `max_rounds` have no effect.
    min_rounds, max_rounds : int
        The smallest and the largest number of rounds, whatever `seconds` is.
    pause : float
        Pause before each turn, in seconds.
    on_round : callable
        Called after each round with the number of rounds done.

    Returns
    -------
    dict of str to Timing
        Times by contender name. The time of a round is the median of the calls in the contender's turn.
    """
    timings = {contender.name: Timing() for contender in contenders}
    calls = {contender.name: _calls_per_turn(contender) for contender in contenders}
    gc_was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        done = 0
        while (
            done < rounds
            if rounds is not None
            else _another_round(done, start, seconds, min_rounds, max_rounds)
        ):
            for index in turn_order(len(contenders), done):
                contender = contenders[index]
                time.sleep(pause)
                timing = timings[contender.name]
                times = _time_turn(contender, calls[contender.name])
                timing.rounds.append(statistics.median(times))
                timing.calls += times
            done += 1
            on_round(done)
    finally:
        if gc_was_enabled:
            gc.enable()
    return timings


def _another_round(done: int, start: float, seconds: float, min_rounds: int, max_rounds: int) -> bool:
    return done < min_rounds or (done < max_rounds and time.perf_counter() - start < seconds)


def _calls_per_turn(contender: Contender) -> int:
    """Return how many calls fit into a turn, estimated from the second of two calls."""
    _time_call(contender)
    estimate = _time_call(contender)
    return max(1, min(MAX_CALLS_PER_TURN, int(TURN_SECONDS / max(estimate, 1e-9))))


def _time_turn(contender: Contender, calls: int) -> list[float]:
    """Return the times of `calls` calls, in seconds."""
    if calls > 1:  # short calls: first wake the contender's threads and fill the caches
        for _ in range((calls + 3) // 4):
            _time_call(contender)
    return [_time_call(contender) for _ in range(calls)]


def _time_call(contender: Contender) -> float:
    """Return the time of one call, in seconds, and keep its result."""
    contender.refresh()
    if contender.device_seconds is not None:
        return contender.device_seconds()
    start = time.perf_counter_ns()
    contender.result = contender.call()
    return (time.perf_counter_ns() - start) * 1e-9
