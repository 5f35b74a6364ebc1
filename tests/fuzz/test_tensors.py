"""A bounded run of the fuzzer, in a process of its own, because what it looks for may end the process."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastclip
from fuzz import calls, tensors
from fuzz.choices import Choices
from fuzz.memory import Block
from support import fresh_python
from support.dlpack_capsules import Exporter

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


# --- faults that the fuzzer has to find ---------------------------------------------------------


def first_exporter(value: Any) -> Exporter | None:
    """Returns an exporter among the entries of nested containers."""
    if type(value) is Exporter:
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if type(value) in (list, tuple):
        return next((found for entry in value if (found := first_exporter(entry)) is not None), None)
    return None


def raise_runtime_error(exporter: Exporter) -> None:
    raise RuntimeError("a defect")


def forget_the_deleter(exporter: Exporter) -> None:
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    rename(exporter.__dlpack__(), b"used_dltensor")


def free_twice(exporter: Exporter) -> None:
    exporter.__dlpack__()
    exporter.exports[-1]._deleted()


def write_the_input(exporter: Exporter) -> None:
    exporter.__dlpack__()
    tensor = exporter.exports[-1]._structure.tensor
    if tensor.data and tensor.bits >= 8 and tensor.device_type == 1:
        address = ctypes.c_ubyte.from_address(tensor.data + tensor.byte_offset)
        address.value ^= 0xFF


FAULTS: dict[str, tuple[Callable[[Exporter], None], str]] = {
    "another exception": (raise_runtime_error, "raised RuntimeError"),
    "a deleter that is not called": (forget_the_deleter, "called 0 times"),
    "a deleter that is called twice": (free_twice, "the deleter was called"),
    "a write to an input": (write_the_input, "memory"),
}


def check_cases(count: int) -> None:
    rng = random.Random(1)
    for _ in range(count):
        calls.check(tensors.generate(rng, []), with_torch=False)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_function_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, message = FAULTS[name]

    def faulty(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, *arguments: Any, **options: Any) -> Any:
            exporter = first_exporter(tensors)
            if exporter is not None:
                fault(exporter)
            return function(tensors, *arguments, **options)

        return call

    for function in ("global_norm", "tensor_norms"):
        monkeypatch.setattr(fastclip, function, faulty(getattr(fastclip, function)))
    with pytest.raises(AssertionError, match=message):
        check_cases(2000)


def test_wrong_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    function = fastclip.global_norm

    def inexact(tensors: Any, **options: Any) -> Any:
        norm = function(tensors, **options)
        return norm if first_exporter(tensors) is None else np.nextafter(norm, norm + 1)

    monkeypatch.setattr(fastclip, "global_norm", inexact)
    with pytest.raises(calls.Finding, match="a result of"):
        check_cases(2000)


@pytest.mark.parametrize("place", [-1, 24])
def test_writes_around_a_block_are_found(place: int) -> None:
    block = Block(24, np.dtype(np.float32), Choices(b""))
    if not block.guard:
        pytest.skip("AddressSanitizer finds such writes")
    assert block.guards_are_intact()
    ctypes.memset(block.address + place, 0, 1)
    assert not block.guards_are_intact()
    block.free()
