"""``fastclip bench --gpu`` with small shapes, and the graphics processors in ``fastclip info``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastclip import _core
from fastclip.cli import main
from support.devices import require_device

require_device()

from fastclip.cli.bench.device import benchmark_rows, contenders  # noqa: E402

SMALL = ["bench", "--gpu", "--size", "small", "--rounds", "2", "--peers", "none"]
ROWS = benchmark_rows.rows("small", ("f32", "bf16"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_does_its_work_and_a_wrong_result_is_found(row: benchmark_rows.DeviceRow) -> None:
    work = benchmark_rows.DeviceWorkload(row)
    contender: Any = contenders.contender("fastclip", work)
    contender.refresh()
    contender.result = contender.call()
    contenders.check_result(contender, work)
    if row.operation == "clip":
        contender.result = contender.call()
        with pytest.raises(ValueError, match="the norm is"):
            contenders.check_result(contender, work)
    elif row.operation == "adamw":
        contender.result = contender.call()
        with pytest.raises(AssertionError):
            contenders.check_result(contender, work)


def test_gradients_are_clipped_in_every_call() -> None:
    row = benchmark_rows.rows("small")[0]
    work = benchmark_rows.DeviceWorkload(row)
    contender: Any = contenders.contender("fastclip", work)
    for _ in range(70):
        contender.refresh()
        contender.result = contender.call()
        contenders.check_result(contender, work)


def test_times_and_limits_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--case", "many", "--case", "25.6M", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["gpu"] is True
    names = [row["row"] for row in report["rows"]]
    assert "many/adamw/f32/device" in names
    assert "25.6M/upload/f32/host" in names
    for row in report["rows"]:
        assert row["contenders"]["fastclip"]["median_s"] > 0
        assert row["contenders"]["limit"]["median_s"] > 0
    clip = next(row for row in report["rows"] if row["row"] == "many/clip/f32/device")
    assert clip["moved_bytes"] == 3 * clip["bytes"]


def test_a_table_is_printed_and_options_that_exclude_each_other_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("rich")
    assert main([*SMALL, "--case", "mlp"]) == 0
    assert "device clock" in capsys.readouterr().out
    assert main(["bench", "--gpu", "--train"]) == 2
    assert "--gpu" in capsys.readouterr().err


def test_the_clock_of_the_device_measures_its_work() -> None:
    work = benchmark_rows.DeviceWorkload(benchmark_rows.rows("small")[0])
    limit = contenders.limit(work)
    assert limit.device_seconds is not None
    assert 0 < limit.device_seconds() < 10
    with pytest.raises(RuntimeError, match="no timestamps"):
        _core.gpu_seconds(0)


def test_info_lists_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["gpus"]
    assert set(first) == {"name", "backend", "driver", "is_software"}
    assert main(["info"]) == 0
    assert first["name"] in capsys.readouterr().out
