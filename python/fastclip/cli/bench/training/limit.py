"""The limit of a step: how fast this machine moves the bytes that a step has to move."""

from __future__ import annotations

import numpy as np

from fastclip import _core
from fastclip.cli.bench.clipping.limit import gradient_buffer
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.training.workload import StepRow, StepWorkload


def limit_passes(row: StepRow) -> str:
    """Say which passes over memory a step cannot do without.

    One pass reads the gradients for their norm, where there is clipping; the other reads them again and
    reads and writes variable and slots.
    """
    return "read + read + scale" if row.clipped else "read + scale"


def limit(work: StepWorkload) -> Contender:
    """Return the contender that makes just these passes, with plain SIMD loops.

    The loops are those of :mod:`fastclip.cli.bench.clipping.limit`, in turn: each reading pass is over one
    buffer of as many bytes as the gradients have, and the pass that reads and writes is over one of as many
    as variables and slots have together. The first of them is refreshed as the gradients are.
    """
    passes = limit_passes(work.row)
    gradients, refresh = gradient_buffer(work.gradients, refreshed=True)
    state = np.ones(work.row.state_nbytes // 4, np.float32)

    def call() -> None:
        for _ in range(passes.count("read")):
            _core.bandwidth_read(gradients)
        _core.bandwidth_scale(state, -1.0)  # by less than 1, the numbers would become subnormal

    return Contender("limit", passes, call, refresh)
