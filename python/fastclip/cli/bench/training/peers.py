"""Contenders of the training benchmark: fastclip, NumPy and torch.

For each contender, a function takes the workload of a row and returns the contender, or None if it does
not support the row. torch is imported only if it is selected.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Peer, Peers, deepspeed_cpu_adam, torch_tensor
from fastclip.cli.bench.training.benchmark_rows import StepWorkload
from fastclip.cli.bench.training.optimizers import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
)

# "fastclip-f32" takes part in rows of float16 and bfloat16 gradients, with float32 gradients instead.
FASTCLIP_CONTENDERS = ("fastclip", "fastclip-f32")
PEERS: Peers = {
    "numpy": Peer("NumPy, with straightforward expressions"),
    "torch": Peer("torch, with fused=True", ("torch",)),
    "torch-foreach": Peer("torch, with foreach=True", ("torch",)),
    "deepspeed": Peer("torch's clip_grad_norm_, and DeepSpeedCPUAdam", ("torch", "deepspeed")),
}


@dataclass
class StepContender(Contender):
    """Contender with its own variables and slots.

    Attributes
    ----------
    state : callable
        Returns the first variable and its first slot, which is None for an optimizer without slots.
    """

    state: Callable[[], tuple[Any, Any]] = lambda: (None, None)


def contender(name: str, work: StepWorkload) -> StepContender | None:
    """Return the contender `name` for a workload; None if it does not support the row."""
    return _CONTENDERS[name](name, work)


def check_result(contender: Contender, work: StepWorkload) -> None:
    """Raise AssertionError if the contender's first step was wrong. It must have made one step."""
    assert isinstance(contender, StepContender)
    step = work.first_step()
    variable, slot = contender.state()
    change = np.asarray(variable).reshape(-1)[step.elements] - step.before
    _check_close(f"{contender.label} moved the variable by", change, step.after - step.before)
    if step.slot is not None:
        actual = np.asarray(slot).reshape(-1)[step.elements]
        _check_close(f"{contender.label} made the slot", actual, step.slot)


def _check_close(what: str, actual: Array, expected: Array) -> None:
    if not np.allclose(actual, expected, rtol=0.02, atol=0.01 * np.max(np.abs(expected))):
        raise AssertionError(f"{what} {actual[:4]}, expected {expected[:4]}")


def _fastclip(name: str, work: StepWorkload) -> StepContender:
    gradients, variables = work.gradients, work.variables()
    step = np.zeros((), np.int64)
    rule = work.row.rule
    clip = {"global_clipnorm": work.bound} if work.row.clipped else {}
    optimizer = rule.optimizer(step, clip)

    def call() -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True), global_step=step)

    def state() -> tuple[Array, Array | None]:
        return variables[0], optimizer.get_slot(variables[0], rule.slots[0]) if rule.slots else None

    label = type(optimizer).__name__ + ("(global_clipnorm=)" if clip else "")
    return StepContender(name, label, call, work.refresh, state=state)


def _fastclip_f32(name: str, work: StepWorkload) -> StepContender | None:
    if work.row.dtype == "f32":
        return None
    return _fastclip(name, StepWorkload(dataclasses.replace(work.row, dtype="f32")))


def _numpy(name: str, work: StepWorkload) -> StepContender | None:
    if not work.row.clipped:
        return None
    adamw = work.row.rule.name == "adamw"
    gradients, variables, bound = work.gradients, work.variables(), work.bound
    # Sums in float16 or bfloat16 lose digits or overflow, so such gradients are converted.
    convert = work.row.dtype != "f32"
    m = [np.zeros_like(w) for w in variables]
    v = [np.zeros_like(w) for w in variables] if adamw else []
    steps = 0

    def clipped() -> list[Array]:
        converted = [g.astype(np.float32) for g in gradients] if convert else gradients
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in converted))
        factor = bound / max(norm, bound)
        return [g * factor for g in converted]

    def call_adamw() -> None:
        nonlocal steps
        steps += 1
        for i, g in enumerate(clipped()):
            m[i] = BETA1 * m[i] + (1 - BETA1) * g
            v[i] = BETA2 * v[i] + (1 - BETA2) * np.square(g)
            m_hat = m[i] / (1 - BETA1**steps)
            v_hat = v[i] / (1 - BETA2**steps)
            variables[i] -= LEARNING_RATE * (m_hat / (np.sqrt(v_hat) + EPSILON) + WEIGHT_DECAY * variables[i])

    def call_momentum() -> None:
        for i, g in enumerate(clipped()):
            m[i] = MOMENTUM * m[i] + g
            variables[i] -= LEARNING_RATE * m[i]

    return StepContender(
        name,
        "g * (c / max(norm, c)); AdamW" if adamw else "g * (c / max(norm, c)); momentum",
        call_adamw if adamw else call_momentum,
        work.refresh,
        state=lambda: (variables[0], m[0]),
    )


def _torch(name: str, work: StepWorkload) -> StepContender | None:
    adamw = work.row.rule.name == "adamw"
    if not work.row.clipped or (name == "deepspeed" and not adamw):
        return None
    torch = importlib.import_module("torch")
    variables, bound = work.variables(), work.bound
    parameters = [torch.from_numpy(w).requires_grad_() for w in variables]
    for parameter, gradient in zip(parameters, work.gradients, strict=True):
        if work.row.dtype != "f32" and hasattr(parameter, "grad_dtype"):
            parameter.grad_dtype = None  # allows any dtype; optimizer.step() raises if it does not support it
        parameter.grad = torch_tensor(gradient)
    options = {"deepspeed": {}, "torch-foreach": {"foreach": True}}.get(name, {"fused": True})
    clip = torch.nn.utils.clip_grad_norm_
    clip_options = options if name == "torch-foreach" else {}
    if adamw:
        kind = deepspeed_cpu_adam if name == "deepspeed" else torch.optim.AdamW
        optimizer = kind(
            parameters, LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=WEIGHT_DECAY, **options
        )
    else:
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, **options)

    def call() -> None:
        clip(parameters, bound, **clip_options)
        optimizer.step()

    def state() -> tuple[Any, Any]:
        slot = optimizer.state[parameters[0]]["exp_avg" if adamw else "momentum_buffer"]
        return variables[0], slot.detach().numpy()

    arguments = ", ".join(f"{option}={value}" for option, value in options.items())
    label = f"clip_grad_norm_; {type(optimizer).__name__}({arguments})"
    return StepContender(name, label, call, work.refresh, state=state)


_CONTENDERS: dict[str, Callable[[str, StepWorkload], StepContender | None]] = {
    "fastclip": _fastclip,
    "fastclip-f32": _fastclip_f32,
    "numpy": _numpy,
    "torch": _torch,
    "torch-foreach": _torch,
    "deepspeed": _torch,
}
