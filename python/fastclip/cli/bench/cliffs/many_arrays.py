"""Many small arrays, and a small model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

import fastclip
from fastclip import train
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, check_close, memory_limit, normal
from fastclip.cli.bench.clipping.limit import gradient_buffer, memory_passes
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.inputs.shapes import mlp
from fastclip.cli.bench.measuring.timing import Contender

# What is done with the gradients, and the passes over memory that it takes.
_PASSES = {
    "norm": "read",
    "in-place": "read + scale",
    "out-of-place": "read + copy",
    "adamw": "read + read + scale + scale + scale",
}
# Pause before a step in a training loop whose other work takes that long, in seconds.
_REST_SECONDS = 0.005


def _operation(operation: str, name: str, gradients: list[Array], rest: float = 0.0) -> Contender:
    """Return fastclip's contender for gradients, which are restored before each call."""
    start = [gradient.copy() for gradient in gradients]
    bound = 0.5 * float(fastclip.global_norm(gradients))
    calls: dict[str, Callable[[], object]] = {
        "norm": lambda: fastclip.global_norm(gradients),
        "in-place": lambda: fastclip.clip_by_global_norm(gradients, bound, out=gradients),
        "out-of-place": lambda: fastclip.clip_by_global_norm(gradients, bound),
    }
    if operation == "adamw":
        variables = [np.ones_like(gradient) for gradient in gradients]
        optimizer = train.AdamWOptimizer(1e-4, global_clipnorm=bound)
        calls["adamw"] = lambda: optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def refresh() -> None:
        if operation != "norm":
            for gradient, original in zip(gradients, start, strict=True):
                np.copyto(gradient, original)
        if rest:
            time.sleep(rest)

    return Contender(name, f"{operation} of {len(gradients)} arrays", calls[operation], refresh)


def _check(operation: str, gradients: list[Array], contender: Contender) -> None:
    """Raise AssertionError if a clipping contender's result is wrong."""
    if contender.name == "fastclip" and operation == "in-place":
        check_close(contender, gradients[0], 0.5 * normal(gradients[0].shape), rtol=1e-3)


def _many(size: Size, operation: str) -> Work:
    count, length = size.count(2000, 50), 512
    gradients = [normal((length,)) for _ in range(count)]
    whole = [np.concatenate(gradients)]
    return Work(
        shapes=((length,),) * count,
        nbytes=whole[0].nbytes,
        contenders={
            "fastclip": lambda: _operation(operation, "fastclip", gradients),
            "fastclip-reference": lambda: _operation(operation, "fastclip-reference", whole),
        },
        limit=memory_limit(whole[0].nbytes, _PASSES[operation]),
        check=partial(_check, operation, gradients),
    )


def _mlp(size: Size, operation: str, rest: float = 0.0) -> Work:
    shapes = mlp(size.count(784, 16), 112, 96, 10)
    gradients = [normal(shape) for shape in shapes]
    nbytes = sum(gradient.nbytes for gradient in gradients)
    source, refresh = gradient_buffer(gradients, refreshed=True)
    return Work(
        shapes=shapes,
        nbytes=nbytes,
        contenders={"fastclip": lambda: _operation(operation, "fastclip", gradients, rest)},
        limit=memory_passes(_PASSES[operation], source, -1.0, refresh),
        check=partial(_check, operation, gradients),
    )


CASES = (
    *(
        Cliff(
            f"2000-arrays-{operation}",
            "f32",
            partial(_many, operation=operation),
            {"fastclip-reference": bound},
        )
        for operation, bound in (("norm", 1.6), ("in-place", 1.4), ("out-of-place", 1.35), ("adamw", 1.4))
    ),
    Cliff("mlp-in-place", "f32", partial(_mlp, operation="in-place"), {"limit": 1.2}),
    Cliff(
        "mlp-adamw-after-rest",
        "f32",
        partial(_mlp, operation="adamw", rest=_REST_SECONDS),
        {"its median": 1.5},
    ),
)
