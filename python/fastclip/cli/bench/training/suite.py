"""Suite of ``fastclip bench --train``: rows that clip gradients and update variables."""

from __future__ import annotations

from fastclip.cli.bench.suites import targets
from fastclip.cli.bench.suites.suite import Suite
from fastclip.cli.bench.training import benchmark_rows, limit, peers

TRAINING = Suite(
    cases=benchmark_rows.CASES,
    process_cases=(),
    quick=("resnet50/adamw/f32", "resnet50/adagrad/f32", "many/*", "mlp/*"),
    fastclip_contenders=peers.FASTCLIP_CONTENDERS,
    peers=peers.PEERS,
    rows=benchmark_rows.rows,
    check_memory=benchmark_rows.check_memory,
    workload=benchmark_rows.StepWorkload,
    contender=peers.contender,
    check_result=peers.check_result,
    limit=limit.limit,
    targets=lambda: targets.TRAINING_TARGETS,
)
