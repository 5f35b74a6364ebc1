"""``fastclip bench --cliffs`` with small shapes: what it measures and reports, independent of the times."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from fastclip.cli import main
from fastclip.cli.bench.cliffs import suite
from fastclip.cli.bench.cliffs.cliff import SCALES, Size
from fastclip.cli.bench.measuring.timing import Contender, Timing, measure
from fastclip.cli.bench.reporting.timed_row import TimedRow
from fastclip.cli.bench.suites import targets

HAS_TORCH = importlib.util.find_spec("torch") is not None


def rows_of(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["bench", "--cliffs", "--size", "small", "--rounds", "1", "--json", "-", *options]) == 0
    return {row["row"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def test_every_row_is_measured_and_has_right_results(capsys: pytest.CaptureFixture[str]) -> None:
    # A wrong result of fastclip ends the command, and one of a peer is reported as an absent contender.
    rows = rows_of(capsys)
    assert list(rows) == [row.name for row in suite.rows("small")]
    for name, row in rows.items():
        assert row["absent"] == {}, name
        assert row["elements"] > 0
        assert row["bytes"] > 0
        assert {"fastclip", "limit"} <= set(row["contenders"]), name
        if HAS_TORCH and not name.startswith("mlp"):
            assert len(row["contenders"]) > 2, name


def test_rows_have_half_and_twice_as_many_elements(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, "--case", "short-slices", "--case", "columns", "--peers", "numpy")
    for case in ("short-slices/f32", "columns/f32"):
        half, base, double = (rows[f"{case}/{scale}"]["elements"] for scale in SCALES)
        assert 2 * half == base
        assert 2 * base == double
    assert rows["short-slices/f32/base"]["elements"] == rows["short-slices/f32/base/swapped"]["elements"]
    assert "columns/f32/base/swapped" not in rows


def test_swapped_axes() -> None:
    plain, swapped = Size(), Size(is_swapped=True)
    assert plain.shape(3, 4, 5) == (3, 4, 5)
    assert swapped.shape(3, 4, 5) == (4, 3, 5)
    assert (plain.axis(0), swapped.axis(0), swapped.axis(1)) == (0, 1, 0)


def test_every_row_has_a_target_that_a_contender_can_meet() -> None:
    goals = suite.targets()
    assert {goal.row for goal in goals} == {row.name for row in suite.rows("full")}
    small = {row.name: row for row in suite.rows("small")}
    for goal in goals:
        if goal.against == "torch" and not HAS_TORCH:
            continue
        contenders = small[goal.row].work().contenders
        assert goal.against in {*contenders, "limit", "its median"}, goal


@pytest.mark.parametrize("option", ["--train", "--gpu"])
def test_suites_exclude_each_other(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--cliffs", option, "--list"]) == 2
    assert "--cliffs" in capsys.readouterr().err


def test_a_target_is_missed_only_if_the_lower_quartile_exceeds_it() -> None:
    goal = targets.Target("row", "peer", 1.0)
    for measured, lower, verdict in [
        (0.9, 0.8, "met"),
        (1.2, 0.9, "unclear"),
        (1.2, 1.1, "missed"),
        (1.2, None, "missed"),
    ]:
        key = "row", "peer"
        (outcome,) = targets.compare({key: measured}, [goal], lower={} if lower is None else {key: lower})
        assert outcome.verdict == verdict


def test_ratios_are_of_the_times_of_one_round() -> None:
    row = suite.rows("small")[0]
    timed = TimedRow(row, {"fastclip": Timing([1.0, 4.0, 2.0]), "numpy": Timing([2.0, 4.0, 8.0])}, {})
    assert timed.ratio_quartiles("numpy") == (0.375, 0.75)
    assert timed.ratio_quartiles("torch") is None


def test_the_spread_is_of_all_calls() -> None:
    assert Timing([1.0], [1.0] * 8 + [5.0, 5.0]).spread == 5.0
    assert Timing([1.0], [1.0]).spread == 1.0
    timings = measure([Contender("a", "", lambda: None)], seconds=0, rounds=2, pause=0)
    assert len(timings["a"].calls) > len(timings["a"].rounds) == 2
    assert np.median(timings["a"].calls) > 0
