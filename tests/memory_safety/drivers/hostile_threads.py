"""A program that calls functions while a thread or a signal handler changes their arguments.

``python -m drivers.hostile_threads SUBJECT VARIANT SECONDS`` calls the functions of an entry of SUBJECTS
repeatedly. With the variant ``thread`` another thread changes the arrays (their shape, strides and dtype,
within their memory) and the lists; with ``signal`` a timer's signal handler does; with ``both`` both do.
Arrays have guard zones before and after them. Every call must succeed or raise a documented exception, and
the guard zones must not change.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import fastclip
from fastclip import IndexedSlices
from support.caller_steps import CallerStep, Parameter
from support.training_cases import VARIANTS, build

DOCUMENTED = (TypeError, ValueError, IndexError, OverflowError, fastclip.NonFiniteError)
#: Phrases of the messages with which fastclip raises RuntimeError.
RUNTIME_ERRORS = ("in the middle of a step", "changed")
GUARD = 4096
LARGE, SMALL = 300_000, 24
SHAPES = {
    LARGE: [(500, 600), (600, 500), (LARGE,), (1, LARGE), (2, 3, 50_000), (LARGE // 2, 2)],
    SMALL: [(4, 6), (6, 4), (24,), (1, 24), (2, 3, 4), (12, 2)],
}


class Field:
    """Arrays between guard zones, and lists of them, with methods that change both at random.

    Parameters
    ----------
    seed : str
        Seed of the changes.
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.memory: list[Any] = []
        self.arrays: list[Any] = []
        self.first: list[tuple[tuple[int, ...], Any]] = []
        self.shapes: dict[int, list[tuple[int, ...]]] = {}
        self.lists: list[tuple[list[Any], list[Any]]] = []

    def array(self, size: int, dtype: Any = np.float32, shapes: list[tuple[int, ...]] | None = None) -> Any:
        """Returns a new array of the first of its shapes, which are `SHAPES[size]` by default."""
        dtype = np.dtype(dtype)
        shapes = shapes or SHAPES[size]
        raw = np.full(size * dtype.itemsize + 2 * GUARD, 0xA5, np.uint8)
        array = raw[GUARD:-GUARD].view(dtype).reshape(shapes[0])
        array[...] = np.linspace(-1, 1, size).reshape(array.shape).astype(dtype)
        self.memory.append(raw)
        self.arrays.append(array)
        self.first.append((array.shape, dtype))
        self.shapes[id(array)] = shapes
        return array

    def listed(self, entries: list[Any]) -> list[Any]:
        """Registers a list to be changed, and returns it; `restore` resets it to the current entries."""
        self.lists.append((entries, list(entries)))
        return entries

    def several(self) -> list[Any]:
        """Returns a list of two large arrays and many small ones."""
        return self.listed([self.array(LARGE), self.array(LARGE), *(self.array(SMALL) for _ in range(40))])

    def check(self) -> None:
        """Checks that the guard zones are unchanged."""
        for raw, (shape, dtype) in zip(self.memory, self.first, strict=True):
            ends = (raw[:GUARD], raw[-GUARD:])
            intact = all((end == 0xA5).all() for end in ends)
            assert intact, f"memory beside an array was written, of {dtype} and first {shape}"

    def restore(self) -> None:
        """Resets the layouts of all arrays and the entries of all lists."""
        for array, (shape, dtype) in zip(self.arrays, self.first, strict=True):
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                # Contiguous and one-dimensional first, since the other changes depend on that.
                size = int(np.prod(shape))
                self._lay_out(array, np.dtype(f"u{array.dtype.itemsize}"), (array.size,))
                self._lay_out(array, dtype, shape)
                assert array.size == size
        for changed, entries in self.lists:
            changed[:] = entries

    def _lay_out(self, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
        if not array.flags.c_contiguous:
            step = array.dtype.itemsize
            steps = [step * int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
            array.strides = tuple(steps)
        if array.dtype.itemsize == dtype.itemsize:
            array.dtype = dtype
        array.shape = shape

    def change(self) -> None:
        """Makes one random change."""
        kind = self.random.randrange(12)
        if kind == 0:
            self.restore()
        elif kind < 8:
            self.change_layout(self.random.choice(self.arrays[: self.random.choice([2, len(self.arrays)])]))
        elif kind == 8:
            # The same shape for all arrays of a size, so that outputs still fit their inputs.
            number = self.random.randrange(6)
            for array in self.arrays:
                if array.size in SHAPES and array.flags.c_contiguous:
                    shapes = self.shapes[id(array)]
                    array.shape = shapes[number % len(shapes)]
        elif self.lists:
            self.change_list(*self.random.choice(self.lists))

    def change_layout(self, array: Any) -> None:
        """Changes the shape, the strides or the dtype of an array, within its memory."""
        kind = self.random.randrange(5)
        if kind == 0 and array.ndim > 1:
            # The same elements in another order, or all strides zero.
            step, steps = array.dtype.itemsize, []
            for n in array.shape:
                steps.append(step)
                step *= n
            array.strides = tuple(steps) if self.random.randrange(2) else (0,) * array.ndim
        elif kind == 1:
            other = {4: ["f4", "i4", "u4"], 8: ["f8", "c8", "i8"], 2: ["f2", "u2"]}[array.dtype.itemsize]
            array.dtype = np.dtype(self.random.choice(other))
        elif array.size in SHAPES:
            if not array.flags.c_contiguous:
                self._lay_out(array, array.dtype, (array.size,))
            array.shape = self.random.choice(self.shapes[id(array)])

    def change_list(self, changed: list[Any], entries: list[Any]) -> None:
        """Changes a list."""
        kind = self.random.randrange(7)
        if kind == 0:
            changed.clear()
        elif kind == 1 and changed:
            changed.pop()
        elif kind == 2 and len(changed) < 500:
            changed.extend(self.random.choices(entries, k=20))
        elif kind == 3 and changed:
            changed[self.random.randrange(len(changed))] = self.random.choice(entries)
        elif kind == 4 and changed:
            changed[self.random.randrange(len(changed))] = None
        elif kind == 5:
            self.random.shuffle(changed)
        else:
            changed[:] = entries


# --- functions to call ----------------------------------------------------------------------------

Calls = list[Callable[[], Any]]


def _norms(field: Field) -> Calls:
    tensors = field.several()
    tree = {"a": tensors, "b": (tensors[0], None)}
    return [
        lambda: fastclip.global_norm(tensors),
        lambda: fastclip.tensor_norms(tensors),
        lambda: fastclip.global_norm(tensors, ord=3),
        lambda: fastclip.global_norm(tree),
    ]


class _Sum:
    def allreduce(self, array: Any) -> Any:
        return array.copy()


def _global(field: Field) -> Calls:
    tensors = field.several()
    clip = fastclip.clip_by_global_norm
    return [
        lambda: clip(tensors, 1.0),
        lambda: clip(tensors, 1.0, use_norm=3.0),
        lambda: clip(tensors, 1.0, comm=_Sum()),
        lambda: clip({"a": tensors}, 1.0),
    ]


def _norms_array(field: Field) -> Calls:
    norms = field.array(SMALL, np.float64, [(SMALL,), (1, SMALL), (SMALL,), (SMALL, 1)])
    tensors = field.listed([field.array(LARGE) for _ in range(4)])
    few = [tensors[i % 4] for i in range(SMALL)]
    clip = fastclip.clip_by_global_norm
    return [
        lambda: clip(few, 1e9, norms=norms),
        lambda: clip(few, 1e9, norms=norms, comm=_Sum()),
        lambda: clip((tensors * SMALL)[:SMALL], 1.0, norms=norms),
    ]


def _global_out(field: Field) -> Calls:
    tensors, outs = field.several(), field.several()
    clip = fastclip.clip_by_global_norm
    return [
        lambda: clip(tensors, 1.0, out=tensors),
        lambda: clip(tensors, 1.0, out=outs),
        lambda: clip(tensors, 1.0, out=outs, on_nonfinite="zero"),
        lambda: clip(tuple(tensors), 1.0, out=list(outs)),
    ]


def _one(field: Field) -> Calls:
    t, small, out = field.array(LARGE), field.array(SMALL), field.array(LARGE)
    bound = field.array(SMALL)
    clip = fastclip.clip_by_norm
    return [
        lambda: clip(t, 1.0),
        lambda: clip(t, 1.0, out=t),
        lambda: clip(t, 0.1, axes=[0], out=out),
        lambda: clip(t, 0.1, axes=[-1], out=t),
        lambda: clip(small, 0.1, axes=[0]),
        lambda: clip(small, bound, axes=[1]),
        lambda: clip(small, bound, axes=[0], out=small),
        lambda: fastclip.clip_by_average_norm(t, 1e-6, out=out),
    ]


def _value(field: Field) -> Calls:
    t, out, small = field.array(LARGE), field.array(LARGE), field.array(SMALL)
    low, high = field.array(LARGE), field.array(LARGE)
    clip = fastclip.clip_by_value
    return [
        lambda: clip(t, -0.5, 0.5),
        lambda: clip(t, -0.5, 0.5, out=t),
        lambda: clip(t, low, high, out=out),
        lambda: clip(t, low, 0.5),
        lambda: clip(small, -0.5, 0.5, out=small),
    ]


def _rules(field: Field) -> Calls:
    params, grads = field.several(), field.several()
    return [
        lambda: fastclip.clip_by_block_rms(grads, 0.1),
        lambda: fastclip.clip_by_block_rms(grads, 0.1, out=grads),
        lambda: fastclip.adaptive_clip(params, grads),
        lambda: fastclip.adaptive_clip(params, grads, out=grads),
        lambda: fastclip.adaptive_clip(params, grads, axes=[0]),
    ]


def _slices(field: Field) -> Calls:
    slices = IndexedSlices(field.array(LARGE), np.arange(500), (700, 600))
    few = IndexedSlices(field.array(SMALL), np.array([3, 1, 3, 0]), (5, 6))
    return [
        lambda: fastclip.clip_by_global_norm([slices], 1.0),
        lambda: fastclip.clip_by_norm(slices, 1.0),
        lambda: fastclip.clip_by_norm(slices, 1.0, out=slices),
        lambda: few.coalesce(),
        lambda: few.to_dense(),
    ]


def _optimizer(variant: str, rows: bool) -> Callable[[Field], Calls]:
    def make(field: Field) -> Calls:
        count = 12
        variables = [field.array(LARGE), *(field.array(SMALL) for _ in range(count))]
        gradients: list[Any] = [field.array(LARGE), *(field.array(SMALL) for _ in range(count))]
        half = field.array(LARGE, np.float16)
        if rows:
            gradients[0] = IndexedSlices(gradients[0][:3], np.array([499, 0, 499]))
            gradients[1] = IndexedSlices(gradients[1][:1], np.array([3]))
        optimizer = build(variant, global_clipnorm=1.0)
        pairs = field.listed(list(zip(gradients, variables, strict=True)))
        shared = field.listed([(variables[0], variables[0]), (gradients[2], variables[2])])
        counter = np.zeros((), np.int64)
        slot_names = optimizer._slot_names

        def load() -> None:
            optimizer.load_state_dict(optimizer.state_dict())

        def reshape_slots() -> None:
            for name in slot_names:
                slot = optimizer.get_slot(variables[0], name)
                # The array of the slot, and the arrays that are its bases.
                while isinstance(slot, np.ndarray):
                    if slot.size == LARGE:
                        with contextlib.suppress(AttributeError, ValueError):
                            slot.shape = field.random.choice(SHAPES[LARGE])
                    slot = slot.base

        return [
            lambda: optimizer.apply_gradients(pairs, counter),
            lambda: optimizer.apply_gradients(pairs[:1]),
            lambda: optimizer.apply_gradients(shared),
            lambda: [optimizer.get_slot(variable, name) for variable in variables for name in slot_names],
            lambda: optimizer.apply_gradients(pairs, counter),
            lambda: optimizer.state_dict(),
            load,
            lambda: optimizer.load_state_dict(optimizer.state_dict(), variables),
            lambda: optimizer.set_low_precision_copy(variables[0], half),
            lambda: optimizer.apply_gradients(pairs, counter),
            reshape_slots,
            lambda: optimizer.apply_gradients(pairs, counter),
            lambda: optimizer.variables(),
        ]

    return make


def _caller_slots(field: Field) -> Calls:
    sizes = [LARGE, *[SMALL] * 6]
    step = CallerStep("adam", clip="global_norm", bound=1.0)
    parameters = [
        Parameter(field.array(size), [field.array(size), field.array(size)], step_count=np.zeros(()))
        for size in sizes
    ]
    parameters[0].copy = field.array(LARGE, np.float16)
    for parameter in parameters:
        parameter.slots = field.listed(parameter.slots)
    gradients = [field.array(size) for size in sizes]
    return [
        lambda: step.take(gradients, parameters),
        lambda: step.take(gradients[:1], parameters[:1]),
        lambda: step.take([None, *gradients[1:]], parameters),
    ]


SUBJECTS: dict[str, Callable[[Field], Calls]] = {
    "norms": _norms,
    "global_norm": _global,
    "norms_array": _norms_array,
    "global_norm_out": _global_out,
    "one_tensor": _one,
    "value": _value,
    "rules": _rules,
    "slices": _slices,
    "caller_slots": _caller_slots,
    **{f"optimizer {variant}": _optimizer(variant, rows=False) for variant in VARIANTS},
    **{
        f"rows {variant}": _optimizer(variant, rows=True)
        for variant in ("GradientDescent", "Nesterov", "Adam")
    },
}


def main(subject: str, variant: str, seconds: str) -> None:
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    fastclip.set_num_threads(2)
    field = Field(f"{subject} {variant}")
    calls = SUBJECTS[subject](field)
    lock, stop = threading.Lock(), threading.Event()

    def change() -> None:
        # One change at a time: concurrent changes of an array could leave its memory.
        if lock.acquire(blocking=False):
            try:
                field.change()
            except (ValueError, AttributeError, TypeError, IndexError):
                # The array's dtype or strides do not allow the change, or the list has changed.
                pass
            finally:
                lock.release()

    def change_until_stopped() -> None:
        while not stop.is_set():
            change()

    def handler(*_: Any) -> None:
        change()
        change()

    thread = threading.Thread(target=change_until_stopped) if variant != "signal" else None
    sys.setswitchinterval(1e-5)
    if thread is not None:
        thread.start()
    if variant != "thread":
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 7e-4, 7e-4)
    succeeded = refused = 0
    end = time.monotonic() + float(seconds)
    try:
        while time.monotonic() < end:
            for call in calls:
                try:
                    call()
                    succeeded += 1
                except DOCUMENTED:
                    refused += 1
                except RuntimeError as error:
                    if not any(text in str(error) for text in RUNTIME_ERRORS):
                        raise
                    refused += 1
            field.check()
    finally:
        stop.set()
        if variant != "thread":
            signal.setitimer(signal.ITIMER_REAL, 0)
        if thread is not None:
            thread.join()
    # The arrays can be used normally afterwards.
    field.restore()
    for restored in field.arrays:
        restored[...] = 0.5
    for call in calls:
        try:
            call()
        except DOCUMENTED:
            # Some of these calls are invalid for any layout.
            refused += 1
    field.check()
    assert fastclip.global_norm([np.array([3.0, 4.0])]) == 5
    assert succeeded > 0
    print(f"{succeeded} calls succeeded, {refused} were refused")
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:4])
