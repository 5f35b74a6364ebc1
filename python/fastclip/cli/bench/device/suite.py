"""Suite of ``fastclip bench --gpu``: rows that work on arrays on a graphics processor."""

from __future__ import annotations

from fastclip.cli.bench.device import benchmark_rows, contenders
from fastclip.cli.bench.suites.suite import Suite

DEVICE = Suite(
    cases=benchmark_rows.CASES,
    process_cases=(),
    quick=("resnet50/*", "many/*", "25.6M/*"),
    fastclip_contenders=("fastclip",),
    peers=contenders.PEERS,
    rows=benchmark_rows.rows,
    check_memory=lambda row, count: None,
    workload=benchmark_rows.DeviceWorkload,
    contender=contenders.contender,
    check_result=contenders.check_result,
    limit=contenders.limit,
    targets=lambda: (),
)
