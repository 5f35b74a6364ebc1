"""An interrupt at any line of fastclip's: an optimizer holds what it did before or what it will after.

Ctrl-C is raised where the interpreter finds the time, which may be at any line. Here a trace function raises
it: at the first line that a call comes to, in another try at the second, and so on, until a call goes
through.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastclip
from allocation_cases import PAIRS, Steps
from support.training_cases import EVERY_OPTIMIZER, VARIANTS

PACKAGE = str(Path(fastclip.__file__).parent) + os.sep

pytestmark = pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces already")


class Interrupt(BaseException):
    """What no code expects."""


def interrupted_at(number: int, call: Callable[[], Any], opcodes: bool) -> bool:
    """Raise `Interrupt` at one of the lines (or instructions) of `call`. Returns whether it has as many."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = opcodes
        if event in ("line", "opcode"):
            if left == 0:
                left = -1
                sys.settrace(None)
                raise Interrupt
            left -= 1
        return trace

    # The tests' coverage, if it is measured, goes on afterwards.
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        assert left == -1
        return True
    finally:
        sys.settrace(before)
    assert left != -1, "the interrupt was lost"
    return False


def check_all(make: Callable[[], tuple[Steps, Callable[[], Any]]], opcodes: bool = False) -> None:
    """Interrupt a call everywhere. `make` gives what is watched, and the call."""
    taken, call = make()
    before = taken.watched()
    call()
    after = taken.watched()
    found = set()
    for number in range(20_000):
        taken, call = make()
        assert taken.watched() == before
        raised = interrupted_at(number, call, opcodes)
        left = taken.watched()
        assert left in (before, after), f"interrupted at {number}: {differences(left, before, after)}"
        found.add(left == after)
        if not raised:
            break
        # It goes on from there.
        if left == before:
            call()
            assert taken.watched() == after, f"interrupted at {number}"
    else:
        pytest.fail("it does not end")
    assert found == {True, False}


def differences(left: list[bytes], before: list[bytes], after: list[bytes]) -> str:
    """Which parts have changed, and which not, of those that a call changes."""
    parts = [
        f"{old[:24]!r}: {'as before' if part == old else 'as after' if part == new else 'neither'}"
        for part, old, new in zip(left, before, after, strict=False)
        if old != new
    ]
    return "; ".join(parts) + (f" ({len(left)}, {len(before)}, {len(after)} parts)")


LOADING = ["Adam", "Nesterov", "AdagradDA", "RMSProp-centered", "GradientDescent"]


@pytest.mark.parametrize("listed", [False, True], ids=["met", "listed"])
@pytest.mark.parametrize("variant", LOADING)
def test_state_is_loaded_wholly_or_not_at_all(variant: str, listed: bool) -> None:
    source = Steps(variant, *PAIRS["small"](), steps=3, on_nonfinite="skip")
    source.optimizer.skipped_steps = 5
    state = source.optimizer.state_dict()

    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps(variant, *PAIRS["small"](), steps=1, on_nonfinite="skip")
        variables = taken.variables if listed else None
        return taken, lambda: taken.optimizer.load_state_dict(state, variables)

    check_all(make)


def test_state_of_no_steps_is_loaded_wholly_or_not_at_all() -> None:
    state = Steps("Adam", *PAIRS["small"]()).optimizer.state_dict()

    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps("Adam", *PAIRS["small"](), steps=1)
        return taken, lambda: taken.optimizer.load_state_dict(state, [])

    check_all(make)


def test_state_is_loaded_wholly_or_not_at_all_at_any_instruction() -> None:
    source = Steps("Adam", *PAIRS["small"](), steps=3, on_nonfinite="skip")
    state = source.optimizer.state_dict()

    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps("Adam", *PAIRS["small"](), steps=1, on_nonfinite="skip")
        return taken, lambda: taken.optimizer.load_state_dict(state)

    check_all(make, opcodes=True)


@pytest.mark.parametrize("steps", [0, 1])
@EVERY_OPTIMIZER
def test_step_is_taken_or_not_taken(variant: str, steps: int) -> None:
    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps(variant, *PAIRS["small"](), steps=steps, global_clipnorm=1.0)
        return taken, taken.apply

    check_all(make)


@pytest.mark.parametrize("kind", ["repeated_rows", "overlapping", "mixed"])
def test_step_with_gradients_of_other_kinds_is_taken_or_not_taken(kind: str) -> None:
    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps("Adam", *PAIRS[kind](), steps=1, clipnorm=1.0, loss_scale=8.0)
        return taken, taken.apply

    check_all(make)


def test_step_is_taken_or_not_taken_at_any_instruction() -> None:
    def make() -> tuple[Steps, Callable[[], Any]]:
        taken = Steps("Adam", *PAIRS["small"](), steps=1, global_clipnorm=1.0)
        return taken, taken.apply

    check_all(make, opcodes=True)


@pytest.mark.parametrize("variant", ["Adam", "Nesterov"])
def test_step_that_is_left_out_is_counted_or_not_left_out(variant: str) -> None:
    def make() -> tuple[Steps, Callable[[], Any]]:
        gradients, variables = PAIRS["small"]()
        taken = Steps(variant, gradients, variables, steps=1, on_nonfinite="skip")
        gradients[0][3] = np.nan
        return taken, taken.apply

    check_all(make)


def test_every_optimizer_is_among_the_variants() -> None:
    names = {f"{name}Optimizer" for name, _ in VARIANTS.values()}
    assert names == set(fastclip.train.__all__) - {"Optimizer", "compute_gradients"}
