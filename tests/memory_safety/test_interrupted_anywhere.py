"""An optimizer interrupted at any line of fastclip's code has the state before or after the call.

The interpreter may raise KeyboardInterrupt at any line. Here a trace function raises an exception at the
first line that a call runs, in another trial at the second, and so on, until a call runs to its end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from drivers.allocation_cases import PAIRS, Steps
from support.line_tracing import call_with_action
from support.training_cases import EVERY_OPTIMIZER, VARIANTS

pytestmark = pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces already")


class Interrupt(BaseException):
    """An exception that no code of fastclip expects."""


def interrupted_at(line: int, call: Callable[[], Any], opcodes: bool) -> bool:
    """Raises `Interrupt` at one of the lines (or instructions) of `call`. Returns whether it has so many."""

    def interrupt() -> None:
        raise Interrupt

    ran, error = call_with_action(call, interrupt, line, catch=Interrupt, opcodes=opcodes)
    assert ran == (error is not None), "the interrupt was lost"
    return ran


def check_all(prepare: Callable[[], tuple[Steps, Callable[[], Any]]], opcodes: bool = False) -> None:
    """Interrupts a call at each of its lines.

    Parameters
    ----------
    prepare : callable
        Returns an optimizer with its variables, and the call to interrupt.
    opcodes : bool
        Interrupt at each bytecode instruction too.
    """
    training, call = prepare()
    before = training.contents()
    call()
    after = training.contents()
    outcomes = set()
    for line in range(20_000):
        training, call = prepare()
        assert training.contents() == before
        raised = interrupted_at(line, call, opcodes)
        state = training.contents()
        assert state in (before, after), f"interrupted at {line}: {differences(state, before, after)}"
        outcomes.add(state == after)
        if not raised:
            break
        # A call that had no effect can be repeated.
        if state == before:
            call()
            assert training.contents() == after, f"interrupted at {line}"
    else:
        pytest.fail("the call has more lines than were tried")
    assert outcomes == {True, False}


def differences(state: list[bytes], before: list[bytes], after: list[bytes]) -> str:
    """Describes which of the entries that a call changes have changed."""
    entries = [
        f"{old[:24]!r}: {'as before' if entry == old else 'as after' if entry == new else 'neither'}"
        for entry, old, new in zip(state, before, after, strict=False)
        if old != new
    ]
    return "; ".join(entries) + (f" ({len(state)}, {len(before)}, {len(after)} entries)")


LOADING = ["Adam", "Nesterov", "AdagradDA", "RMSProp-centered", "GradientDescent"]


@pytest.mark.parametrize("listed", [False, True], ids=["known variables", "var_list"])
@pytest.mark.parametrize("variant", LOADING)
def test_state_is_loaded_entirely_or_not_at_all(variant: str, listed: bool) -> None:
    source = Steps(variant, *PAIRS["small"](), steps=3, on_nonfinite="skip")
    source.optimizer.skipped_steps = 5
    state = source.optimizer.state_dict()

    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps(variant, *PAIRS["small"](), steps=1, on_nonfinite="skip")
        variables = training.variables if listed else None
        return training, lambda: training.optimizer.load_state_dict(state, variables)

    check_all(prepare)


def test_state_from_before_the_first_step_is_loaded_entirely_or_not_at_all() -> None:
    state = Steps("Adam", *PAIRS["small"]()).optimizer.state_dict()

    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps("Adam", *PAIRS["small"](), steps=1)
        return training, lambda: training.optimizer.load_state_dict(state, [])

    check_all(prepare)


def test_state_is_loaded_entirely_or_not_at_all_at_any_instruction() -> None:
    source = Steps("Adam", *PAIRS["small"](), steps=3, on_nonfinite="skip")
    state = source.optimizer.state_dict()

    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps("Adam", *PAIRS["small"](), steps=1, on_nonfinite="skip")
        return training, lambda: training.optimizer.load_state_dict(state)

    check_all(prepare, opcodes=True)


@pytest.mark.parametrize("steps", [0, 1])
@EVERY_OPTIMIZER
def test_step_is_taken_or_not_taken(variant: str, steps: int) -> None:
    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps(variant, *PAIRS["small"](), steps=steps, global_clipnorm=1.0)
        return training, training.apply

    check_all(prepare)


@pytest.mark.parametrize("kind", ["repeated_rows", "overlapping", "mixed"])
def test_step_with_gradients_of_other_kinds_is_taken_or_not_taken(kind: str) -> None:
    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps("Adam", *PAIRS[kind](), steps=1, clipnorm=1.0, loss_scale=8.0)
        return training, training.apply

    check_all(prepare)


def test_step_is_taken_or_not_taken_at_any_instruction() -> None:
    def prepare() -> tuple[Steps, Callable[[], Any]]:
        training = Steps("Adam", *PAIRS["small"](), steps=1, global_clipnorm=1.0)
        return training, training.apply

    check_all(prepare, opcodes=True)


@pytest.mark.parametrize("variant", ["Adam", "Nesterov"])
def test_nonfinite_step_is_skipped_and_counted_or_neither(variant: str) -> None:
    def prepare() -> tuple[Steps, Callable[[], Any]]:
        gradients, variables = PAIRS["small"]()
        training = Steps(variant, gradients, variables, steps=1, on_nonfinite="skip")
        gradients[0][3] = np.nan
        return training, training.apply

    check_all(prepare)


def test_every_optimizer_is_among_the_variants() -> None:
    names = {f"{name}Optimizer" for name, _ in VARIANTS.values()}
    assert names == set(fastclip.train.__all__) - {"Optimizer", "compute_gradients"}
