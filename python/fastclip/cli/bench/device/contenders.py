"""Contenders of the benchmark on a graphics processor: fastclip, torch with CUDA, and the limit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fastclip
from fastclip import _core, gpu, train
from fastclip.cli.bench.device.benchmark_rows import DeviceWorkload, check_clipped
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Peer
from fastclip.cli.bench.training.optimizers import ADAMW, BETA1, BETA2, EPSILON, LEARNING_RATE, WEIGHT_DECAY

PEERS = {"torch": Peer("torch with CUDA: clip_grad_norm_(foreach=True), AdamW(fused=True)", ("torch",))}


def contender(name: str, work: DeviceWorkload) -> Contender | None:
    """Return the contender of this name; None if it does not support the row."""
    if name == "torch":
        return _torch(work)
    operation = work.row.operation
    if operation == "upload":
        gradient, array = work.gradients[0], work.host[0]
        return _timed(work, "copy_from", lambda: gradient.copy_from(array))
    if operation == "download":
        gradient = work.gradients[0]
        return _timed(work, "numpy", gradient.numpy)
    if operation == "clip":
        return _timed(
            work,
            "clip_by_global_norm(out=)",
            lambda: fastclip.clip_by_global_norm(work.gradients, work.bound, out=work.gradients),
        )
    variables = [gpu.asarray(variable, work.device) for variable in work.variables()]
    optimizer = train.AdamWOptimizer(
        LEARNING_RATE,
        beta1=BETA1,
        beta2=BETA2,
        epsilon=EPSILON,
        weight_decay=WEIGHT_DECAY,
        global_clipnorm=work.bound,
    )
    pairs = list(zip(work.gradients, variables, strict=True))
    made = _timed(work, "AdamWOptimizer(global_clipnorm=)", lambda: optimizer.apply_gradients(pairs))
    made.check = lambda: _check_step(work, variables[0].numpy())
    return made


class DeviceContender(Contender):
    """A contender whose work on the device has a check of its own.

    Attributes
    ----------
    check : callable
        Raises if the result of the first call is wrong.
    """

    check: Callable[[], None] = staticmethod(lambda: None)


def _timed(work: DeviceWorkload, label: str, submit: Callable[[], object]) -> DeviceContender:
    """Return a contender that submits its work and waits for it, timed by the clock of the row."""

    def call() -> object:
        result = submit()
        gpu.synchronize(work.device)
        return result

    if work.row.clock == "host":
        return DeviceContender("fastclip", label, call, work.refresh)
    return DeviceContender(
        "fastclip", label, call, work.refresh, device_seconds=lambda: _device_seconds(work, call)
    )


def _device_seconds(work: DeviceWorkload, call: Callable[[], object]) -> float:
    """Call, and return the seconds that the submission took by the clock of the device."""
    index = work.device._index
    if not _core.gpu_enable_timing(index, True):
        raise RuntimeError(f"{work.device.name} has no timestamps")
    try:
        call()
        return _core.gpu_seconds(index)
    finally:
        _core.gpu_enable_timing(index, False)


def check_result(made: Contender, work: DeviceWorkload) -> None:
    """Raise ValueError if the result of the first call is wrong."""
    operation = work.row.operation
    if made.name == "torch":
        return
    if operation == "clip":
        norm: Any = made.result[1]  # type: ignore[index]
        if not abs(float(norm) - 2 * work.bound) <= 1e-5 * work.bound:
            raise ValueError(f"the norm is {float(norm)}, and {2 * work.bound} in float64")
        check_clipped(work)
    elif operation in ("upload", "download"):
        copied = work.gradients[0].numpy()
        if copied.tobytes() != work.host[0].tobytes():
            raise ValueError("the elements on the device are not those of the host")
    elif isinstance(made, DeviceContender):
        made.check()


def _check_step(work: DeviceWorkload, variable: Array) -> None:
    before = work.variables()[0].astype(np.float64).reshape(-1)
    gradient = 0.5 * work.host[0].astype(np.float64).reshape(-1)
    # Adam's first step is nearly proportional to the sign of the gradient; for tiny ones epsilon matters.
    elements = np.flatnonzero(np.abs(gradient) > 0.01 * np.max(np.abs(gradient)))
    expected, _ = ADAMW.first_step(before[elements], gradient[elements])
    np.testing.assert_allclose(variable.reshape(-1)[elements], expected, rtol=1e-4, atol=1e-6)


def _torch(work: DeviceWorkload) -> Contender | None:
    """Return torch on an NVIDIA card, timed by the clock of the host."""
    torch: Any = importlib.import_module("torch")
    if (
        not torch.cuda.is_available()
        or work.row.clock != "host"
        or work.row.operation not in ("clip", "adamw")
    ):
        return None
    parameters: list[Any] = []
    for variable, gradient in zip(work.variables(), work.host, strict=True):
        parameter = torch.nn.Parameter(torch.from_numpy(variable).cuda())
        parameter.grad = torch.from_numpy(gradient.astype(np.float32)).cuda()
        parameters.append(parameter)
    optimizer = torch.optim.AdamW(
        parameters, LEARNING_RATE, (BETA1, BETA2), EPSILON, WEIGHT_DECAY, fused=True
    )
    bound = [work.norm]

    def call() -> None:
        bound[0] *= 0.5
        torch.nn.utils.clip_grad_norm_(parameters, bound[0], foreach=True)
        if work.row.operation == "adamw":
            optimizer.step()
        torch.cuda.synchronize()

    return Contender("torch", PEERS["torch"].description, call)


def limit(work: DeviceWorkload) -> Contender:
    """Return the contender that copies as many bytes as the work moves, in the faster of two ways."""
    row = work.row
    if row.operation in ("upload", "download"):
        source = np.ones(row.nbytes, np.uint8)
        target = np.ones_like(source)
        return Contender("limit", "a copy in the memory of the host", lambda: np.copyto(target, source))
    # A copy reads and writes what it copies.
    copies = _core.DeviceCopies(work.device._index, row.moved_nbytes // 2)

    def submit(by_kernel: bool) -> None:
        copies.copy(by_kernel)
        gpu.synchronize(work.device)

    def seconds(by_kernel: bool) -> float:
        return _device_seconds(work, lambda: submit(by_kernel))

    by_kernel = False
    if row.clock == "device":
        by_kernel = min(seconds(True) for _ in range(3)) < min(seconds(False) for _ in range(3))
    label = "a copy by a kernel" if by_kernel else "a copy by the driver"
    return Contender(
        "limit",
        label,
        lambda: submit(by_kernel),
        device_seconds=(lambda: seconds(by_kernel)) if row.clock == "device" else None,
    )
