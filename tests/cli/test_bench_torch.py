"""``fastclip bench --torch`` with small shapes: what it measures and reports, independent of the times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastclip.cli import main

pytest.importorskip("torch")

from fastclip.cli.bench.pytorch import suite

pytestmark = pytest.mark.interop("torch")


def run(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    arguments = ["bench", "--torch", "--size", "small", "--rounds", "1", "--peers", "torch", "--json", "-"]
    assert main([*arguments, *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_row_is_timed_with_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    results = run(capsys)
    assert not results.get("skipped")
    rows = {row["case"]: row for row in results["rows"]}
    assert tuple(rows) == suite.CASES
    for case, row in rows.items():
        names = set(row["contenders"])
        assert {"fastclip", "limit"} <= names, case
        against = {target.against for target in suite.targets() if target.row.startswith(f"{case}/")}
        assert against - {"deepspeed"} <= names, case


def test_targets_name_rows() -> None:
    names = {row.name for row in suite.rows("full")}
    assert {target.row for target in suite.targets()} <= names


@pytest.mark.parametrize("option", ["--train", "--gpu", "--cliffs"])
def test_options_with_other_rows_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--torch", option, "--list"]) == 2
    assert "it has rows of its own" in capsys.readouterr().err
