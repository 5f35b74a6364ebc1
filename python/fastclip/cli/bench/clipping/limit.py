"""The limit of a row: how fast this machine can move the bytes that the work has to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastclip import _core
from fastclip.cli.bench.clipping.workload import Row, Workload
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender


def limit_passes(row: Row) -> str:
    """Say which passes over the memory of a row cannot be done without.

    A norm has to be known before anything can be scaled, so that a global norm takes a pass
    that reads and then one that writes; a row of a matrix stays in the cache in between.
    """
    if row.operation != "global-norm":
        return "scale" if row.in_place else "copy"
    if not row.in_place:
        return "read + copy"
    return "read + scale" if row.clipped else "read"


def limit(work: Workload) -> Contender:
    """Return the contender that makes just these passes, with plain SIMD loops.

    The loops run on as many threads as fastclip uses, over one buffer of as many bytes as
    the gradients have, whatever their type. Out of place, the buffer written to is there
    beforehand: fresh memory is no part of the limit. Where the gradients are refreshed, so
    is this buffer, in pieces of the same sizes: what is in the caches is then the same.
    """
    passes = limit_passes(work.row)
    source, refresh = gradient_buffer(work.gradients, refreshed=work.row.in_place and work.row.clipped)
    target = np.ones(source.size if "copy" in passes else 0, np.float32)

    def call() -> None:
        if "read" in passes:
            _core.bandwidth_read(source)
        if "copy" in passes:
            _core.bandwidth_copy(source, target, 0.5)
        elif "scale" in passes:
            _core.bandwidth_scale(source, 0.5)

    return Contender("limit", passes, call, refresh)


def gradient_buffer(gradients: Sequence[Array], *, refreshed: bool) -> tuple[Array, Callable[[], None]]:
    """Return a buffer of as many bytes as the gradients have, and what refreshes it as they are."""
    source: Array = np.ones(max(1, -(-sum(gradient.nbytes for gradient in gradients) // 4)), np.float32)
    if not refreshed:
        return source, lambda: None
    ends = np.cumsum([gradient.nbytes // 4 for gradient in gradients])
    pieces = list(zip(np.split(source, ends), np.split(source.copy(), ends), strict=True))

    def refresh() -> None:
        for piece, original in pieces:
            np.copyto(piece, original)

    return source, refresh
