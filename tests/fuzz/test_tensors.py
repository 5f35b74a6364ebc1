"""A bounded run of the fuzzer, in a process of its own, because what it looks for may end the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import tensors
from fuzz.choices import Choices
from support import fresh_python

#: As many cases as take about ten seconds on one core.
RUNS = 20_000


def run_fuzzer(folder: Path, *arguments: str) -> None:
    last_case = folder / "last_case"
    try:
        done = fresh_python.run_module(
            "fuzz.tensors", "--runs", str(RUNS), "--last-case", str(last_case), *arguments, timeout=280
        )
    except AssertionError as error:
        case = last_case.read_text(encoding="ascii").strip()
        raise AssertionError(f"{error}\nrepeat: python -m fuzz.tensors --case {case}") from None
    assert f"{RUNS + len(tensors.read_corpus())} cases" in done.stdout
    assert " 0 findings" in done.stdout


def test_arrays_exporters_buffers_and_hostile_objects(tmp_path: Path) -> None:
    run_fuzzer(tmp_path, "--without-torch")


@pytest.mark.interop("torch")
def test_torch_tensors_too(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run_fuzzer(tmp_path, "--seed", "1")


def test_corpus_is_kept() -> None:
    corpus = tensors.read_corpus()
    assert len(corpus) > 100
    assert len(corpus) == len(set(corpus))


def test_bytes_that_are_used_up_give_first_choices() -> None:
    choices = Choices(b"\x05\x01\x02")
    assert choices.below(3) == 2
    assert choices.below(1000) == 0x0102
    assert choices.below(3) == choices.below(1000) == 0
    assert choices.one_of("abc") == "a"
    assert not choices.once_in(2)
