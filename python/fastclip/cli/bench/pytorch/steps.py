"""Rows that make a step of an optimizer, which clips the gradients to half of their norm first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastclip.cli.bench.cliffs.cliff import check_close
from fastclip.cli.bench.pytorch.benchmark_rows import TorchRow
from fastclip.cli.bench.pytorch.work import (
    CheckedContender,
    Gradients,
    Work,
    first_elements,
    limit,
    parameter_tensors,
    torch_function,
)
from fastclip.cli.bench.suites.peer_libraries import deepspeed_cpu_adam
from fastclip.cli.bench.training.optimizers import (
    ADAMW,
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    MOMENTUM_RULE,
    WEIGHT_DECAY,
)

_ADAMW_OPTIONS = {"lr": LEARNING_RATE, "betas": (BETA1, BETA2), "eps": EPSILON, "weight_decay": WEIGHT_DECAY}
_SGD_OPTIONS = {"lr": LEARNING_RATE, "momentum": MOMENTUM}


def prepare(row: TorchRow) -> Work:
    """Return the contenders: fastclip's optimizer, and others after PyTorch's clipping."""
    steps = _Steps(row)
    contenders = {"fastclip": steps.fastclip}
    if row.operation == "adamw-bf16-moments":
        contenders["fastclip-f32-moments"] = steps.fastclip_f32_moments
    else:
        contenders["torch"] = steps.torch
        if row.operation == "adamw":
            contenders["deepspeed"] = steps.deepspeed
    return Work(contenders, limit(row, steps.gradients.arrays, refreshed=True))


class _Steps:
    """The gradients of a row, and its contenders, each with parameters and slots of its own."""

    def __init__(self, row: TorchRow) -> None:
        self.row = row
        self.gradients = Gradients(row)
        self.bound = 0.5 * self.gradients.norm if row.clipped else None
        self.is_sgd = row.operation == "sgd"
        self.options: dict[str, Any] = _SGD_OPTIONS if self.is_sgd else _ADAMW_OPTIONS
        self.class_name = "SGD" if self.is_sgd else "AdamW"

    def fastclip(self) -> CheckedContender:
        options: dict[str, Any] = {} if self.bound is None else {"max_norm": self.bound}
        if self.row.operation == "adamw-bf16-moments":
            options["state_dtype"] = importlib.import_module("torch").bfloat16
        return self._of_fastclip("fastclip", options)

    def fastclip_f32_moments(self) -> CheckedContender:
        return self._of_fastclip("fastclip-f32-moments", {"max_norm": self.bound})

    def _of_fastclip(self, name: str, options: dict[str, Any]) -> CheckedContender:
        kind = getattr(importlib.import_module("fastclip.torch"), self.class_name)
        label = f"{self.class_name}({', '.join(f'{option}=' for option in options)})"
        return self._contender(name, label, lambda parameters: kind(parameters, **self.options, **options))

    def torch(self) -> CheckedContender:
        kind = getattr(importlib.import_module("torch").optim, self.class_name)
        label = f"{self.class_name}(fused=True)"
        return self._contender(
            "torch", label, lambda parameters: kind(parameters, fused=True, **self.options), clips_before=True
        )

    def deepspeed(self) -> CheckedContender:
        return self._contender(
            "deepspeed",
            "DeepSpeedCPUAdam",
            lambda parameters: deepspeed_cpu_adam(parameters, **self.options),
            clips_before=True,
        )

    def _contender(
        self, name: str, label: str, make: Callable[[list[Any]], Any], *, clips_before: bool = False
    ) -> CheckedContender:
        parameters = [tensor.requires_grad_() for tensor in parameter_tensors(self.row)]
        for parameter, gradient in zip(parameters, self.gradients.tensors, strict=True):
            parameter.grad = gradient
        optimizer = make(parameters)
        bound, clip = self.bound, torch_function("clip_grad_norm_")
        before = first_elements(parameters[0].detach().numpy())

        def clip_and_step() -> None:
            clip(parameters, bound)
            optimizer.step()

        def check(result: Any) -> None:
            slot = "momentum_buffer" if self.is_sgd else "exp_avg"
            after = first_elements(parameters[0].detach().numpy())
            moment = first_elements(optimizer.state[parameters[0]][slot].float().numpy())
            self._check(made, before, after, moment)

        clips = clips_before and bound is not None
        made = CheckedContender(
            name,
            f"clip_grad_norm_; {label}" if clips else label,
            clip_and_step if clips else optimizer.step,
            self.gradients.refresh,
            check=check,
        )
        return made

    def _check(self, contender: CheckedContender, before: Any, after: Any, moment: Any) -> None:
        """Raise AssertionError if the first step was wrong, given elements of a parameter and its slot."""
        gradient = self.gradients.start * (0.5 if self.row.clipped else 1.0)
        # Adam's first step is nearly proportional to the sign of the gradient; for tiny ones epsilon matters,
        # whose position in the formula differs from that of the reference.
        elements = np.flatnonzero(np.abs(gradient) > 0.01 * np.max(np.abs(gradient)))
        rule = MOMENTUM_RULE if self.is_sgd else ADAMW
        expected, expected_moment = rule.first_step(before[elements], gradient[elements])
        change = after[elements] - before[elements]
        check_close(contender, change, expected - before[elements], rtol=0.02)
        check_close(contender, moment[elements], expected_moment, rtol=0.02)
