"""Fuzzes the tensor arguments of the clip functions: ``python -m fuzz.tensors --runs 100000`` in ``tests/``.

A case is a string of bytes, which `fuzz.calls` turns into a call. Cases are random, or changed from those of
``corpus.txt``, which are all run first. The exit status is 1 if a call did what it must not do. ``README.md``
tells what is checked, and what was found.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gc
import importlib.util
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from fuzz import calls

CORPUS = Path(__file__).with_name("corpus.txt")
LENGTH = 96


def read_corpus(path: Path = CORPUS) -> list[bytes]:
    """Returns the cases of a corpus, a file with a case in hexadecimal digits in each line."""
    if not path.exists():
        return []
    return [bytes.fromhex(line) for line in path.read_text(encoding="ascii").split()]


def generate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Returns a case: random bytes, or one of the corpus with some bytes changed."""
    if not corpus or rng.random() < 0.5:
        return rng.randbytes(rng.randrange(8, LENGTH))
    case = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        place = rng.randrange(len(case) + 1)
        change = rng.random()
        if change < 0.6 and place < len(case):
            case[place] = rng.choice([0, 1, 255, rng.randrange(256), (case[place] + 1) % 256])
        elif change < 0.75:
            case.insert(place, rng.randrange(256))
        elif change < 0.85:
            del case[place : place + 1]
        else:
            other = rng.choice(corpus)
            case[place:] = other[rng.randrange(len(other) + 1) :]
    return bytes(case[: 4 * LENGTH])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.tensors", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="how many cases are generated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-torch", action="store_true", help="no torch tensors among the arguments")
    parser.add_argument("--case", help="one case in hexadecimal digits, which is run alone")
    parser.add_argument("--last-case", type=Path, help="file for the case that is being run")
    parser.add_argument("--write-corpus", action="store_true", help="keep a case of each kind")
    parser.add_argument("--keep-going", action="store_true", help="go on after a finding")
    parser.add_argument("--coverage", metavar="FOLDER", type=Path, help="let atheris choose the cases")
    arguments = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with_torch = not arguments.without_torch and importlib.util.find_spec("torch") is not None
    if with_torch:
        import torch

        torch.set_grad_enabled(False)
    if arguments.case is not None:
        print(calls.check(bytes.fromhex(arguments.case), with_torch))
        return 0
    if arguments.coverage is not None:
        run_with_coverage(arguments.coverage, arguments.runs, with_torch)
        return 0
    return run(arguments, with_torch)


def run(arguments: argparse.Namespace, with_torch: bool) -> int:
    corpus = read_corpus()
    rng = random.Random(arguments.seed)
    endings: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    kept: list[bytes] = []
    findings: dict[str, bytes] = {}
    started = time.monotonic()
    # The collector runs at known places, so that it does not run in the middle of a traceback.
    gc.disable()
    with contextlib.ExitStack() as stack:
        last = stack.enter_context(arguments.last_case.open("wb", 0)) if arguments.last_case else None
        for number in range(len(corpus) + arguments.runs):
            data = corpus[number] if number < len(corpus) else generate(rng, corpus)
            if last is not None:
                last.seek(0)
                last.write(data.hex().ljust(10 * LENGTH).encode())
            try:
                ended = calls.check(data, with_torch)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                summary = f"{type(error).__name__}: {error}"
                if f"{place.lineno} {summary[:60]}" not in findings:
                    findings[f"{place.lineno} {summary[:60]}"] = data
                    print(f"case {number}: {data.hex()}\n{summary}", flush=True)
                    if not isinstance(error, calls.Finding):
                        traceback.print_exception(error)
                if not arguments.keep_going:
                    return 1
                continue
            endings[ended.how] += 1
            if not ended.features <= seen:
                seen |= ended.features
                kept.append(data[: ended.length])
            if number % 500 == 0:
                gc.collect()
    seconds = time.monotonic() - started
    count = len(corpus) + arguments.runs
    print(f"{count} cases ({len(corpus)} of the corpus) in {seconds:.0f} s, {len(findings)} findings")
    print(", ".join(f"{ending}: {times}" for ending, times in endings.most_common()))
    if arguments.write_corpus:
        write_corpus(kept)
    return 1 if findings else 0


def write_corpus(cases: list[bytes]) -> None:
    CORPUS.write_text("".join(f"{case.hex()}\n" for case in sorted(set(cases), key=len)), encoding="ascii")


def run_with_coverage(folder: Path, runs: int, with_torch: bool) -> None:
    """Runs atheris, which prefers cases that reach new code of fastclip's Python modules."""
    import atheris

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fastclip":
            instrument(atheris.instrument_func, module, name)
    folder.mkdir(exist_ok=True)
    for i, case in enumerate(read_corpus()):
        (folder / f"corpus{i}").write_bytes(case)

    def test_one_input(data: bytes) -> None:
        calls.check(data, with_torch)

    atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=384", str(folder)], test_one_input)
    atheris.Fuzz()


def instrument(instrument_function: Callable[[Any], Any], owner: Any, module: str) -> None:
    """Replaces the functions of a module, and those of its classes, by instrumented ones."""
    for name, value in list(vars(owner).items()):
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            setattr(owner, name, instrument_function(value))
        elif isinstance(value, type) and value.__module__.startswith("fastclip."):
            instrument(instrument_function, value, module)


if __name__ == "__main__":
    sys.exit(main())
