"""Rows that clip gradients in place: `clip_grad_norm_` and `clip_grad_value_`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastclip.cli.bench.cliffs.cliff import check_close
from fastclip.cli.bench.pytorch.benchmark_rows import TorchRow
from fastclip.cli.bench.pytorch.work import (
    DEVIATION,
    NORM_TOLERANCE,
    CheckedContender,
    Gradients,
    Work,
    first_elements,
    limit,
    torch_function,
)


def prepare(row: TorchRow) -> Work:
    """Return the contenders: fastclip's function of `torch.nn.utils`, and PyTorch's own."""
    torch: Any = importlib.import_module("torch")
    gradients = Gradients(row)
    is_norm = row.operation == "clip-grad-norm"
    name = row.operation.replace("-", "_") + "_"
    # The norm is halved, or half of the elements are beyond the bound.
    bound = 0.5 * gradients.norm if is_norm else 0.6745 * DEVIATION

    def contender(contender_name: str, function: Callable[..., Any]) -> CheckedContender:
        parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in row.shapes]
        for parameter, gradient in zip(parameters, gradients.tensors, strict=True):
            parameter.grad = gradient

        def check(result: Any) -> None:
            start = gradients.start
            expected = 0.5 * start if is_norm else np.clip(start, -bound, bound)
            check_close(made, first_elements(gradients.arrays[0]), expected, NORM_TOLERANCE)
            if is_norm:
                check_close(made, float(result), gradients.norm, NORM_TOLERANCE)

        label = f"{contender_name}: {name}"
        made = CheckedContender(
            contender_name, label, lambda: function(parameters, bound), gradients.refresh, check=check
        )
        return made

    return Work(
        contenders={
            "fastclip": lambda: contender(
                "fastclip", getattr(importlib.import_module("fastclip.torch"), name)
            ),
            "torch": lambda: contender("torch", torch_function(name)),
        },
        limit=limit(row, gradients.arrays, refreshed=True),
    )
