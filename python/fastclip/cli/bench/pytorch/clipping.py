"""Rows that clip the gradients of parameters."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, memory_limit
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.pytorch.models import BOUND, Parameters, shapes_of

__all__ = ["CASES"]


def _clip(shapes_name: str, function: str, passes: str, size: Size) -> Work:
    shapes = shapes_of(shapes_name, is_small=size.is_small)
    nbytes = sum(4 * parameter.numel() for parameter in Parameters(shapes).tensors)

    def make(name: str) -> Contender:
        if name == "fastclip":
            clip = getattr(importlib.import_module("fastclip.torch"), function)
        else:
            clip = getattr(importlib.import_module("torch").nn.utils, function)
        parameters = Parameters(shapes)
        return Contender(
            name,
            f"{clip.__module__}.{function}",
            lambda: clip(parameters.tensors, BOUND),
            parameters.restore,
            result=parameters,
        )

    return Work(
        shapes=shapes,
        nbytes=nbytes,
        contenders={name: partial(make, name) for name in ("fastclip", "torch")},
        limit=memory_limit(nbytes, passes),
    )


def _case(shapes_name: str, function: str, passes: str, at_most: dict[str, float]) -> Cliff:
    prepare: Any = partial(_clip, shapes_name, function, passes)
    return Cliff(f"{function.strip('_').replace('_', '-')}-{shapes_name}", "f32", prepare, at_most)


CASES = (
    _case("many", "clip_grad_norm_", "read + scale", {"torch": 0.12}),
    _case("gpt2", "clip_grad_norm_", "read + scale", {"torch": 0.95}),
    _case("many", "clip_grad_value_", "scale", {}),
)
