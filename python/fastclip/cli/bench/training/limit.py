"""The limit of a training row: the time this machine needs to move the bytes that a step must move."""

from __future__ import annotations

import numpy as np

from fastclip import _core
from fastclip.cli.bench.clipping.limit import gradient_buffer
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.training.benchmark_rows import StepRow, StepWorkload


def limit_passes(row: StepRow) -> str:
    """Return the passes over memory that a step requires, such as "read + scale".

    With clipping, the first pass reads the gradients, for their norm. Then the gradients are read, and
    variables and slots are read and written ("scale").
    """
    return "read + read + scale" if row.clipped else "read + scale"


def limit(work: StepWorkload) -> Contender:
    """Return the contender that makes these passes and nothing else, with plain SIMD loops.

    The loops are those of :mod:`fastclip.cli.bench.clipping.limit`. Each reading pass is over a buffer of
    the size of all gradients, which is restored before each call as the gradients are. The pass that reads
    and writes is over a buffer of the size of all variables and slots.
    """
    passes = limit_passes(work.row)
    gradients, refresh = gradient_buffer(work.gradients, refreshed=True)
    state = np.ones(work.row.state_nbytes // 4, np.float32)

    def call() -> None:
        for _ in range(passes.count("read")):
            _core.bandwidth_read(gradients)
        _core.bandwidth_scale(
            state, -1.0
        )  # a smaller factor would make the elements subnormal after many calls

    return Contender("limit", passes, call, refresh)
