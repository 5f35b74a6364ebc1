"""Measuring contenders beside each other, in turns, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Before a turn, the threads of the contender before it have to come to rest: after a call,
# OpenMP and BLAS threads spin for up to some 25 ms, and would take a core from the next.
PAUSE = 0.03
# What a turn of short calls lasts; a call longer than this is made once a turn.
TURN = 0.005
MAX_CALLS_PER_TURN = 64


@dataclass
class Contender:
    """One way to do the work of a row.

    Attributes
    ----------
    name : str
        What the results are filed under: "fastclip", "numpy", "torch", "limit", ...
    label : str
        What is called, for people.
    call : callable
        The work; timed.
    refresh : callable
        Brings the input back to what it was; not timed.
    result : object
        What the last call returned. It lives until the next call has returned, as it does
        in a training loop, and so does the memory of an out-of-place result.
    """

    name: str
    label: str
    call: Callable[[], object]
    refresh: Callable[[], None] = lambda: None
    result: object = None


@dataclass
class Timing:
    """The times of one contender, in seconds: one for each round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def minimum(self) -> float:
        """The fastest round."""
        return min(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile over the rounds."""
        if len(self.rounds) == 1:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third


def turn_order(count: int, turn: int) -> list[int]:
    """Return who is when in round `turn`, of `count` contenders.

    The order is rotated by one each round, so that over `count` rounds everyone is once in
    each place. It is a Williams design: within 2 * `count` rounds everyone also comes
    equally often after each of the others, so that none always inherits the caches (and
    the spinning threads) of the same predecessor.
    """
    zigzag = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    order = [(place + turn) % count for place in zigzag]
    return order[::-1] if count % 2 and (turn // count) % 2 else order


def measure(
    contenders: Sequence[Contender],
    *,
    seconds: float,
    rounds: int | None = None,
    min_rounds: int = 5,
    max_rounds: int = 200,
    pause: float = PAUSE,
    on_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Timing]:
    """Time all contenders in interleaved rounds.

    Parameters
    ----------
    contenders : sequence of Contender
        Who takes part. Each has been called at least once before (compiled, warmed up).
    seconds : float
        Rounds are added until this time is over.
    rounds : int, optional
        Make exactly so many rounds instead.
    min_rounds, max_rounds : int
        The least and the most rounds that `seconds` can lead to.
    pause : float
        Seconds of rest before each turn.
    on_round : callable
        Told the number of rounds done.

    Returns
    -------
    dict of str to Timing
        By the contenders' names. A round counts as the median of the calls of its turn.
    """
    timings = {contender.name: Timing() for contender in contenders}
    calls = {contender.name: _calls_per_turn(contender) for contender in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        done = 0
        while done < rounds if rounds is not None else _goes_on(done, start, seconds, min_rounds, max_rounds):
            for place in turn_order(len(contenders), done):
                contender = contenders[place]
                time.sleep(pause)
                times = _turn(contender, calls[contender.name])
                timings[contender.name].rounds.append(times)
            done += 1
            on_round(done)
    finally:
        if collecting:
            gc.enable()
    return timings


def _goes_on(done: int, start: float, seconds: float, min_rounds: int, max_rounds: int) -> bool:
    return done < min_rounds or (done < max_rounds and time.perf_counter() - start < seconds)


def _calls_per_turn(contender: Contender) -> int:
    _timed_call(contender)
    estimate = _timed_call(contender)
    return max(1, min(MAX_CALLS_PER_TURN, int(TURN / max(estimate, 1e-9))))


def _turn(contender: Contender, calls: int) -> float:
    if calls > 1:  # short calls: wake the contender's threads and fill the caches first
        for _ in range((calls + 3) // 4):
            _timed_call(contender)
    return statistics.median(_timed_call(contender) for _ in range(calls))


def _timed_call(contender: Contender) -> float:
    contender.refresh()
    start = time.perf_counter_ns()
    contender.result = contender.call()
    return (time.perf_counter_ns() - start) * 1e-9
