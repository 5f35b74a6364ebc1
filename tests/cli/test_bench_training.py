"""``fastclip bench --train`` with small shapes: what it measures and reports, independent of the times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import train
from fastclip.cli import main
from fastclip.cli.bench.clipping import benchmark_rows
from fastclip.cli.bench.inputs.shapes import SHAPES
from fastclip.cli.bench.suites import targets
from fastclip.cli.bench.training import benchmark_rows as training_rows
from fastclip.cli.bench.training import limit as step_limit
from fastclip.cli.bench.training import optimizers as step_rules
from fastclip.cli.bench.training import peers as step_peers
from support.fresh_python import run as run_in_fresh_python

SMALL = ["bench", "--train", "--size", "small", "--rounds", "2", "--peers", "numpy"]
ROWS = training_rows.rows("small", benchmark_rows.DTYPES)


def row_named(name: str) -> training_rows.StepRow:
    (row,) = (row for row in ROWS if row.name == name)
    return row


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["bench", "--train", "--list", *options]) == 0
    return capsys.readouterr().out.split()


def test_rows_can_be_selected(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(listed(capsys)) == 16
    assert listed(capsys, "--case", "gpt2") == ["gpt2/adamw/f32", "gpt2/momentum/f32", "gpt2/adamw/bf16"]
    assert listed(capsys, "--case", "*/adamw/*", "--dtype", "f16") == [
        f"{case}/adamw/f16" for case in ("gpt2", "resnet50", "many", "mlp")
    ]
    assert 3 <= len(listed(capsys, "--quick")) <= 6


def test_every_optimizer_has_a_row() -> None:
    optimizers = {type(row.rule.optimizer(np.zeros((), np.int64), {})) for row in ROWS}
    known = {getattr(train, name) for name in train.__all__ if name.endswith("Optimizer")}
    assert optimizers == known - {train.Optimizer}
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["fastclip", "fastclip-f32", "numpy"])
def test_each_contender_takes_the_step_of_the_row(name: str, row: training_rows.StepRow) -> None:
    work = training_rows.StepWorkload(row)
    contender = step_peers.contender(name, work)
    if contender is None:
        assert (name == "fastclip-f32" and row.dtype == "f32") or (name == "numpy" and not row.clipped)
        return
    contender.refresh()
    contender.call()
    step_peers.check_result(contender, work)
    after_one = np.copy(contender.state()[0])
    contender.refresh()
    contender.call()
    assert not np.array_equal(contender.state()[0], after_one)


@pytest.mark.parametrize("rule", [row.rule for row in ROWS if row.dtype == "f32"], ids=lambda rule: rule.name)
def test_bytes_of_a_row_include_its_optimizers_slots(rule: step_rules.Rule) -> None:
    step, w = np.zeros((), np.int64), np.ones(3, np.float32)
    optimizer = rule.optimizer(step, {})
    optimizer.apply_gradients([(np.ones(3, np.float32), w)], global_step=step)
    assert optimizer.get_slot_names() == sorted(rule.slots)
    row = training_rows.StepRow("mlp", rule, "bf16", False, ((3, 2), (4,)))
    assert (row.nbytes, row.state_nbytes) == (20, 40 * (1 + len(rule.slots)))


def test_wrong_step_is_detected() -> None:
    work = training_rows.StepWorkload(row_named("mlp/adamw/f32"))
    contender = step_peers.contender("fastclip", work)
    assert contender is not None
    contender.call()
    step_peers.check_result(contender, work)
    # The size of the gradients hardly affects the variables in Adam's first step, but it affects the slot.
    unclipped = work.row.rule.optimizer(np.zeros((), np.int64), {})
    variables = work.variables()
    unclipped.apply_gradients(zip(work.gradients, variables, strict=True))
    contender.state = lambda: (variables[0], unclipped.get_slot(variables[0], "m"))
    with pytest.raises(AssertionError, match="made the slot"):
        step_peers.check_result(contender, work)
    contender.state = lambda: (work.variables()[0], None)
    with pytest.raises(AssertionError, match="moved the variable"):
        step_peers.check_result(contender, work)


def test_refresh_restores_the_gradients_and_contenders_have_separate_variables() -> None:
    work = training_rows.StepWorkload(row_named("gpt2/adamw/f32"))
    norm = fastclip.global_norm(work.gradients)
    assert work.bound == pytest.approx(norm / 2)
    contenders = [step_peers.contender(name, work) for name in ("fastclip", "numpy")]
    first, second = (contender.state()[0] for contender in contenders if contender is not None)
    assert np.array_equal(first, second)
    assert not np.may_share_memory(first, second)
    for gradient in work.gradients:
        gradient *= 0.5
    work.refresh()
    assert fastclip.global_norm(work.gradients) == norm


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_limit_makes_the_memory_passes_of_the_row(
    row: training_rows.StepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []

    def moves(name: str, nbytes: int) -> Any:
        def move(source: Any, *others: Any) -> None:
            passes.append(name)
            assert 0 <= source.nbytes - nbytes < 4

        return move

    monkeypatch.setattr(fastclip._core, "bandwidth_read", moves("read", row.nbytes))
    monkeypatch.setattr(fastclip._core, "bandwidth_scale", moves("scale", row.state_nbytes))
    contender = step_limit.limit(training_rows.StepWorkload(row))
    contender.refresh()
    contender.call()
    assert " + ".join(passes) == contender.label == step_limit.limit_passes(row)
    assert passes.count("read") == (2 if row.clipped else 1)


def test_all_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["train"] is True
    assert [row["row"] for row in report["rows"]] == [row.name for row in training_rows.rows("small")]
    assert report["skipped"] == {}
    for row in report["rows"]:
        assert row["kind"] == "time"
        assert row["row"] == f"{row['case']}/{row['optimizer']}/{row['dtype']}"
        assert row["absent"] == {}
        expected = {"fastclip", "limit"}
        expected |= {"numpy"} if row["clipped"] else set()
        expected |= {"fastclip-f32"} if row["dtype"] != "f32" else set()
        assert row["contenders"].keys() == expected
        assert row["ratios"].keys() == expected - {"fastclip"}


def test_tables_plot_and_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, report = tmp_path / "plot.png", tmp_path / "report.json"
    command = [*SMALL, "--case", "gpt2", "--case", "*/ftrl/*", "--plot", str(plot), "--json", str(report)]
    assert main(command) == 0
    text = capsys.readouterr().out
    for part in (
        "gpt2 f32 (148 tensors",
        "gpt2 bf16",
        "resnet50 f32",
        "adamw",
        "ftrl",
        "not clipped",
        "limit",
    ):
        assert part in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(report.read_text())["rows"]) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "memory"], "memory"),
        (["--case", "clip-by-norm"], "gpt2, resnet50, many, mlp"),
        (["--peers", "expert"], "torch-foreach"),
        (["--size", "small", "--check"], "--check"),
    ],
)
def test_invalid_options_exit_with_2_and_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--train", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_each_target_names_an_existing_row_and_contender() -> None:
    rows = {row.name: row for row in training_rows.rows("full")}
    for target in targets.TRAINING_TARGETS:
        row = rows[target.row]
        assert target.against in {*step_peers.PEERS, *step_peers.FASTCLIP_CONTENDERS, "limit"}
        assert row.clipped or target.against == "limit"
        assert (target.against == "fastclip-f32") is (row.dtype == "bf16")
    without = {row.name for row in rows.values() if not row.clipped}
    assert without <= {target.row for target in targets.TRAINING_TARGETS}


@pytest.mark.parametrize(("at_most", "code", "verdict"), [(1e9, 0, "met"), (0.0, 1, "missed")])
def test_check_exits_with_1_if_a_target_is_missed(
    at_most: float,
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SHAPES, "full", SHAPES["small"])
    row = "gpt2/adamw/bf16"
    goals = (targets.Target(row, "fastclip-f32", at_most), targets.Target("mlp/adamw/f32", "limit", 1.0))
    monkeypatch.setattr(targets, "TRAINING_TARGETS", goals)
    command = ["bench", "--train", "--check", "--rounds", "1", "--peers", "none", "--case", row]
    assert main([*command, "--json"]) == code
    results = json.loads(capsys.readouterr().out)["targets"]
    assert [target["verdict"] for target in results] == [verdict, "not measured"]


def test_row_that_does_not_fit_into_memory_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_named("gpt2/adamw/f32")
    training_rows.check_memory(row, contenders=4)
    monkeypatch.setattr(training_rows, "available_memory", lambda: 3 * row.state_nbytes)
    command = [*SMALL, "--case", "mlp", "--case", row.name]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skipped"].keys() == {row.name}
    assert "GiB" in report["skipped"][row.name]
    assert [entry["row"] for entry in report["rows"]] == ["mlp/adamw/f32"]
    assert main(command) == 0
    assert "not enough memory" in capsys.readouterr().out


@pytest.mark.interop("torch")
def test_torch_is_measured_in_the_rows_whose_gradients_it_accepts() -> None:
    script = """
        from fastclip.cli import main
        cases = ["--case", "gpt2", "--case", "mlp", "--case", "*/adagrad/*"]
        command = ["bench", "--train", "--size", "small", "--rounds", "1", "--json"]
        raise SystemExit(main([*command, "--peers", "torch,torch-foreach", *cases]))
    """
    done = run_in_fresh_python(script)
    assert done.stderr == ""
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 5
    for row in rows:
        participants = {"torch", "torch-foreach"} & (row["contenders"].keys() | row["absent"].keys())
        assert bool(participants) is row["clipped"]
        if row["dtype"] == "f32":
            assert row["absent"] == {}
            assert len(participants) == (2 if row["clipped"] else 0)
