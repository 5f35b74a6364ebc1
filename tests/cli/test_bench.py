"""``fastclip bench`` with small shapes: what it measures and reports, independent of the measured times."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import fastclip
from fastclip.cli import main
from fastclip.cli.bench.clipping import benchmark_rows, limit, peers
from fastclip.cli.bench.inputs.shapes import SHAPES, Shapes, gpt2, resnet50
from fastclip.cli.bench.measuring import timing
from fastclip.cli.bench.measuring.import_time import ImportTime
from fastclip.cli.bench.measuring.machine import describe_machine
from fastclip.cli.bench.measuring.other_load import OtherLoad
from fastclip.cli.bench.measuring.peak_memory import PeakMemory
from fastclip.cli.bench.reporting.results import Results
from fastclip.cli.bench.reporting.table import print_outcomes, print_rows
from fastclip.cli.bench.reporting.timed_row import TimedRow
from fastclip.cli.bench.suites import targets
from support.fresh_python import run as run_in_fresh_python

SMALL = ["bench", "--size", "small", "--rounds", "2", "--peers", "numpy,expert"]


def elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def test_models_have_their_published_sizes() -> None:
    assert (len(gpt2()), elements(gpt2())) == (148, 124_439_808)
    assert (len(resnet50()), elements(resnet50())) == (161, 25_557_032)
    assert SHAPES["full"]["many"]() == ((512,),) * 2000
    mlp = SHAPES["full"]["mlp"]()
    assert (len(mlp), round(elements(mlp), -4)) == (6, 100_000)


def test_small_models_have_the_structure_of_the_full_ones() -> None:
    assert SHAPES["small"].keys() == SHAPES["full"].keys()
    for case in ("gpt2", "resnet50", "mlp"):
        small, full = SHAPES["small"][case](), SHAPES["full"][case]()
        assert [len(shape) for shape in small] == [len(shape) for shape in full]
        assert elements(small) < 50_000


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_turn_orders_are_balanced_in_positions_and_predecessors(count: int) -> None:
    orders = [timing.turn_order(count, turn) for turn in range(2 * count)]
    for order in orders:
        assert sorted(order) == list(range(count))
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    pairs = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(pairs) == count * (count - 1)
    assert set(pairs.values()) <= {2}


def test_timing_has_median_minimum_and_quartiles_of_its_rounds() -> None:
    summary = timing.Timing([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (summary.median, summary.minimum, summary.quartiles) == (3.0, 1.0, (2.0, 4.0))
    assert timing.Timing([2.0]).quartiles == (2.0, 2.0)


def test_measure_refreshes_before_each_call_and_keeps_one_result() -> None:
    log: list[str] = []

    def contender(name: str) -> timing.Contender:
        return timing.Contender(
            name,
            name,
            call=lambda: log.append(f"{name} call") or name,  # type: ignore[func-returns-value]
            refresh=lambda: log.append(f"{name} refresh"),
        )

    both = [contender("a"), contender("b")]
    rounds: list[int] = []
    timings = timing.measure(both, seconds=0, rounds=3, pause=0, on_round=rounds.append)
    assert rounds == [1, 2, 3]
    assert {name: len(timed.rounds) for name, timed in timings.items()} == {"a": 3, "b": 3}
    assert [both[0].result, both[1].result] == ["a", "b"]
    for refresh, call in zip(log[::2], log[1::2], strict=True):
        assert refresh.endswith("refresh")
        assert call == refresh.replace("refresh", "call")


def test_measure_runs_for_the_given_time_within_its_limits_of_rounds() -> None:
    contender = timing.Contender("a", "a", call=lambda: None)
    assert len(timing.measure([contender], seconds=0, min_rounds=4, pause=0)["a"].rounds) == 4
    assert len(timing.measure([contender], seconds=60, max_rounds=6, pause=0)["a"].rounds) == 6


@pytest.mark.parametrize("row", benchmark_rows.rows("small", benchmark_rows.DTYPES), ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["fastclip", "numpy", "expert"])
def test_each_contender_clips_the_arrays_of_the_row(name: str, row: benchmark_rows.Row) -> None:
    work = benchmark_rows.Workload(row)
    contender = peers.contender(name, work)
    if contender is None:
        assert name == "expert"
        return
    for _ in range(2):  # `refresh` restores the gradients for the second call
        contender.refresh()
        contender.result = contender.call()
        peers.check_result(contender, work)


def test_wrong_result_is_detected() -> None:
    (row,) = (row for row in benchmark_rows.rows("small") if row.name == "mlp/f32/out-of-place/clipped")
    work = benchmark_rows.Workload(row)
    idle = timing.Contender("idle", "does nothing", call=lambda: work.gradients)
    idle.result = idle.call()
    with pytest.raises(AssertionError, match="does nothing"):
        peers.check_result(idle, work)


@pytest.mark.parametrize("row", benchmark_rows.rows("small", ["f32", "f16"]), ids=lambda row: row.name)
def test_limit_makes_the_memory_passes_of_the_row(
    row: benchmark_rows.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []

    def moves(name: str, result: str | None) -> Any:
        def move(source: Any, *others: Any) -> None:
            passes.append(name)
            assert abs(source.nbytes - row.nbytes) < 4

        return move

    for name in ("read", "scale", "copy"):
        monkeypatch.setattr(fastclip._core, f"bandwidth_{name}", moves(name, None))
    contender = limit.limit(benchmark_rows.Workload(row))
    contender.refresh()
    contender.call()
    assert " + ".join(passes) == contender.label == limit.limit_passes(row)


def test_limit_runs_on_the_arrays_of_every_row() -> None:
    for row in benchmark_rows.rows("small"):
        contender = limit.limit(benchmark_rows.Workload(row))
        contender.refresh()
        contender.call()


def test_all_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [row.name for row in benchmark_rows.rows("small")]
    assert [row["row"] for row in report["rows"]][: len(names)] == names
    assert report["machine"]["cpu"]
    assert report["machine"]["versions"]["numpy"] == np.__version__
    assert report["fastclip"]["version"] == fastclip.config()["version"]
    timed = [row for row in report["rows"] if row["kind"] == "time"]
    for row in timed:
        assert row["absent"] == {}
        assert {"fastclip", "limit", "numpy"} <= row["contenders"].keys()
        own = row["contenders"]["fastclip"]
        assert 0 < own["min_s"] <= own["first_quartile_s"] <= own["median_s"] <= own["third_quartile_s"]
        for name, ratio in row["ratios"].items():
            assert ratio == pytest.approx(own["median_s"] / row["contenders"][name]["median_s"])
    kinds = {row["kind"] for row in report["rows"]}
    assert kinds | {name for name in report["skipped"] if name == "memory"} == {"time", "memory", "import"}


def test_tables_plot_and_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, report = tmp_path / "plot.png", tmp_path / "report.json"
    command = [*SMALL, "--case", "mlp", "--case", "clip-by-*", "--plot", str(plot), "--json", str(report)]
    assert main(command) == 0
    text = capsys.readouterr().out
    for part in ("mlp f32 (6 tensors", "clip-by-norm f32", "in place", "out of place", "limit", "expert"):
        assert part in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(report.read_text())["rows"]) == 7


def test_cases_rows_and_dtypes_can_be_selected(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*options: str) -> list[str]:
        assert main(["bench", "--list", *options]) == 0
        return capsys.readouterr().out.split()

    assert len(listed()) == 24 + (importlib.util.find_spec("torch") is not None)
    assert listed("--case", "25.6M") == ["25.6M/f16/in-place/clipped", "25.6M/bf16/in-place/clipped"]
    assert listed("--case", "gpt2/*/in-place/clipped", "--case", "import") == [
        "gpt2/f32/in-place/clipped",
        "import",
    ]
    assert listed("--case", "many", "--dtype", "bf16") == [
        "many/bf16/in-place/clipped",
        "many/bf16/in-place/unclipped",
        "many/bf16/out-of-place/clipped",
        "many/bf16/out-of-place/unclipped",
    ]
    assert 3 <= len(listed("--quick")) <= 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "gpt3"], "gpt3"),
        (["--peers", "numpy,keras"], "keras"),
        (["--threads", "0"], "--threads"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "-1"], "--seconds"),
        (["--size", "small", "--check"], "--check"),
        (["--plot", "nowhere/plot.png"], "nowhere"),
        (["--json", "nowhere/report.json"], "nowhere"),
    ],
)
def test_invalid_options_exit_with_2_and_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_number_of_threads_is_restored_after_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    before = fastclip.get_num_threads()
    assert main([*SMALL, "--case", "mlp/f32/in-place/clipped", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["threads"] == 1
    assert fastclip.get_num_threads() == before


@pytest.fixture
def without_rich_and_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in ("rich", "matplotlib"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_rich_and_matplotlib")
def test_json_works_without_rich_and_matplotlib(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["--case", "mlp/f32/in-place/clipped"]
    assert main([*SMALL, *row]) == 2
    assert "fastclip-grad[cli]" in capsys.readouterr().err
    assert main([*SMALL, *row, "--json", "--plot", "plot.png"]) == 2
    assert "fastclip-grad[cli]" in capsys.readouterr().err
    assert main([*SMALL, *row, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


def test_each_target_names_an_existing_row_and_contender() -> None:
    rows = {row.name for row in benchmark_rows.rows("full")} | {"memory/f32/out-of-place", "import"}
    # This row is there only where torch is installed.
    rows.add("many-torch/f32/in-place/clipped")
    against = {*peers.PEERS, "fastclip-list", "limit", "its arrays", "import numpy"}
    for target in targets.TARGETS:
        assert target.row in rows
        assert target.against in against


def test_targets_are_met_missed_or_not_measured() -> None:
    first, second, third = targets.TARGETS[:3]
    outcomes = targets.compare(
        {(first.row, first.against): first.at_most, (second.row, second.against): second.at_most + 0.01}
    )
    assert [outcome.verdict for outcome in outcomes[:3]] == ["met", "missed", "not measured"]
    assert len(outcomes) == len(targets.TARGETS)
    assert outcomes[2].target == third


@pytest.mark.parametrize(("at_most", "code", "verdict"), [(1e9, 0, "met"), (0.0, 1, "missed")])
def test_check_exits_with_1_if_a_target_is_missed(
    at_most: float,
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SHAPES, "full", SHAPES["small"])
    row = "mlp/f32/in-place/clipped"
    goals = (targets.Target(row, "numpy", at_most), targets.Target("import", "import numpy", 0.3))
    monkeypatch.setattr(targets, "TARGETS", goals)
    command = ["bench", "--check", "--rounds", "1", "--peers", "numpy", "--case", row]
    assert main([*command, "--json"]) == code
    results = json.loads(capsys.readouterr().out)["targets"]
    assert [target["verdict"] for target in results] == [verdict, "not measured"]
    assert main(command) == code
    assert verdict in capsys.readouterr().out


def test_quick_check_allows_twice_the_ratios_and_ignores_rows_that_were_disturbed() -> None:
    first, second = benchmark_rows.rows("small")[:2]
    goals = [targets.Target(row.name, "numpy", 1.0) for row in (first, second)]
    goals.append(targets.Target("memory/f32/out-of-place", "its arrays", 16.0, "MiB"))

    def verdicts(ratio: float, other_cores: float, quick: bool) -> list[str]:
        times = {"fastclip": timing.Timing([ratio]), "numpy": timing.Timing([1.0])}
        labels = dict.fromkeys(times, "")
        results = Results(goals)
        results.rows = [
            TimedRow(first, times, labels, other_cores=other_cores),
            TimedRow(second, times, labels, other_cores=None),
        ]
        results.memory = PeakMemory(input_bytes=0, output_bytes=0, peak_bytes=17 << 20)
        return [outcome.verdict for outcome in results.outcomes(quick)]

    assert verdicts(1.9, 0.0, quick=True) == ["met", "met", "missed"]
    assert verdicts(1.9, 0.0, quick=False) == ["missed", "missed", "missed"]
    assert verdicts(2.1, 0.0, quick=True) == ["missed", "missed", "missed"]
    assert verdicts(2.1, 1.0, quick=True) == ["unclear", "missed", "missed"]
    assert verdicts(2.1, 1.0, quick=False) == ["missed", "missed", "missed"]


def test_only_the_memory_target_is_absolute() -> None:
    all_targets = [*targets.TARGETS, *targets.TRAINING_TARGETS, *targets.TORCH_TARGETS]
    assert {target.row for target in all_targets if target.unit != "x"} == {"memory/f32/out-of-place"}


@pytest.mark.parametrize("verdict", ["met", "missed", "unclear"])
@pytest.mark.parametrize("suite", ["TARGETS", "TRAINING_TARGETS", "TORCH_TARGETS"])
def test_names_of_targets_are_printed_whole(verdict: str, suite: str) -> None:
    at_most = 0.0 if verdict != "met" else 1e9
    all_targets = getattr(targets, suite)
    outcomes = [
        targets.Outcome(replace(target, at_most=at_most), 123.4, verdict == "unclear")
        for target in all_targets
    ]
    console = Console(record=True, width=80, file=io.StringIO())
    print_outcomes(console, outcomes)
    lines = console.export_text().splitlines()
    for target in all_targets:
        assert any(line.split()[:1] == [target.row] and target.against in line for line in lines), target
    assert sum(line.split()[-1:] == [verdict] for line in lines) == len(all_targets)

    print_outcomes(console, [targets.Outcome(target, None) for target in all_targets])
    text = " ".join(console.export_text().split())
    assert all(target.row in text for target in all_targets)


def test_failing_peer_is_omitted_and_its_error_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(work: benchmark_rows.Workload) -> None:
        raise TypeError("no such type here")

    monkeypatch.setitem(peers._CONTENDERS, ("numpy", "global-norm"), fail)
    row = ["--case", "mlp/f32/in-place/clipped"]
    assert main([*SMALL, *row]) == 0
    assert "no such type here" in capsys.readouterr().out
    monkeypatch.setitem(peers._CONTENDERS, ("fastclip", "global-norm"), fail)
    assert main([*SMALL, *row]) == 1
    assert "no such type here" in capsys.readouterr().err


def test_excess_memory_and_import_time_are_computed() -> None:
    memory = PeakMemory(input_bytes=100, output_bytes=100, peak_bytes=230)
    assert memory.excess_bytes == memory.to_dict()["excess_bytes"] == 30
    imports = ImportTime(fastclip=[0.3, 0.2, 0.9], numpy=[0.1, 0.1, 0.5])
    assert imports.difference == pytest.approx(0.2)
    assert imports.ratio == pytest.approx(2.0)


def test_ratio_is_that_of_medians_and_none_without_the_peer() -> None:
    row = benchmark_rows.rows("small")[0]
    timings = {"fastclip": timing.Timing([1.0, 3.0, 2.0]), "torch": timing.Timing([8.0, 9.0, 4.0])}
    timed_row = TimedRow(row, timings, {"fastclip": "", "torch": ""})
    assert timed_row.ratio("torch") == 0.25
    assert timed_row.ratio("jax") is None


def test_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["cores_usable"] >= 1
    assert "python" in machine["versions"]


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param("torch", marks=pytest.mark.interop("torch")),
        pytest.param("tf", marks=pytest.mark.interop("tensorflow")),
        pytest.param("jax", marks=pytest.mark.interop("jax", "optax")),
    ],
)
def test_frameworks_are_measured_with_every_dtype(peer: str) -> None:
    script = f"""
        from fastclip.cli import main
        types = [option for name in ("f32", "f16", "bf16") for option in ("--dtype", name)]
        cases = [option for name in ("mlp", "25.6M", "clip-by-*") for option in ("--case", name)]
        command = ["bench", "--size", "small", "--rounds", "1", "--peers", "{peer}", "--json"]
        raise SystemExit(main([*command, *types, *cases]))
    """
    done = run_in_fresh_python(script)
    assert done.stderr == ""
    rows = json.loads(done.stdout)["rows"]
    assert [row["absent"] for row in rows] == [{}] * len(rows)
    assert {row["dtype"] for row in rows if peer in row["contenders"]} == {"f32", "f16", "bf16"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how busy the machine is")
def test_load_of_other_processes_is_measured() -> None:
    idle, busy = OtherLoad(), OtherLoad()
    script = "import time\nwhile time.process_time() < 0.5: pass"
    worker = subprocess.Popen([sys.executable, "-c", script])
    try:
        time.sleep(0.4)  # while the worker runs, its time counts as that of other processes
        cores = busy.cores()
    finally:
        worker.wait()
    assert cores is not None
    assert cores > 0.2
    assert idle.cores() is not None


def test_report_warns_if_other_processes_were_busy() -> None:
    row = benchmark_rows.rows("small")[0]
    times = {"fastclip": timing.Timing([1.0]), "limit": timing.Timing([1.0])}
    labels = {"fastclip": "", "limit": ""}
    for cores, warned in ((0.01, False), (1.5, True), (None, False)):
        console = Console(record=True, width=100, file=io.StringIO())
        print_rows(console, [TimedRow(row, times, labels, other_cores=cores)], [])
        assert ("Not to be relied on" in console.export_text()) is warned
