"""The limit of a clipping row: the time this machine needs to move the bytes that clipping must move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastclip import _core
from fastclip.cli.bench.clipping.benchmark_rows import Row, Workload
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender


def limit_passes(row: Row) -> str:
    """Return the passes over memory that the work of a row requires, such as "read + scale".

    Clipping by the global norm requires a pass that reads all gradients, for the norm, before the pass that
    scales them. A row of a matrix stays in the cache between the two, so clipping by the norm of the rows
    requires one pass.
    """
    if row.operation != "global-norm":
        return "scale" if row.in_place else "copy"
    if not row.in_place:
        return "read + copy"
    return "read + scale" if row.clipped else "read"


def limit(work: Workload) -> Contender:
    """Return the contender that makes these passes and nothing else, with plain SIMD loops.

    The loops run on as many threads as fastclip uses, over one buffer that has the size of all gradients.
    For out-of-place rows, the output buffer is allocated in advance: the limit does not include the
    allocation of memory. If the gradients are restored before each call, so is this buffer, in pieces of
    the same sizes, so that the content of the caches is the same.
    """
    passes = limit_passes(work.row)
    source, refresh = gradient_buffer(work.gradients, refreshed=work.row.in_place and work.row.clipped)
    return memory_passes(passes, source, 0.5, refresh)


def memory_passes(
    passes: str, source: Array, factor: float, refresh: Callable[[], None] = lambda: None
) -> Contender:
    """Return the contender "limit" that makes passes over `source`, such as "read + scale", and nothing else.

    A pass that scales or copies multiplies the elements by `factor`.
    """
    output = np.ones(source.size if "copy" in passes else 0, np.float32)
    steps: dict[str, Callable[[], object]] = {
        "read": lambda: _core.bandwidth_read(source),
        "copy": lambda: _core.bandwidth_copy(source, output, factor),
        "scale": lambda: _core.bandwidth_scale(source, factor),
    }
    calls = [steps[step] for step in passes.split(" + ")]

    def call() -> None:
        for step in calls:
            step()

    return Contender("limit", passes, call, refresh)


def gradient_buffer(gradients: Sequence[Array], *, refreshed: bool) -> tuple[Array, Callable[[], None]]:
    """Return a float32 buffer of the size of all gradients, and a function that restores it.

    If `refreshed` is true, the function copies pieces of the sizes of the gradients, as restoring the
    gradients does. Otherwise it does nothing.
    """
    source: Array = np.ones(max(1, -(-sum(gradient.nbytes for gradient in gradients) // 4)), np.float32)
    if not refreshed:
        return source, lambda: None
    ends = np.cumsum([gradient.nbytes // 4 for gradient in gradients])
    pieces = list(zip(np.split(source, ends), np.split(source.copy(), ends), strict=True))

    def refresh() -> None:
        for piece, original in pieces:
            np.copyto(piece, original)

    return source, refresh
