"""Suite of ``fastclip bench --torch``: the functions and optimizers of fastclip.torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import fastclip
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.pytorch import accumulation, clip_functions, small_transformer, steps
from fastclip.cli.bench.pytorch.benchmark_rows import CASES, TorchRow, check_memory, rows
from fastclip.cli.bench.pytorch.work import CheckedContender, Work
from fastclip.cli.bench.suites import targets
from fastclip.cli.bench.suites.peer_libraries import Peer
from fastclip.cli.bench.suites.suite import Suite
from fastclip.cli.errors import CommandError

PEERS = {
    "torch": Peer("torch's own clip functions, and its optimizers with fused=True", ("torch",)),
    "deepspeed": Peer("torch's own clip_grad_norm_, and DeepSpeedCPUAdam", ("torch", "deepspeed")),
}
FASTCLIP_CONTENDERS = ("fastclip", "fastclip-f32-moments", "fastclip-without-hooks")
_PREPARE: dict[str, Callable[[TorchRow], Work]] = {
    "clip-grad-norm": clip_functions.prepare,
    "clip-grad-value": clip_functions.prepare,
    "accumulate": accumulation.prepare,
    "training-step": small_transformer.prepare,
}  # other operations: steps


def check_torch() -> None:
    """Raise CommandError if PyTorch is not installed, or fastclip.torch does not support it."""
    if importlib.util.find_spec("torch") is None:
        raise CommandError("--torch: torch is not installed: pip install 'fastclip-grad[torch]'")
    try:
        importlib.import_module("fastclip.torch")
    except ImportError as error:
        raise CommandError(f"--torch: {error}") from None


def _work(row: TorchRow) -> Work:
    # PyTorch takes part also where it is not among the peers.
    importlib.import_module("torch").set_num_threads(fastclip.get_num_threads())
    return _PREPARE.get(row.operation, steps.prepare)(row)


def _contender(name: str, work: Work) -> Contender | None:
    make = work.contenders.get(name)
    return None if make is None else make()


def _check_result(contender: Contender, work: Work) -> None:
    assert isinstance(contender, CheckedContender)
    contender.check(contender.result)


PYTORCH: Suite[TorchRow, Work] = Suite(
    cases=CASES,
    process_cases=(),
    quick=("resnet50/*", "many/*", "512/*", "transformer/*"),
    fastclip_contenders=FASTCLIP_CONTENDERS,
    peers=PEERS,
    rows=rows,
    check_memory=check_memory,
    workload=_work,
    contender=_contender,
    check_result=_check_result,
    limit=lambda work: work.limit,
    targets=lambda: targets.TORCH_TARGETS,
)
