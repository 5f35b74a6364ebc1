"""Rows that take steps of optimizers, and a whole training step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, memory_limit
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.pytorch.models import BOUND, Parameters, shapes_of, small_transformer

__all__ = ["CASES"]

_OPTIONS: Mapping[str, dict[str, Any]] = {"AdamW": {"lr": 1e-4}, "SGD": {"lr": 1e-4, "momentum": 0.9}}
#: The passes of each optimizer over arrays of the size of the gradients, after the pass for the norm.
_PASSES = {"AdamW": "read + scale + scale + scale", "SGD": "read + scale + scale"}


def _fastclip(name: str, optimizer_name: str, shapes_name: str, size: Size, **options: Any) -> Contender:
    kind = getattr(importlib.import_module("fastclip.torch"), optimizer_name)
    parameters = Parameters(shapes_of(shapes_name, is_small=size.is_small))
    optimizer = kind(parameters.tensors, **_OPTIONS[optimizer_name], **options)
    label = ", ".join(f"{key}={value}" for key, value in options.items())
    return Contender(name, f"fastclip.torch.{optimizer_name}({label})", optimizer.step, result=parameters)


def _torch(name: str, optimizer_name: str, shapes_name: str, size: Size, *, clips: bool) -> Contender:
    torch = importlib.import_module("torch")
    parameters = Parameters(shapes_of(shapes_name, is_small=size.is_small))
    if name == "deepspeed":
        # DeepSpeed's optimizer compiles itself at first use.
        kind, fused = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam, {}
    else:
        kind, fused = getattr(torch.optim, optimizer_name), {"fused": True}
    optimizer = kind(parameters.tensors, **_OPTIONS[optimizer_name], **fused)
    clip = torch.nn.utils.clip_grad_norm_

    def call() -> None:
        if clips:
            clip(parameters.tensors, BOUND)
        optimizer.step()

    # The gradients are restored, because clipping has written them.
    refresh = parameters.restore if clips else (lambda: None)
    label = "clip_grad_norm_; " * clips + f"{kind.__name__}({'fused=True' if fused else ''})"
    return Contender(name, label, call, refresh, result=parameters)


def _step(optimizer_name: str, shapes_name: str, clips: bool, peers: tuple[str, ...], size: Size) -> Work:
    shapes = shapes_of(shapes_name, is_small=size.is_small)
    nbytes = sum(4 * parameter.numel() for parameter in Parameters(shapes).tensors)
    bound = {"max_norm": BOUND} if clips else {}
    contenders: dict[str, Callable[[], Contender]] = {
        "fastclip": partial(_fastclip, "fastclip", optimizer_name, shapes_name, size, **bound)
    }
    for peer in peers:
        contenders[peer] = partial(_torch, peer, optimizer_name, shapes_name, size, clips=clips)
    passes = "read + " * clips + _PASSES[optimizer_name]
    return Work(shapes=shapes, nbytes=nbytes, contenders=contenders, limit=memory_limit(nbytes, passes))


def _narrow(size: Size) -> Work:
    """Moments of bfloat16, against those of float32."""
    torch = importlib.import_module("torch")
    work = _step("AdamW", "gpt2", True, (), size)
    wide = partial(_fastclip, "fastclip-reference", "AdamW", "gpt2", size, max_norm=BOUND)
    options = {"max_norm": BOUND, "state_dtype": torch.bfloat16}
    narrow = partial(_fastclip, "fastclip", "AdamW", "gpt2", size, **options)
    contenders = {"fastclip": narrow, "fastclip-reference": wide}
    return Work(shapes=work.shapes, nbytes=work.nbytes, contenders=contenders, limit=work.limit)


def _accumulate(size: Size) -> Work:
    """Adds gradients to sums, and returns the norm of the sums."""
    shapes = shapes_of("gpt2", is_small=size.is_small)
    sums = [np.zeros(shape, np.float32) for shape in shapes]
    gradients = [np.full(shape, 1e-6, np.float32) for shape in shapes]
    nbytes = sum(array.nbytes for array in sums)

    def contender() -> Contender:
        return Contender("fastclip", "fastclip.accumulate", lambda: fastclip.accumulate(sums, gradients))

    return Work(
        shapes=shapes,
        nbytes=nbytes,
        contenders={"fastclip": contender},
        limit=memory_limit(nbytes, "read + scale"),
    )


def _whole_step(size: Size) -> Work:
    """A training step with norms that are measured in the backward pass, and without."""

    def make(name: str) -> Contender:
        optimizers = importlib.import_module("fastclip.torch")
        model, backward = small_transformer(is_small=size.is_small)
        optimizer = optimizers.AdamW(model.parameters(), lr=1e-4, max_norm=BOUND)
        if name == "fastclip":
            optimizer.measure_in_backward(model)

        def call() -> None:
            backward()
            optimizer.step()

        label = "measure_in_backward" if name == "fastclip" else "norms measured in the step"
        return Contender(name, label, call, result=model)

    model, _ = small_transformer(is_small=size.is_small)
    shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
    nbytes = sum(4 * parameter.numel() for parameter in model.parameters())
    return Work(
        shapes=shapes,
        nbytes=nbytes,
        contenders={name: partial(make, name) for name in ("fastclip", "fastclip-reference")},
        limit=memory_limit(nbytes, _PASSES["AdamW"]),
    )


def _case(
    name: str, optimizer_name: str, shapes_name: str, at_most: dict[str, float], *, clips: bool = True
) -> Cliff:
    prepare: Any = partial(_step, optimizer_name, shapes_name, clips, tuple(at_most))
    return Cliff(name, "f32", prepare, at_most)


CASES = (
    _case("adamw-gpt2", "AdamW", "gpt2", {"torch": 0.75, "deepspeed": 0.70}),
    _case("adamw-resnet50", "AdamW", "resnet50", {"torch": 0.70, "deepspeed": 0.70}),
    _case("adamw-many", "AdamW", "many", {"torch": 0.30}),
    _case("adamw-one", "AdamW", "one", {"torch": 0.7}, clips=False),
    Cliff("adamw-bf16-moments-gpt2", "f32", _narrow, {"fastclip-reference": 0.80}),
    _case("sgd-gpt2", "SGD", "gpt2", {"torch": 0.75}),
    Cliff("accumulate-gpt2", "f32", _accumulate, {"limit": 1.1}),
    Cliff("transformer-step", "f32", _whole_step, {"fastclip-reference": 1.0}),
)
