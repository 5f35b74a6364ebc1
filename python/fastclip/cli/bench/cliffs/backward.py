"""A step right after the backward pass of torch, whose threads still wait for work on every core."""

from __future__ import annotations

import importlib
from typing import Any

from fastclip import train
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, memory_limit
from fastclip.cli.bench.measuring.timing import Contender

_RATE = 1e-3
_BOUND = 0.5


def _model(torch: Any, width: int) -> tuple[Any, Any]:
    """Return a network of 15 layers, which has 30 tensors, and its input."""
    torch.manual_seed(0)
    layers = [layer for _ in range(15) for layer in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers), torch.randn(64, width)


def _step(size: Size) -> Work:
    torch = importlib.import_module("torch")
    width = size.count(169, 8) if size.is_small else round(169 * (size.count(1000, 1000) / 1000) ** 0.5)
    network, data = _model(torch, width)
    shapes = tuple(tuple(parameter.shape) for parameter in network.parameters())
    nbytes = sum(4 * parameter.numel() for parameter in network.parameters())

    def backward(network: Any) -> None:
        network.zero_grad()
        network(data).square().mean().backward()

    def fastclip() -> Contender:
        model, _ = _model(torch, width)
        parameters = list(model.parameters())
        optimizer = train.AdamWOptimizer(_RATE, weight_decay=0.01, global_clipnorm=_BOUND)
        return Contender(
            "fastclip",
            "AdamW(global_clipnorm=) after backward()",
            lambda: optimizer.apply_gradients([(p.grad, p.detach()) for p in parameters]),
            lambda: backward(model),
            result=parameters,
        )

    def torch_() -> Contender:
        model, _ = _model(torch, width)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, _RATE, weight_decay=0.01, fused=True)

        def call() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, _BOUND)
            optimizer.step()

        return Contender(
            "torch", "clip_grad_norm_, AdamW(fused=True) after backward()", call, lambda: backward(model)
        )

    return Work(
        shapes=shapes,
        nbytes=nbytes,
        contenders={"fastclip": fastclip, "torch": torch_},
        limit=memory_limit(nbytes, "read + read + scale + scale + scale"),
    )


CASES = (Cliff("after-backward", "f32", _step, {"torch": 0.7}),)
