"""Calls of every public function, for tests in which allocations fail.

Each case creates new arrays, and returns a call and the memory that must not change when the call raises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import fastclip
from fastclip import IndexedSlices
from support.caller_steps import RULES, CallerStep, Parameter
from support.training_cases import VARIANTS, build

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Number of float32 elements above which a call uses more than one thread.
LARGE = 400_000


@dataclass
class Prepared:
    """A call, and a function that returns all memory that the call could change, as bytes."""

    call: Callable[[], Any]
    contents: Callable[[], list[bytes]]


Case = Callable[[], Prepared]


def fingerprint(value: Any) -> Any:
    """Returns the types, dtypes, shapes and bytes of a result, for comparison."""
    if isinstance(value, IndexedSlices):
        return ("slices", fingerprint(value.values), fingerprint(value.indices), value.shape)
    if isinstance(value, (np.ndarray, np.generic)):
        return (type(value).__name__, str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return [(key, fingerprint(entry)) for key, entry in value.items()]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(fingerprint(entry) for entry in value)]
    return repr(value)


def memory(*values: Any) -> list[bytes]:
    """Returns the dtype, shape and bytes of all arrays in nested lists, dicts and slices."""
    contents: list[bytes] = []
    for value in values:
        if isinstance(value, np.ndarray):
            contents.append(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, IndexedSlices):
            contents += memory(value.values, value.indices)
        elif isinstance(value, dict):
            contents += memory(*value.values())
        elif isinstance(value, (list, tuple)):
            contents += memory(*value)
    return contents


# --- tensors ------------------------------------------------------------------------------------

#: Random numbers by their count, generated once.
_CACHE: dict[int, Any] = {}


def numbers(size: int, dtype: Any = np.float32) -> Any:
    """Returns a new array of random numbers, the same on every call."""
    if size not in _CACHE:
        _CACHE[size] = np.random.default_rng(size).standard_normal(size)
    dtype = np.dtype(dtype)
    array = _CACHE[size].astype(dtype)
    if dtype.kind == "c":
        array += array[::-1] * dtype.type(1j)
    return array


def matrix(rows: int, columns: int, dtype: Any = np.float32) -> Any:
    return numbers(rows * columns, dtype).reshape(rows, columns)


TENSORS: dict[str, Callable[[], Any]] = {
    "small": lambda: [numbers(10), numbers(3)],
    "medium": lambda: [numbers(3000)],
    "large": lambda: [numbers(LARGE)],
    "large_and_small": lambda: [numbers(LARGE), None, numbers(5), numbers(LARGE + 7)],
    "many": lambda: [numbers(7 + i % 3) for i in range(300)],
    "strided": lambda: [numbers(6000)[::2], numbers(20)[::-1]],
    "large_strided": lambda: [numbers(2 * LARGE)[::2]],
    "transposed": lambda: [matrix(60, 50).T, matrix(8, 6)[1:, ::3]],
    "large_transposed": lambda: [matrix(800, 500).T],
    "holes": lambda: [matrix(900, 700)[:, 3:600]],
    "float16": lambda: [numbers(3000, np.float16), numbers(10, np.float16)[::3]],
    "bfloat16": lambda: [numbers(3000, BFLOAT16), matrix(5, 7, BFLOAT16).T],
    "large_float16": lambda: [numbers(2 * LARGE, np.float16)],
    "large_bfloat16": lambda: [numbers(4 * LARGE, BFLOAT16)[::2]],
    "float64": lambda: [numbers(3000, np.float64), numbers(9)],
    "extreme": lambda: [numbers(3000, np.float64) * 1e306, numbers(200_000, np.float64) * 1e306],
    "complex64": lambda: [numbers(3000, np.complex64)],
    "complex128": lambda: [matrix(30, 20, np.complex128).T],
    "dict": lambda: {"w": matrix(30, 4), "none": None, "deep": [numbers(5), (numbers(6), None)]},
    "slices": lambda: [IndexedSlices(matrix(10, 30), [3, 1, 3, 0, 2, 9, 9, 8, 7, 6], (12, 30)), numbers(4)],
    "array_likes": lambda: [[1.0, 2.0, 3.0], numbers(30)],
    "scalars": lambda: [np.array(3.0, np.float32), np.empty((0, 3), np.float32)],
}


class Sum:
    """A communicator of one process."""

    def allreduce(self, array: Any) -> Any:
        return array.copy()


def reading(function: Callable[[Any], Any], kind: str) -> Case:
    """Returns a call that reads tensors."""

    def make() -> Prepared:
        tensors = TENSORS[kind]()
        return Prepared(lambda: function(tensors), lambda: memory(tensors))

    return make


def writing(function: Callable[[Any, Any], Any], kind: str, in_place: bool) -> Case:
    """Returns a call that writes to its inputs or to other arrays."""

    def make() -> Prepared:
        tensors = TENSORS[kind]()
        out = tensors if in_place else copy.deepcopy(tensors)
        return Prepared(lambda: function(tensors, out), lambda: memory(tensors, out))

    return make


WRITABLE = [kind for kind in TENSORS if kind != "array_likes"]
LARGE_KINDS = [kind for kind in TENSORS if "large" in kind or kind in ("holes", "extreme")]
A_FEW = ["small", "large", "many", "transposed", "dict", "slices"]


def _norms() -> Iterator[tuple[str, Case]]:
    for kind in TENSORS:
        yield f"global_norm/{kind}", reading(fastclip.global_norm, kind)
        yield f"tensor_norms/{kind}", reading(fastclip.tensor_norms, kind)
    for kind in ("small", "large", "large_strided", "complex64", "complex128", "extreme"):
        for order in (1, 3, np.inf):
            call = lambda tensors, order=order: fastclip.global_norm(tensors, ord=order)  # noqa: E731
            yield f"global_norm/{kind}/ord={order}", reading(call, kind)
    for kind in A_FEW:
        yield (
            f"global_norm/{kind}/comm",
            reading(lambda tensors: fastclip.global_norm(tensors, comm=Sum()), kind),
        )
    yield "free_cached_memory", lambda: Prepared(lambda: fastclip.free_cached_memory() >= 0, lambda: [])


def _global() -> Iterator[tuple[str, Case]]:
    clip = fastclip.clip_by_global_norm
    for kind in TENSORS:
        yield f"fresh/{kind}", reading(lambda tensors: clip(tensors, 1.0), kind)
    for kind in WRITABLE:
        yield f"in_place/{kind}", writing(lambda tensors, out: clip(tensors, 1.0, out=out), kind, True)
        yield f"out/{kind}", writing(lambda tensors, out: clip(tensors, 1.0, out=out), kind, False)
    for kind in A_FEW:
        yield f"unclipped/{kind}", reading(lambda tensors: clip(tensors, 1e9), kind)
        yield f"use_norm/{kind}", reading(lambda tensors: clip(tensors, 1.0, use_norm=np.float32(7)), kind)
        yield (
            f"comm/{kind}",
            writing(lambda tensors, out: clip(tensors, 1.0, comm=Sum(), out=out), kind, True),
        )
        for order in (1, 2.5, np.inf):
            call = lambda tensors, order=order: clip(tensors, 1.0, ord=order)  # noqa: E731
            yield f"ord={order}/{kind}", reading(call, kind)
        yield f"norms/{kind}", _with_norms(kind, in_place=True, comm=False)
        yield f"norms_and_comm/{kind}", _with_norms(kind, in_place=False, comm=True)
        for policy in ("propagate", "raise", "zero"):
            yield f"nonfinite={policy}/{kind}", _nonfinite(kind, policy)


def _with_norms(kind: str, in_place: bool, comm: bool) -> Case:
    def make() -> Prepared:
        tensors = TENSORS[kind]()
        norms = np.full(2 * len(tensors_in(tensors)), -1.0)[::2]

        def call() -> Any:
            return fastclip.clip_by_global_norm(
                tensors, 1.0, out=tensors if in_place else None, norms=norms, comm=Sum() if comm else None
            )

        return Prepared(call, lambda: memory(tensors, norms))

    return make


def tensors_in(value: Any) -> list[Any]:
    """Returns the tensors in a container."""
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in tensors_in(entry)]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in tensors_in(entry)]
    return [] if value is None else [value]


def _nonfinite(kind: str, policy: Any) -> Case:
    def make() -> Prepared:
        tensors = TENSORS[kind]()
        first = tensors_in(tensors)[0]
        (first.values if isinstance(first, IndexedSlices) else first).flat[1] = np.nan
        return Prepared(
            lambda: fastclip.clip_by_global_norm(tensors, 1.0, out=tensors, on_nonfinite=policy),
            lambda: memory(tensors),
        )

    return make


ONE_TENSOR: dict[str, Callable[[], Any]] = {
    "small": lambda: numbers(10),
    "matrix": lambda: matrix(60, 50),
    "transposed": lambda: matrix(60, 50).T,
    "large": lambda: matrix(800, 500),
    "large_transposed": lambda: matrix(800, 500).T,
    "long_rows": lambda: matrix(3, 200_000),
    "strided": lambda: matrix(60, 100)[:, ::2],
    "float16": lambda: matrix(60, 50, np.float16),
    "bfloat16": lambda: matrix(60, 50, BFLOAT16).T,
    "float64": lambda: matrix(60, 50, np.float64),
    "complex64": lambda: matrix(60, 50, np.complex64),
    "slices": lambda: IndexedSlices(matrix(10, 30), list(range(10)), (12, 30)),
    "three_axes": lambda: numbers(24_000).reshape(20, 30, 40).transpose(2, 0, 1),
}


def one_tensor(
    function: Callable[..., Any], kind: str, where: str, bound_of: Callable[[Any], Any] | None = None
) -> Case:
    """Returns a call with one tensor, its output and, with `bound_of`, a bound computed from the tensor."""

    def make() -> Prepared:
        tensor = ONE_TENSOR[kind]()
        bound = () if bound_of is None else (bound_of(tensor),)
        out = {"fresh": None, "in_place": tensor, "out": copy.deepcopy(tensor)}[where]
        return Prepared(lambda: function(tensor, out, *bound), lambda: memory(tensor, out))

    return make


PLACES = ("fresh", "in_place", "out")


def _one() -> Iterator[tuple[str, Case]]:
    clip = fastclip.clip_by_norm
    for kind in ONE_TENSOR:
        for where in PLACES:
            yield f"norm/{kind}/{where}", one_tensor(lambda t, out: clip(t, 1.0, out=out), kind, where)
            yield (
                f"average/{kind}/{where}",
                one_tensor(lambda t, out: fastclip.clip_by_average_norm(t, 1e-5, out=out), kind, where),
            )
        if kind == "small":
            continue
        for axes in ([0], [1], [0, 1]):
            for where in PLACES:
                call = lambda t, out, axes=axes: clip(t, 0.1, axes=axes, out=out)  # noqa: E731
                yield f"axes={axes}/{kind}/{where}", one_tensor(call, kind, where)
    for kind in ("matrix", "large", "transposed", "bfloat16", "complex64", "float64"):
        for where in PLACES:
            shape = ONE_TENSOR[kind]().shape
            bounds = np.linspace(0.0, 2.0, shape[0] * shape[1]).reshape(shape)
            call = lambda t, out, bounds=bounds: clip(t, bounds, axes=[1], out=out)  # noqa: E731
            yield f"bound_per_element/{kind}/{where}", one_tensor(call, kind, where)
            rows = np.linspace(0.0, 2.0, shape[0]).reshape(-1, 1)
            call = lambda t, out, rows=rows: clip(t, rows, axes=[1], out=out)  # noqa: E731
            yield f"bound_per_row/{kind}/{where}", one_tensor(call, kind, where)
    for order in (1, 3, np.inf):
        call = lambda t, out, order=order: clip(t, 0.1, axes=[1], ord=order, out=out)  # noqa: E731
        yield f"axes=[1]/ord={order}", one_tensor(call, "large", "in_place")


def _value() -> Iterator[tuple[str, Case]]:
    clip = fastclip.clip_by_value
    for kind in ONE_TENSOR:
        if kind == "complex64":
            continue
        for where in PLACES:
            yield (
                f"scalars/{kind}/{where}",
                one_tensor(lambda t, out: clip(t, -0.5, 0.5, out=out), kind, where),
            )
            yield (
                f"arrays/{kind}/{where}",
                one_tensor(
                    lambda t, out: (
                        clip(t, np.full(t.shape[-1:], -0.5), np.float32(0.25), out=out)
                        if not isinstance(t, IndexedSlices)
                        else clip(t, -0.5, np.float32(0.25), out=out)
                    ),
                    kind,
                    where,
                ),
            )
            yield (
                f"elements/{kind}/{where}",
                one_tensor(
                    lambda t, out, upper: clip(t, -0.5, upper, out=out),
                    kind,
                    where,
                    lambda t: np.abs(t.values if isinstance(t, IndexedSlices) else t),
                ),
            )

    def integers() -> Prepared:
        tensor = np.arange(-3000, 3000, dtype=np.int16).reshape(60, 100)[:, ::-1]
        return Prepared(lambda: clip(tensor, -5, np.int16(7), out=tensor), lambda: memory(tensor))

    yield "integers", integers


def _rules() -> Iterator[tuple[str, Case]]:
    for kind in TENSORS:
        yield f"block_rms/{kind}", reading(lambda tensors: fastclip.clip_by_block_rms(tensors, 0.5), kind)
        if kind in WRITABLE:
            yield (
                f"block_rms/{kind}/in_place",
                writing(lambda tensors, out: fastclip.clip_by_block_rms(tensors, 0.5, out=out), kind, True),
            )
    for kind in WRITABLE:
        if kind == "slices":
            continue
        yield (
            f"adaptive/{kind}",
            reading(lambda tensors: fastclip.adaptive_clip(tensors, tensors, 0.01), kind),
        )

        def make(kind: str = kind) -> Prepared:
            params, grads = TENSORS[kind](), TENSORS[kind]()
            return Prepared(
                lambda: fastclip.adaptive_clip(params, grads, 0.01, out=grads), lambda: memory(params, grads)
            )

        yield f"adaptive/{kind}/in_place", make


# --- optimizers ---------------------------------------------------------------------------------


class Steps:
    """An optimizer with variables, gradients and low-precision copies, whose state can be compared."""

    def __init__(
        self,
        variant: str,
        gradients: list[Any],
        variables: list[Any],
        *,
        copies: dict[int, Any] | None = None,
        steps: int = 0,
        lost: int = 0,
        **options: Any,
    ) -> None:
        self.step = np.zeros((), np.int64)
        self.optimizer = build(variant, self.step, **options)
        self.gradients, self.variables = gradients, variables
        self.copies = copies or {}
        for position, narrow in self.copies.items():
            self.optimizer.set_low_precision_copy(variables[position], narrow)
        self.pairs = list(zip(gradients, variables, strict=True))
        for _ in range(steps):
            self.apply()
        if lost:
            # The step that is tried drops these variables.
            self.optimizer.apply_gradients([(numbers(7), numbers(7)) for _ in range(lost)], self.step)

    def apply(self) -> None:
        self.optimizer.apply_gradients(self.pairs, self.step)

    def contents(self) -> list[bytes]:
        """Returns everything that a step may change or must not change, as bytes."""
        optimizer = self.optimizer
        names = optimizer._slot_names
        slots = [[optimizer.get_slot(variable, name) for name in names] for variable in self.variables]
        state = optimizer.state_dict()
        return [
            *memory(self.gradients, self.variables, list(self.copies.values()), self.step),
            repr([[slot is not None for slot in each] for each in slots]).encode(),
            *memory(slots),
            *(f"{key} ".encode() + value.tobytes() for key, value in state.items()),
            f"{optimizer.last_norm!r} {optimizer.skipped_steps} {optimizer.get_slot_names()}".encode(),
        ]


def step(variant: str, make_pairs: Callable[[], tuple[list[Any], list[Any]]], **more: Any) -> Case:
    def make() -> Prepared:
        gradients, variables = make_pairs()
        arguments = {**more, "copies": more["copies"](variables)} if "copies" in more else more
        training = Steps(variant, gradients, variables, **arguments)
        return Prepared(training.apply, training.contents)

    return make


def _rows(values: Any, indices: list[int]) -> IndexedSlices:
    return IndexedSlices(values, indices)


PAIRS: dict[str, Callable[[], tuple[list[Any], list[Any]]]] = {
    "small": lambda: ([numbers(10), None, numbers(3)], [numbers(10), numbers(5), numbers(3)]),
    "mixed": lambda: (
        [numbers(3000, np.float16), matrix(50, 60, BFLOAT16), numbers(6000, np.float64)[::2]],
        [numbers(3000), matrix(60, 50).T, numbers(3000, np.float64)],
    ),
    "large": lambda: ([numbers(LARGE)], [numbers(LARGE)]),
    "large_strided": lambda: ([matrix(800, 500).T], [matrix(500, 1000)[:, ::-1][:, :800]]),
    "many": lambda: ([numbers(7) for _ in range(300)], [numbers(7) for _ in range(300)]),
    "several": lambda: ([numbers(7) for _ in range(30)], [numbers(7) for _ in range(30)]),
    "rows": lambda: ([_rows(matrix(4, 30), [0, 3, 5, 6])], [matrix(20, 30)]),
    "repeated_rows": lambda: ([_rows(matrix(4, 30, np.float16), [5, 0, 5, 6])], [matrix(20, 30)]),
    "rows_of_strided": lambda: (
        [_rows(matrix(4, 30), [5, 0, 5, 6]), numbers(3)],
        [matrix(30, 20).T, numbers(3)],
    ),
    "overlapping": lambda: _overlapping(),
}


def _overlapping() -> tuple[list[Any], list[Any]]:
    buffer = numbers(3000)
    return [buffer[:-1], numbers(5)], [buffer[1:], numbers(5)]


def _optimizers() -> Iterator[tuple[str, Case]]:
    for variant in VARIANTS:
        for kind in ("small", "large_strided", "repeated_rows"):
            for steps in (0, 1):
                yield f"{variant}/{kind}/step {steps + 1}", step(variant, PAIRS[kind], steps=steps)


def _caller_step(rule: str, gradients: list[Any], variables: list[Any], **options: Any) -> Case:
    def make() -> Prepared:
        count = RULES[rule][0]
        parameters = []
        for variable in variables:
            slots = [np.full(variable.shape, 0.5, variable.dtype) for _ in range(count)]
            parameters.append(Parameter(variable.copy(), slots, step_count=np.zeros(())))
        parameters[0].copy = np.zeros(parameters[0].variable.shape, np.float16)
        caller = CallerStep(rule, **options)
        held = [[p.variable, *p.slots, p.copy, p.step_count] for p in parameters]
        contents = lambda: memory(gradients, *held, caller.skipped, caller.report)  # noqa: E731
        return Prepared(lambda: caller.take(gradients, parameters), contents)

    return make


def _caller_slots() -> Iterator[tuple[str, Case]]:
    for rule in RULES:
        for kind in ("small", "mixed", "overlapping", "large"):
            yield f"{rule}/{kind}", _caller_step(rule, *PAIRS[kind](), clip="global_norm", bound=0.5)
        yield f"{rule}/nan", _caller_step(rule, *_with_nan(), on_nonfinite="skip")


def _gradient_options() -> Iterator[tuple[str, Case]]:
    for variant in ("Adam", "Nesterov", "GradientDescent"):
        for kind in PAIRS:
            for steps in (0, 1):
                label = f"{variant}/{kind}/step {steps + 1}"
                yield label, step(variant, PAIRS[kind], steps=steps, global_clipnorm=0.5, loss_scale=4.0)
        yield f"{variant}/value", step(variant, PAIRS["rows_of_strided"], clipvalue=0.1)
        yield f"{variant}/norm", step(variant, PAIRS["mixed"], steps=1, clipnorm=0.1)
        for kind in ("small", "several", "large"):
            yield f"{variant}/{kind}/lost variables", step(variant, PAIRS[kind], steps=1, lost=5)
        for policy in ("skip", "raise"):
            yield f"{variant}/{policy}", step(variant, _with_nan, steps=0, on_nonfinite=policy)
        yield f"{variant}/skip above", step(variant, PAIRS["mixed"], steps=0, skip_above=1e-3)
        copies = lambda variables: {  # noqa: E731
            0: np.zeros(variables[0].shape, np.float16),
            2: np.zeros(variables[2].shape, np.float32)[::-1],
        }
        yield f"{variant}/copies", step(variant, PAIRS["mixed"], copies=copies, steps=1)
        yield (
            f"{variant}/copies of rows",
            step(variant, PAIRS["rows"], copies=lambda v: {0: np.zeros(v[0].shape, BFLOAT16)}),
        )


def _with_nan() -> tuple[list[Any], list[Any]]:
    gradients, variables = PAIRS["mixed"]()
    gradients[1][0, 0] = np.nan
    return gradients, variables


def _rebuilt(value: Any) -> Any:
    """Returns a new optimizer with the state of another and the same Variables, as unpickling makes it.

    The arrays are not pickled: NumPy raises SystemError if that runs out of memory.
    """
    optimizer = value[1] if isinstance(value, tuple) else value
    function, arguments, state = optimizer.__reduce_ex__(4)
    rebuilt = function(*arguments)
    rebuilt.__setstate__(state)
    return rebuilt


def _state() -> Iterator[tuple[str, Case]]:
    def call_method(variant: str, method: str, kind: str) -> Case:
        def make() -> Prepared:
            training = Steps(variant, *PAIRS[kind](), steps=1, global_clipnorm=1.0)
            optimizer, variable = training.optimizer, training.variables[0]
            state = optimizer.state_dict()
            for key, value in state.items():
                if key.endswith(".0") and value.dtype.kind == "f":
                    value += 1
            names = optimizer.get_slot_names()
            narrow = np.zeros(variable.shape, np.float16)
            calls: dict[str, Callable[[], Any]] = {
                "state_dict": optimizer.state_dict,
                "get_slot": lambda: [optimizer.get_slot(variable, name) for name in names],
                "variables": optimizer.variables,
                "load_state_dict": lambda: optimizer.load_state_dict(state),
                "load_state_dict, variables": lambda: optimizer.load_state_dict(state, training.variables),
                "set_low_precision_copy": lambda: optimizer.set_low_precision_copy(variable, narrow),
                "forget": lambda: optimizer.forget(training.variables[-1]),
                "variables, lost": optimizer.variables,
            }
            if method.endswith("lost"):
                optimizer.apply_gradients([(numbers(7), numbers(7))], training.step)
            return Prepared(calls[method], lambda: [*training.contents(), *memory(narrow, state)])

        return make

    def copied(duplicate: Callable[[Any], Any], kind: str) -> Case:
        def make() -> Prepared:
            gradients, arrays = PAIRS[kind]()
            training = Steps("Adam", gradients, [fastclip.Variable(array) for array in arrays], steps=1)
            duplicate(training.optimizer)
            # The result is not compared: it is other objects in each run.
            call = lambda: bool(duplicate((training.variables, training.optimizer)))  # noqa: E731
            values = [variable.value for variable in training.variables]
            return Prepared(call, lambda: [*training.contents(), *memory(values)])

        return make

    for kind in ("small", "several"):
        yield f"{kind}/deepcopy", copied(copy.deepcopy, kind)
        yield f"{kind}/reduce", copied(_rebuilt, kind)
    for variant in ("Adam", "Nesterov", "RMSProp-centered", "AdagradDA"):
        for kind in ("small", "large", "several"):
            for method in (
                "state_dict",
                "get_slot",
                "variables",
                "load_state_dict",
                "load_state_dict, variables",
                "set_low_precision_copy",
                "forget",
                "variables, lost",
            ):
                yield f"{variant}/{kind}/{method}", call_method(variant, method, kind)


# --- calls that raise ---------------------------------------------------------------------------


def _errors() -> Iterator[tuple[str, Case]]:
    def refused(call: Callable[[], Any], *contents: Any) -> Prepared:
        return Prepared(call, lambda: memory(*contents))

    def clip(tensors: Any, **arguments: Any) -> Prepared:
        call = lambda: fastclip.clip_by_global_norm(tensors, 1.0, **arguments)  # noqa: E731
        return refused(call, tensors, arguments)

    def read_only() -> Prepared:
        array = numbers(30)
        array.flags.writeable = False
        return clip([array], out=[array])

    def overlap(strided: bool) -> Prepared:
        buffer = matrix(60, 50)
        if strided:
            return clip([buffer[:, :30], numbers(3)], out=[buffer[:, 10:40], numbers(3)])
        return clip([buffer[1:], numbers(3)], out=[buffer[:-1], numbers(3)])

    def step_error(gradients: list[Any], variables: list[Any]) -> Prepared:
        training = Steps("Adam", gradients, variables)
        return Prepared(training.apply, training.contents)

    def wrong_variable() -> Prepared:
        gradient, variable = numbers(3), numbers(3, np.float16)
        optimizer = build("Adam")
        call = lambda: optimizer.apply_gradients([(gradient, variable)])  # noqa: E731
        return Prepared(call, lambda: memory(gradient, variable, optimizer.state_dict()))

    yield "integers", lambda: clip([np.arange(5), numbers(3)])
    yield "integers in many", lambda: clip([*(numbers(3) for _ in range(300)), np.arange(5)])
    yield "no container", lambda: clip(numbers(30))
    yield "objects", lambda: clip([np.array([None]), numbers(3)])
    yield "shape", lambda: clip([numbers(30)], out=[numbers(31)])
    yield "type", lambda: clip([numbers(30)], out=[numbers(30, np.float64)])
    yield "structure", lambda: clip({"a": numbers(3)}, out={"b": numbers(3)})
    yield "read-only", read_only
    yield "overlap", lambda: overlap(False)
    yield "overlap, strided", lambda: overlap(True)
    yield "norms", lambda: clip([numbers(3)], norms=np.zeros(2))
    yield "nonfinite", lambda: clip({"a": numbers(3) * np.nan, "b": [numbers(3)]}, on_nonfinite="raise")
    yield (
        "nonfinite, many",
        lambda: clip([numbers(3) * np.nan for _ in range(300)], on_nonfinite="raise"),
    )
    yield (
        "nonfinite, norms",
        lambda: clip([numbers(3) * np.nan, None, numbers(70_000)], on_nonfinite="raise", norms=np.zeros(2)),
    )

    def nonfinite_step() -> Prepared:
        training = Steps("Adam", *_with_nan(), on_nonfinite="raise", clipnorm=1.0)
        return Prepared(training.apply, training.contents)

    yield "nonfinite, step", nonfinite_step
    yield "bound", lambda: refused(lambda: fastclip.clip_by_norm(numbers(3), float("nan")))
    yield "axes", lambda: refused(lambda: fastclip.clip_by_norm(numbers(3), 1.0, axes=[7]))
    yield "value of complex", lambda: refused(lambda: fastclip.clip_by_value(numbers(3, np.complex64), 0, 1))
    yield "gradient's shape", lambda: step_error([numbers(3)], [numbers(4)])
    yield "gradient's type", lambda: step_error([np.arange(3)], [numbers(3)])
    yield "variable's type", wrong_variable

    def twice() -> Prepared:
        variable = numbers(30)
        return step_error([numbers(30), numbers(30)], [variable, variable])

    yield "variable twice", twice
    yield "row outside", lambda: step_error([_rows(matrix(2, 3), [0, 9])], [matrix(5, 3)])
    yield "no gradient", lambda: step_error([None], [matrix(5, 3)])

    def wrong_state() -> Prepared:
        training = Steps("Adam", *PAIRS["small"](), steps=1)
        state = training.optimizer.state_dict()
        del state["v.2"]
        return Prepared(lambda: training.optimizer.load_state_dict(state), training.contents)

    yield "incomplete state", wrong_state


GROUPS: dict[str, dict[str, Case]] = {
    "norms": dict(_norms()),
    "global": dict(_global()),
    "one": dict(_one()),
    "value": dict(_value()),
    "rules": dict(_rules()),
    "optimizers": dict(_optimizers()),
    "caller_slots": dict(_caller_slots()),
    "gradient_options": dict(_gradient_options()),
    "state": dict(_state()),
    "errors": dict(_errors()),
}
