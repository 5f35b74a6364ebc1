"""Ranks that reduce arrays together, each a thread of the test process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Exchange:
    """The arrays that the ranks of one call sum, in the order of the ranks."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=60)
        self.arrays: list[Any] = [None] * count
        self.ranks = [Rank(self, number) for number in range(count)]


class Rank:
    """A communicator of one rank."""

    def __init__(self, exchange: Exchange, number: int) -> None:
        self.exchange = exchange
        self.number = number
        self.calls = 0

    def allreduce(self, values: Any) -> Any:
        assert isinstance(values, np.ndarray)
        self.calls += 1
        self.exchange.arrays[self.number] = values.copy()
        self.exchange.barrier.wait()
        total = sum(self.exchange.arrays[1:], start=self.exchange.arrays[0].copy())
        self.exchange.barrier.wait()
        return total


def on_every_rank(per_rank: list[Any], call: Any) -> list[Any]:
    """Returns the results (or exceptions) of ``call(arrays, comm)`` on concurrent ranks."""
    exchange = Exchange(len(per_rank))

    def run(rank: Rank, arrays: Any) -> Any:
        try:
            return call(arrays, rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(per_rank)) as pool:
        futures = [pool.submit(run, *pair) for pair in zip(exchange.ranks, per_rank, strict=True)]
        results = [future.result(timeout=120) for future in futures]
    assert all(rank.calls == 1 for rank in exchange.ranks), "one exchange per call"
    return results
