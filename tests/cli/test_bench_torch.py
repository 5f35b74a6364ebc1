"""``fastclip bench --torch`` with small shapes: what it measures and reports, independent of the times."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.cli import main
from fastclip.cli.bench.inputs.shapes import SHAPES
from fastclip.cli.bench.pytorch import benchmark_rows, small_transformer, steps, suite, work
from fastclip.cli.bench.suites import targets
from fastclip.cli.bench.suites.peer_libraries import Peer

# One thread: the threads of OpenMP wait for each other, which takes long where the machine is busy.
SMALL = ["bench", "--torch", "--size", "small", "--rounds", "2", "--peers", "torch", "--threads", "1"]
ROWS = benchmark_rows.rows("small")
FASTCLIP_VARIANTS = {"adamw-bf16-moments": "fastclip-f32-moments", "training-step": "fastclip-without-hooks"}

needs_torch = pytest.mark.interop("torch")


@pytest.fixture
def one_thread() -> Any:
    with fastclip.threads(1):
        yield


def row_named(name: str) -> benchmark_rows.TorchRow:
    (row,) = (row for row in ROWS if row.name == name)
    return row


def contenders_of(row: benchmark_rows.TorchRow) -> set[str]:
    names = {"fastclip", "limit"}
    names |= {"torch"} if row.operation != "adamw-bf16-moments" else set()
    return names | ({FASTCLIP_VARIANTS[row.operation]} if row.operation in FASTCLIP_VARIANTS else set())


def prepared(row: benchmark_rows.TorchRow) -> work.Work:
    prepared_work = suite.PYTORCH.workload(row)
    assert isinstance(prepared_work, work.Work)
    return prepared_work


@needs_torch
def test_rows_can_be_selected(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*options: str) -> list[str]:
        assert main(["bench", "--torch", "--list", *options]) == 0
        return capsys.readouterr().out.split()

    assert listed() == [row.name for row in ROWS]
    assert listed("--case", "many", "--case", "512") == [
        "many/clip-grad-norm/f32",
        "many/clip-grad-value/f32",
        "many/adamw/f32",
        "512/adamw-alone/f32",
    ]
    assert listed("--case", "gpt2/adamw*", "--dtype", "f32") == [
        "gpt2/adamw/f32",
        "gpt2/adamw-bf16-moments/f32",
    ]
    assert 3 <= len(listed("--quick")) <= 6


@needs_torch
def test_every_row_is_measured_and_has_right_results(capsys: pytest.CaptureFixture[str]) -> None:
    # A wrong result of fastclip ends the command, and one of a peer is reported as an absent contender.
    assert main([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["torch"] is True
    assert report["skipped"] == report["not_installed"] == {}
    assert [row["row"] for row in report["rows"]] == [row.name for row in ROWS]
    for row, entry in zip(ROWS, report["rows"], strict=True):
        assert entry["absent"] == {}
        assert entry["contenders"].keys() == contenders_of(row)
        assert entry["elements"] == row.elements


@needs_torch
def test_tables_show_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--rounds", "1", "--case", "many", "--case", "transformer"]) == 0
    text = capsys.readouterr().out
    for part in ("many f32 (50 tensors", "clip-grad-value", "transformer f32", "training-step", "torch"):
        assert part in text


@needs_torch
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_wrong_results_are_detected(row: benchmark_rows.TorchRow) -> None:
    for name, make in prepared(row).contenders.items():
        if name == "deepspeed":
            continue
        contender = make()
        contender.refresh()
        result: Any = None
        # Clipping is wrong before the call; a second step or sum is wrong.
        if row.operation not in benchmark_rows.IN_PLACE:
            contender.call()
            result = contender.call()
        with pytest.raises(AssertionError):
            contender.check(result)


@needs_torch
@pytest.mark.usefixtures("one_thread")
def test_gradients_are_restored_and_contenders_have_parameters_of_their_own() -> None:
    row = row_named("gpt2/adamw/f32")
    gradients = work.Gradients(row)
    assert gradients.norm == pytest.approx(fastclip.global_norm(gradients.tensors))
    for tensor in gradients.tensors:
        tensor.mul_(0.5)
    assert np.array_equal(2.0 * work.first_elements(gradients.arrays[0]), gradients.start)
    gradients.refresh()
    assert np.array_equal(work.first_elements(gradients.arrays[0]), gradients.start)
    first, second = work.parameter_tensors(row), work.parameter_tensors(row)
    assert [tuple(tensor.shape) for tensor in first] == list(row.shapes)
    assert first[0].equal(second[0])
    assert first[0].data_ptr() != second[0].data_ptr()


@needs_torch
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_limit_makes_the_memory_passes_of_the_row(
    row: benchmark_rows.TorchRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = prepared(row).limit
    passes: list[str] = []

    def moves(name: str, nbytes: int) -> Any:
        def move(source: Any, *others: Any) -> None:
            passes.append(name)
            assert source.nbytes == nbytes

        return move

    monkeypatch.setattr(fastclip._core, "bandwidth_read", moves("read", row.nbytes))
    monkeypatch.setattr(fastclip._core, "bandwidth_scale", moves("scale", row.state_nbytes))
    contender.refresh()
    contender.call()
    assert " + ".join(passes) == contender.label == row.limit_passes


@needs_torch
def test_functions_of_torch_are_its_own_also_where_they_were_replaced() -> None:
    import fastclip.torch

    fastclip.torch.patch()
    try:
        for name in ("clip_grad_norm_", "clip_grad_value_", "get_total_norm"):
            assert work.torch_function(name).__module__ == "torch.nn.utils.clip_grad"
    finally:
        fastclip.torch.unpatch()


@needs_torch
@pytest.mark.parametrize("size", ["small", "full"])
def test_the_transformer_has_the_shapes_of_its_row(size: str) -> None:
    (row,) = (row for row in benchmark_rows.rows(size) if row.case == "transformer")
    model = small_transformer.make_model(row)
    assert tuple(tuple(parameter.shape) for parameter in model.parameters()) == row.shapes


@needs_torch
@pytest.mark.usefixtures("one_thread")
def test_the_backward_pass_measures_the_gradients_of_one_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_named("transformer/training-step/f32")
    measure, measured = fastclip._core.torch_magnitude, []

    def counted(*arguments: Any) -> Any:
        measured.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(fastclip._core, "torch_magnitude", counted)
    for name, count in (("fastclip", len(row.shapes)), ("fastclip-without-hooks", 0), ("torch", 0)):
        measured.clear()
        prepared(row).contenders[name]().call()
        assert len(measured) == count


@needs_torch
@pytest.mark.usefixtures("one_thread")
def test_deepspeed_finds_ninja_and_does_not_write_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def optimizer(*arguments: Any, **options: Any) -> Any:
        print("compiling")
        assert os.environ["PATH"].split(os.pathsep)[0] == sysconfig.get_path("scripts")
        return torch.optim.AdamW(*arguments, **options)

    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", SimpleNamespace(DeepSpeedCPUAdam=optimizer))
    path = os.environ.get("PATH")
    contender = steps.prepare(row_named("many/adamw/f32")).contenders["deepspeed"]()
    assert os.environ.get("PATH") == path
    contender.refresh()
    contender.check(contender.call())
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "compiling\n")
    assert contender.label == "clip_grad_norm_; DeepSpeedCPUAdam"


@needs_torch
def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(suite.PEERS, "deepspeed", Peer("", ("torch", "no_such_package")))
    command = [option for option in SMALL if option not in ("--peers", "torch")] + ["--case", "512"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_installed"] == {"deepspeed": ["no_such_package"]}
    assert main(command) == 0
    assert "deepspeed (pip install no_such_package)" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--peers", "deepspeed"]) == 2
    assert "deepspeed is not installed" in capsys.readouterr().err


@needs_torch
def test_row_that_does_not_fit_into_memory_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_named("gpt2/adamw/f32")
    monkeypatch.setattr(benchmark_rows, "available_memory", lambda: 3 * row.state_nbytes)
    assert main([*SMALL, "--case", "512", "--case", row.name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skipped"].keys() == {row.name}
    assert "GiB" in report["skipped"][row.name]
    assert [entry["row"] for entry in report["rows"]] == ["512/adamw-alone/f32"]


@needs_torch
@pytest.mark.parametrize(("at_most", "code", "verdict"), [(1e9, 0, "met"), (0.0, 1, "missed")])
def test_check_exits_with_1_if_a_target_is_missed(
    at_most: float,
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SHAPES, "full", SHAPES["small"])
    row = "gpt2/adamw-bf16-moments/f32"
    goals = (
        targets.Target(row, "fastclip-f32-moments", at_most),
        targets.Target("many/adamw/f32", "torch", 1.0),
    )
    monkeypatch.setattr(targets, "TORCH_TARGETS", goals)
    command = ["bench", "--torch", "--check", "--rounds", "1", "--peers", "none", "--threads", "1"]
    assert main([*command, "--case", row, "--json"]) == code
    results = json.loads(capsys.readouterr().out)["targets"]
    assert [target["verdict"] for target in results] == [verdict, "not measured"]


def test_each_target_names_an_existing_row_and_contender() -> None:
    rows = {row.name: row for row in benchmark_rows.rows("full")}
    for target in targets.TORCH_TARGETS:
        contenders = contenders_of(rows[target.row]) - {"fastclip"}
        assert target.against in contenders | ({"deepspeed"} if "/adamw/" in target.row else set())
    assert rows.keys() - {target.row for target in targets.TORCH_TARGETS} == {"many/clip-grad-value/f32"}


@needs_torch
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "mlp"], "gpt2, resnet50, many, 512, transformer"),
        (["--peers", "numpy"], "torch, deepspeed"),
        (["--dtype", "bf16"], "--dtype"),
        (["--size", "small", "--check"], "--check"),
    ],
)
def test_invalid_options_exit_with_2_and_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--torch", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("option", ["--train", "--gpu", "--cliffs"])
def test_options_with_other_rows_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--torch", option, "--list"]) == 2
    assert "it has rows of its own" in capsys.readouterr().err


def test_without_torch_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["bench", "--torch"]) == 2
    message = capsys.readouterr().err
    assert "--torch: torch is not installed" in message
    assert message.count("\n") == 1


@needs_torch
def test_with_a_torch_that_fastclip_does_not_support_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastclip.torch", None)
    assert main(["bench", "--torch"]) == 2
    assert "--torch: import of fastclip.torch" in capsys.readouterr().err
