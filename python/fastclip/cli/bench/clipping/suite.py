"""Suite of ``fastclip bench``: rows that clip gradients."""

from __future__ import annotations

from fastclip.cli.bench.clipping import benchmark_rows, limit, peers
from fastclip.cli.bench.suites import targets
from fastclip.cli.bench.suites.suite import Suite

CLIPPING = Suite(
    cases=benchmark_rows.CASES,
    process_cases=("memory", "import"),
    # Each of these rows takes a few seconds at most.
    quick=(
        "resnet50/f32/*/clipped",
        "many/f32/in-place/clipped",
        "layers/*",
        "many-torch/*",
        "mlp/f32/in-place/*",
        "clip-by-value/f32/in-place/*",
    ),
    fastclip_contenders=("fastclip", "fastclip-list"),
    peers=peers.PEERS,
    rows=benchmark_rows.rows,
    check_memory=lambda row, contenders: None,
    workload=benchmark_rows.Workload,
    contender=peers.contender,
    check_result=peers.check_result,
    limit=limit.limit,
    targets=lambda: targets.TARGETS,
)
