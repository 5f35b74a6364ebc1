"""Row that adds the gradients of a micro-batch to sums, and computes the norm of the sums."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import fastclip
from fastclip.cli.bench.cliffs.cliff import check_close
from fastclip.cli.bench.inputs.arrays import sum_of_squares
from fastclip.cli.bench.pytorch.benchmark_rows import TorchRow
from fastclip.cli.bench.pytorch.work import (
    NORM_TOLERANCE,
    CheckedContender,
    Gradients,
    Work,
    first_elements,
    limit,
    parameter_tensors,
    torch_function,
)


def prepare(row: TorchRow) -> Work:
    """Return the contenders: `fastclip.accumulate`, and PyTorch's addition followed by its norm."""
    torch: Any = importlib.import_module("torch")
    gradients = Gradients(row)
    total_norm = torch_function("get_total_norm")

    def add_and_measure(sums: list[Any]) -> Any:
        torch._foreach_add_(sums, gradients.tensors)
        return total_norm(sums)

    def contender(name: str, label: str, accumulate: Callable[[list[Any]], Any]) -> CheckedContender:
        sums = parameter_tensors(row)
        before = first_elements(sums[0].numpy())

        def check(result: Any) -> None:
            check_close(made, first_elements(sums[0].numpy()), before + gradients.start)
            norm = math.sqrt(sum(sum_of_squares(total.numpy()) for total in sums))
            check_close(made, float(result), norm, NORM_TOLERANCE)

        made = CheckedContender(name, label, lambda: accumulate(sums), check=check)
        return made

    return Work(
        contenders={
            "fastclip": lambda: contender(
                "fastclip", "fastclip.accumulate", lambda sums: fastclip.accumulate(sums, gradients.tensors)
            ),
            "torch": lambda: contender("torch", "_foreach_add_; get_total_norm", add_and_measure),
        },
        limit=limit(row, gradients.arrays, refreshed=False),
    )
