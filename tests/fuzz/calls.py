"""One fuzzed call: its arguments, the same call on copies, and what has to be true afterwards."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastclip
from fuzz.choices import Choices
from fuzz.entries import Case, Entry, Failure, Outcome
from support import oracle

#: What a call may raise; hostile objects raise Failure themselves.
ERRORS = (TypeError, ValueError, BufferError, MemoryError, OverflowError, fastclip.NonFiniteError)
HOSTILE_ERRORS = (*ERRORS, Failure)

SINGLE = ("clip_by_value", "clip_by_norm", "clip_by_average_norm")
LISTED = ("clip_by_global_norm", "clip_by_block_rms", "adaptive_clip", "global_norm", "tensor_norms")


class Finding(AssertionError):
    """A call did what it must not do."""


class Ended(NamedTuple):
    """A call that ended as it must.

    Attributes
    ----------
    how : str
        "returned", or the type of the exception.
    features : set of str
        What took part in it, for the choice of cases that are kept.
    length : int
        How many bytes were read.
    """

    how: str
    features: set[str]
    length: int


def check(data: bytes, with_torch: bool) -> Ended:
    """Makes the call that some bytes stand for, and checks it.

    Raises
    ------
    Finding
        If the call did not end as it must.
    """
    choices = Choices(data)
    case = Case(choices, with_torch)
    unraisable: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        return _check(case, choices, unraisable)
    finally:
        sys.unraisablehook = hook
        # Results over the memory are gone by now.
        for block in case.blocks:
            block.free()


def _check(case: Case, choices: Choices, unraisable: list[Any]) -> Ended:
    call = Call(case, choices)
    # The same call on copies tells what has to come out.
    expected = call.run_on_copies() if call.outcome is Outcome.READ else None
    result = call.run()
    try:
        call.compare(result, expected)
        ending = type(result).__name__ if isinstance(result, BaseException) else "returned"
    finally:
        del result, expected
        case.close()
    for block in case.blocks:
        if not block.guards_are_intact():
            raise Finding("bytes around a block were written")
    if unraisable:
        raise Finding(f"an exception was lost: {unraisable[0].exc_value!r}")
    return Ended(ending, {f"{feature} {ending}" for feature in call.features}, choices.position)


class Call:
    """A call of one of fastclip's functions."""

    def __init__(self, case: Case, choices: Choices) -> None:
        self.case = case
        self.name = choices.one_of((*SINGLE, *LISTED, *LISTED))
        self.is_single = self.name in SINGLE
        self.takes_out = self.name not in ("global_norm", "tensor_norms")
        self.entries: list[Entry | None] = self._entries(choices)
        self.parameters = [self._parameter(entry, choices) for entry in self.entries]
        self.shape = 0 if self.is_single else choices.one_of([0, 0, 0, 1, 2, 3])
        self.outputs = self._outputs(choices) if self.takes_out and choices.below(2) else None
        self.in_place = self.outputs is self.entries
        self.options, self.is_bad_option = self._options(choices)
        self.outcome = self._expected_outcome()
        role = "in place" if self.in_place else "output"
        self.features = {f"{self.name} shape {self.shape}", *(_feature(entry) for entry in self.entries)} | {
            f"{self.name} {role} {_feature(entry)}" for entry in self.outputs or ()
        }

    # --- arguments ------------------------------------------------------------------------------

    def _entries(self, choices: Choices) -> list[Entry | None]:
        if self.is_single:
            return [self.case.entry()]
        entries: list[Entry | None] = []
        for _ in range(choices.one_of([1, 2, 3, 2, 1, 0, 4, 5])):
            if choices.once_in(12):
                entries.append(None)
            elif entries and choices.once_in(12):
                entries.append(choices.one_of(entries))
            else:
                entries.append(self.case.entry())
        return entries

    def _parameter(self, entry: Entry | None, choices: Choices) -> Entry | None:
        if self.name != "adaptive_clip" or entry is None or entry.description is None:
            return None
        return self.case.entry(model=entry.description)

    def _outputs(self, choices: Choices) -> list[Entry | None]:
        style = choices.below(4)
        if style == 0:
            return self.entries
        outputs: list[Entry | None] = []
        for entry in self.entries:
            if entry is None:
                outputs.append(None)
            elif choices.once_in(12):
                outputs.append(self.case.entry())
            elif style == 1 and choices.below(2):
                outputs.append(entry)
            else:
                outputs.append(self.case.entry(model=entry.description))
        if style == 3 and choices.once_in(8):
            outputs.append(None)
        return outputs

    def _options(self, choices: Choices) -> tuple[dict[str, Any], bool]:
        bound = choices.one_of([0.5, 1e-3, 1e9, 0.0, math.inf, 2, 1e-300, -1.0, math.nan])
        bad = False
        if self.name in ("global_norm", "tensor_norms"):
            options: dict[str, Any] = {"ord": choices.one_of([2, 1, math.inf, 3, 0.5])}
        elif self.name == "clip_by_value":
            options = {"clip_value_min": choices.one_of([0, 0.25, -0.5]), "clip_value_max": bound}
        elif self.name == "clip_by_norm":
            options = {"clip_norm": bound, "axes": choices.one_of([None, 0, -1, (), (0, 1), 7])}
        elif self.name == "clip_by_global_norm":
            options = {
                "clip_norm": bound,
                "ord": choices.one_of([2, 2, 1, math.inf]),
                "on_nonfinite": choices.one_of(["propagate", "raise", "zero"]),
            }
            if choices.once_in(4):
                options["use_norm"] = choices.one_of([3.0, 0.0, math.inf])
        elif self.name == "clip_by_block_rms":
            options = {"threshold": bound}
        elif self.name == "adaptive_clip":
            options = {"clipping": bound}
        else:
            options = {"clip_norm": bound}
        if choices.once_in(24):
            bad = True
            options[next(iter(options))] = choices.one_of(["text", None, [1.0, 2.0], 1j])
        return options, bad

    def _expected_outcome(self) -> Outcome:
        inputs = [entry for entry in (*self.entries, *self.parameters) if entry is not None]
        outputs = [entry for entry in self.outputs or () if entry is not None]
        outcomes = [entry.outcome for entry in inputs] + [entry.outcome_as_output for entry in outputs]
        if Outcome.REFUSED in outcomes:
            return Outcome.REFUSED
        changes = any(entry.changes_containers for entry in (*inputs, *outputs))
        # Which containers are read before which tensors is open.
        if (
            changes
            and not self.is_single
            and (self.shape or self.outputs is not None or any(self.parameters))
        ):
            return Outcome.UNKNOWN
        if outputs and any(entry.is_lazy for entry in inputs):
            return Outcome.UNKNOWN  # the copies do not overlap as the memory may
        return Outcome.UNKNOWN if Outcome.UNKNOWN in outcomes else Outcome.READ

    def _container(self, values: list[Any]) -> Any:
        """Returns the values in a container; it is recorded, so that hostile entries can change it."""
        if self.is_single:
            return values[0]
        inner: list[Any]
        if self.shape == 1:
            return tuple(values)
        if self.shape == 2:
            inner = values[1:]
            self.case.containers.append(inner)
            return {"a": values[:1], "b": (inner, None)}
        if self.shape == 3:
            self.case.containers.append(values)
            return {"a": values}
        self.case.containers.append(values)
        return values

    # --- calls ----------------------------------------------------------------------------------

    def _run(self, get: Callable[[Entry], Any]) -> Any:
        def values(entries: list[Entry | None]) -> list[Any]:
            return [None if entry is None else get(entry) for entry in entries]

        function = getattr(fastclip, self.name)
        tensors = self._container(values(self.entries))
        options = dict(self.options)
        if self.in_place:
            options["out"] = tensors
        elif self.outputs is not None:
            options["out"] = self._container(values(self.outputs))
        positional = [tensors]
        if self.name == "adaptive_clip":
            positional = [self._container(values(self.parameters)), tensors]
        try:
            result = function(*positional, **options)
        except Exception as error:
            # The frames of the traceback hold arrays over the memory, which is freed.
            error.__traceback__ = None
            error.__context__ = error.__cause__ = None
            return error
        return result

    def run_on_copies(self) -> Any:
        """Makes the call on arrays over copies of all memory."""
        result = self._run(lambda entry: entry.twin)
        self.case.containers.clear()
        return result

    def run(self) -> Any:
        return self._run(lambda entry: entry.value)

    # --- checks ---------------------------------------------------------------------------------

    def compare(self, result: Any, expected: Any) -> None:
        """Checks how the call ended, what it returned, and what it wrote."""
        failed = isinstance(result, BaseException)
        hostile = self.outcome is not Outcome.READ
        if failed and not isinstance(result, HOSTILE_ERRORS if hostile else ERRORS):
            raise Finding(f"raised {type(result).__name__}: {result}") from result
        if failed and not isinstance(result, (Failure, MemoryError)) and not str(result):
            raise Finding(f"{type(result).__name__} without a message")
        if self.outcome is Outcome.REFUSED and not failed:
            raise Finding("a tensor was taken that has to be refused")
        if self.outcome is Outcome.READ:
            if isinstance(expected, BaseException) != failed:
                raise Finding(f"{self._ending(result)}, but on arrays {self._ending(expected)}")
            if failed and type(result) is not type(expected):
                raise Finding(f"raised {result!r}, but on arrays {expected!r}")
            if not failed:
                self._compare_results(result, expected)
            for block in self.case.blocks:
                if block.buffer.raw != bytes(block.twin):
                    raise Finding("memory differs from that after the call on arrays")
            return
        written = [] if failed else [e.description.block for e in self.outputs or () if e and e.description]
        for block in self.case.blocks:
            if block not in written and block.buffer.raw != block.before:
                raise Finding(
                    "memory was written that is no output" + (" by a call that failed" if failed else "")
                )

    @staticmethod
    def _ending(result: Any) -> str:
        return f"raised {result!r}" if isinstance(result, BaseException) else "returned"

    def _compare_results(self, result: Any, expected: Any) -> None:
        if self.name == "clip_by_global_norm":
            _assert_same(result[1], expected[1])
            result, expected = result[0], expected[0]
        if not self.takes_out:
            _assert_same(result, expected)
            return
        got = _leaves(result)
        wanted = _leaves(expected)
        if len(got) != len(wanted):
            raise Finding(f"{len(got)} results instead of {len(wanted)}")
        sources = self.entries if self.outputs is None else self.outputs
        for output, array, entry in zip(got, wanted, sources, strict=False):
            if entry is None:
                if output is not None:
                    raise Finding("a result for None")
            elif self.outputs is not None:
                if output is not entry.value:
                    raise Finding("the result is not the output that was passed")
            else:
                if type(output) is not entry.result_type:
                    raise Finding(f"a result of type {type(output)} instead of {entry.result_type}")
                _assert_same(_as_array(output), array)


def _as_array(output: Any) -> Any:
    if isinstance(output, np.ndarray):
        return output
    from support.tensor_kinds import from_torch

    return from_torch(output)


def _assert_same(got: Any, expected: Any) -> None:
    if type(got) is not type(expected):
        raise Finding(f"a result of type {type(got)} instead of {type(expected)}")
    if isinstance(got, (np.ndarray, np.generic)):
        if not oracle.same_bits(got, expected):
            raise Finding(f"a result of {got!r} instead of {expected!r}")
    elif got != expected and got == got:
        raise Finding(f"a result of {got!r} instead of {expected!r}")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in _leaves(entry)]
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in _leaves(entry)]
    return [value]


def _feature(entry: Entry | None) -> str:
    return "None" if entry is None else f"{type(entry.value).__name__} {entry.outcome.name}"
