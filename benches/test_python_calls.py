"""Times the calls from Python at sizes where the cost of the call itself shows.

``python benches/test_python_calls.py`` prints the times. As tests, each call runs once, so
that none of them rots; ``fastclip bench`` is what compares with other libraries.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastclip

Array = npt.NDArray[Any]
Call = Callable[[], object]


def arrays(count: int, size: int, dtype: npt.DTypeLike = np.float32) -> list[Array]:
    random = np.random.default_rng(11)
    return [random.standard_normal(size).astype(dtype) for _ in range(count)]


def clip_global_norm_out_of_place(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: fastclip.clip_by_global_norm(gradients, 1.0)


def clip_global_norm_in_place(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    # A norm far above the true one, so that every call scales; by 1 - 2**-20, so that
    # hundreds of thousands of calls later the elements are still normal numbers.
    return lambda: fastclip.clip_by_global_norm(gradients, 1e9 * (1 - 2.0**-20), 1e9, out=gradients)


def clip_global_norm_below_the_bound(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: fastclip.clip_by_global_norm(gradients, 1e9, out=gradients)


def clip_global_norm_of_a_dict(count: int, size: int) -> Call:
    gradients = {f"layer{n}": gradient for n, gradient in enumerate(arrays(count, size))}
    return lambda: fastclip.clip_by_global_norm(gradients, 1.0)


def global_norm(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: fastclip.global_norm(gradients)


def tensor_norms(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: fastclip.tensor_norms(gradients)


def clip_norm(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: [fastclip.clip_by_norm(gradient, 1.0) for gradient in gradients]


def clip_norm_of_rows(count: int, size: int) -> Call:
    matrix = np.stack(arrays(count, size))
    return lambda: fastclip.clip_by_norm(matrix, 1.0, axes=[1])


def clip_value(count: int, size: int) -> Call:
    gradients = arrays(count, size)
    return lambda: [fastclip.clip_by_value(gradient, -0.5, 0.5) for gradient in gradients]


def adaptive_clip(count: int, size: int) -> Call:
    gradients, parameters = arrays(count, size), arrays(count, size)
    return lambda: fastclip.adaptive_clip(parameters, gradients)


CALLS = (
    clip_global_norm_out_of_place,
    clip_global_norm_in_place,
    clip_global_norm_below_the_bound,
    clip_global_norm_of_a_dict,
    global_norm,
    tensor_norms,
    clip_norm,
    clip_norm_of_rows,
    clip_value,
    adaptive_clip,
)
# Tensors and elements of each: one scalar, a small network, a large list of small tensors.
SIZES = ((1, 1), (6, 16_384), (1000, 64))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("prepare", CALLS, ids=lambda prepare: prepare.__name__)
def test_call(prepare: Callable[[int, int], Call], size: tuple[int, int]) -> None:
    assert prepare(*size)() is not None


def main() -> None:
    print(
        f"{'call':<34}" + "".join(f"{f'{count} x {size}':>14}" for count, size in SIZES) + "   (microseconds)"
    )
    for prepare in CALLS:
        cells = []
        for size in SIZES:
            timer = timeit.Timer(prepare(*size))
            repeats, seconds = timer.autorange()
            best = min(seconds, *timer.repeat(3, repeats)) / repeats
            cells.append(f"{best * 1e6:>14.2f}")
        print(f"{prepare.__name__:<34}" + "".join(cells))


if __name__ == "__main__":
    main()
