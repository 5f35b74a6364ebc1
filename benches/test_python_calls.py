"""Times calls of fastclip on small arrays, where the overhead of the call itself is a large part.

``python benches/test_python_calls.py`` prints the times. Under pytest, each call runs once, to check that it
still works. ``fastclip bench`` compares fastclip with other libraries.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastclip
from fastclip import train

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
    # The norm passed is far above the true one, so that every call scales, by 1 - 2**-20. With this factor
    # the elements are still normal numbers after hundreds of thousands of calls.
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


def step(optimizer: train.Optimizer, count: int, size: int, step_counter: Array | None = None) -> Call:
    pairs = list(zip(arrays(count, size), arrays(count, size), strict=True))

    def call() -> object:
        optimizer.apply_gradients(pairs, global_step=step_counter)
        return optimizer

    return call


def gradient_descent_step(count: int, size: int) -> Call:
    return step(train.GradientDescentOptimizer(1e-3), count, size)


def momentum_step(count: int, size: int) -> Call:
    return step(train.MomentumOptimizer(1e-3, 0.9), count, size)


def adam_step(count: int, size: int) -> Call:
    return step(train.AdamOptimizer(), count, size)


def adamw_step(count: int, size: int) -> Call:
    return step(train.AdamWOptimizer(weight_decay=0.01), count, size)


def adamw_step_with_global_clipnorm(count: int, size: int) -> Call:
    return step(train.AdamWOptimizer(weight_decay=0.01, global_clipnorm=1.0), count, size)


def adamw_step_with_clipnorm(count: int, size: int) -> Call:
    return step(train.AdamWOptimizer(weight_decay=0.01, clipnorm=1.0), count, size)


def adagrad_step(count: int, size: int) -> Call:
    return step(train.AdagradOptimizer(1e-3), count, size)


def adagrad_da_step(count: int, size: int) -> Call:
    counter = np.zeros((), np.int64)
    return step(train.AdagradDAOptimizer(1e-3, counter), count, size, counter)


def rms_prop_step(count: int, size: int) -> Call:
    return step(train.RMSPropOptimizer(1e-3, momentum=0.9), count, size)


def rms_prop_centered_step(count: int, size: int) -> Call:
    return step(train.RMSPropOptimizer(1e-3, momentum=0.9, epsilon=1e-3, centered=True), count, size)


def adadelta_step(count: int, size: int) -> Call:
    return step(train.AdadeltaOptimizer(), count, size)


def ftrl_step(count: int, size: int) -> Call:
    return step(train.FtrlOptimizer(1e-3), count, size)


def proximal_gradient_descent_step(count: int, size: int) -> Call:
    return step(train.ProximalGradientDescentOptimizer(1e-3, 1e-3, 1e-3), count, size)


def proximal_adagrad_step(count: int, size: int) -> Call:
    return step(train.ProximalAdagradOptimizer(1e-3, 0.1, 1e-3, 1e-3), count, size)


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
    gradient_descent_step,
    momentum_step,
    adam_step,
    adamw_step,
    adamw_step_with_global_clipnorm,
    adamw_step_with_clipnorm,
    adagrad_step,
    adagrad_da_step,
    rms_prop_step,
    rms_prop_centered_step,
    adadelta_step,
    ftrl_step,
    proximal_gradient_descent_step,
    proximal_adagrad_step,
)
# Number of tensors and elements per tensor: one scalar, a small network, a long list of small tensors.
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
