"""The contenders at optimizer steps: fastclip, and what people use today.

Each function below takes the workload of a row and returns what is timed, or None where
it has nothing to compare. torch is imported only here, and only when asked for.
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
from fastclip.cli.bench.suites.peer_libraries import Catalogue, torch_tensor
from fastclip.cli.bench.training.optimizers import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
)
from fastclip.cli.bench.training.workload import StepWorkload

# fastclip itself; in rows of narrower gradients also with float32 ones, to compare with.
OWN = ("fastclip", "fastclip-f32")
PEERS: Catalogue = {
    "numpy": ("NumPy as people write it", ()),
    "torch": ("torch, fused", ("torch",)),
    "torch-foreach": ("torch, foreach", ("torch",)),
}


@dataclass
class StepContender(Contender):
    """A contender that keeps variables and slots of its own.

    Attributes
    ----------
    state : callable
        Returns the first variable, and the first of its slots (None if there is none).
    """

    state: Callable[[], tuple[Any, Any]] = lambda: (None, None)


def contender(name: str, work: StepWorkload) -> StepContender | None:
    """Return fastclip or a peer at the work of a row; None if it has nothing to compare."""
    return _CONTENDERS[name](name, work)


def check_result(contender: Contender, work: StepWorkload) -> None:
    """Raise if the contender's first step was not what the row is about."""
    assert isinstance(contender, StepContender)
    step = work.first_step()
    variable, slot = contender.state()
    moved = np.asarray(variable).reshape(-1)[step.elements] - step.before
    _check_close(f"{contender.label} moved the variable by", moved, step.after - step.before)
    if step.slot is not None:
        found = np.asarray(slot).reshape(-1)[step.elements]
        _check_close(f"{contender.label} made the slot", found, step.slot)


def _check_close(what: str, found: Array, expected: Array) -> None:
    if not np.allclose(found, expected, rtol=0.02, atol=0.01 * np.max(np.abs(expected))):
        raise AssertionError(f"{what} {found[:4]}, expected {expected[:4]}")


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
    narrow = work.row.dtype != "f32"  # sums of narrow gradients lose digits, or overflow: nobody keeps that
    m = [np.zeros_like(w) for w in variables]
    v = [np.zeros_like(w) for w in variables] if adamw else []
    steps = 0

    def clipped() -> list[Array]:
        wide = [g.astype(np.float32) for g in gradients] if narrow else gradients
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in wide))
        factor = bound / max(norm, bound)
        return [g * factor for g in wide]

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
    if not work.row.clipped:
        return None
    torch = importlib.import_module("torch")
    adamw = work.row.rule.name == "adamw"
    variables, bound = work.variables(), work.bound
    parameters = [torch.from_numpy(w).requires_grad_() for w in variables]
    for parameter, gradient in zip(parameters, work.gradients, strict=True):
        if work.row.dtype != "f32" and hasattr(parameter, "grad_dtype"):
            parameter.grad_dtype = None  # let it have any; the step then says whether it takes it
        parameter.grad = torch_tensor(gradient)
    kind = "foreach" if name == "torch-foreach" else "fused"
    clip = torch.nn.utils.clip_grad_norm_
    clip_kind = {"foreach": True} if kind == "foreach" else {}
    if adamw:
        optimizer = torch.optim.AdamW(
            parameters, LEARNING_RATE, (BETA1, BETA2), EPSILON, weight_decay=WEIGHT_DECAY, **{kind: True}
        )
    else:
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, **{kind: True})

    def call() -> None:
        clip(parameters, bound, **clip_kind)
        optimizer.step()

    def state() -> tuple[Any, Any]:
        slot = optimizer.state[parameters[0]]["exp_avg" if adamw else "momentum_buffer"]
        return variables[0], slot.detach().numpy()

    label = f"clip_grad_norm_; {type(optimizer).__name__}({kind}=True)"
    return StepContender(name, label, call, work.refresh, state=state)


_CONTENDERS: dict[str, Callable[[str, StepWorkload], StepContender | None]] = {
    "fastclip": _fastclip,
    "fastclip-f32": _fastclip_f32,
    "numpy": _numpy,
    "torch": _torch,
    "torch-foreach": _torch,
}
