"""Arguments of a fuzzed call: tensors of every kind, broken ones, and objects that are hostile."""

from __future__ import annotations

import ctypes
import enum
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastclip
from fuzz.choices import Choices
from fuzz.memory import Block, Description, describe, like
from support.dlpack_capsules import (
    CPU,
    CUDA,
    IS_COPIED,
    READ_ONLY,
    DLTensor,
    ExchangeTable,
    Exporter,
    ManagedTensor,
    UnversionedExporter,
    table_capsule,
)
from support.dtypes import BFLOAT16, COMPLEX_DTYPES, INTEGER_DTYPES, REAL_DTYPES


class Outcome(enum.Enum):
    """What a call has to do with an argument."""

    READ = enum.auto()
    REFUSED = enum.auto()
    #: Either, but nothing else than an error of a documented type.
    UNKNOWN = enum.auto()


class Failure(Exception):
    """What hostile objects raise."""


@dataclass
class Entry:
    """One tensor argument.

    Attributes
    ----------
    value : object
        The argument.
    twin : ndarray or None
        An array over a copy of the memory, for the call whose result is compared.
    outcome, outcome_as_output : Outcome
        What a call has to do with it as an input and as an output.
    description : Description or None
        The memory, if the argument has any.
    result_type : type
        The type that a result for this argument has.
    changes_containers : bool
        Whether the argument changes the containers of the call while they are read.
    is_lazy : bool
        Whether the argument stands for other numbers than its memory holds; `twin` is then no view of a copy.
    """

    value: Any
    twin: Any
    outcome: Outcome = Outcome.READ
    outcome_as_output: Outcome = Outcome.READ
    description: Description | None = None
    result_type: type = np.ndarray
    changes_containers: bool = False
    is_lazy: bool = False


class Case:
    """The arguments of one call, and all that was allocated for them."""

    def __init__(self, choices: Choices, with_torch: bool) -> None:
        self.choices = choices
        self.with_torch = with_torch
        self.blocks: list[Block] = []
        self.exporters: list[Exporter] = []
        #: The containers of the call, which hostile exporters change.
        self.containers: list[list[Any]] = []

    def dtype(self) -> np.dtype[Any]:
        options = (*REAL_DTYPES, np.dtype(np.float32), *COMPLEX_DTYPES)
        if self.choices.once_in(12):
            return self.choices.one_of(INTEGER_DTYPES)
        return self.choices.one_of(options)

    def entry(self, dtype: np.dtype[Any] | None = None, model: Description | None = None) -> Entry:
        """Returns an argument; with `model`, one of its dtype and shape."""
        choices = self.choices
        if model is None:
            made = describe(choices, self.dtype() if dtype is None else dtype, self.blocks)
        else:
            made = like(choices, model, self.blocks)
        kinds = [*_KINDS, _torch_tensor, _torch_tensor] if self.with_torch else _KINDS
        entry = choices.one_of(kinds)(self, made)
        entry.description = made
        return entry

    def close(self) -> None:
        """Frees everything, and checks that each capsule was freed once."""
        for exporter in self.exporters:
            exporter.close()

    def exporter(self, make: Callable[[], ManagedTensor], kind: type[Exporter] = Exporter) -> Exporter:
        exporter = kind(make)
        self.exporters.append(exporter)
        return exporter


# --- tensors ------------------------------------------------------------------------------------


def _fields(made: Description) -> dict[str, Any]:
    return {"data": made.address, "shape": made.shape, "strides": made.strides, "dtype": made.dtype}


def _exporter(case: Case, made: Description) -> Entry:
    fields = _fields(made)
    choices = case.choices
    writable = Outcome.READ
    twin = made.twin()
    if choices.once_in(6):
        fields["flags"] = choices.one_of([READ_ONLY, IS_COPIED, READ_ONLY | IS_COPIED])
        twin.flags.writeable = False
        writable = Outcome.REFUSED
    shift = choices.one_of([0, 0, 1, 64, made.dtype.itemsize])
    if shift and made.address > shift:
        fields |= {"data": made.address - shift, "byte_offset": shift}
    if twin.flags.c_contiguous and choices.below(2):
        fields["strides"] = None
    if not twin.size and choices.below(2):
        fields |= {"data": 0, "byte_offset": 0}
    fields["version"] = choices.one_of([(1, 0), (1, 1), (1, 3), (1, 9)])
    return Entry(case.exporter(lambda: ManagedTensor(**fields)), twin, outcome_as_output=writable)


def _unversioned_exporter(case: Case, made: Description) -> Entry:
    fields = _fields(made) | {"version": None}
    kind = case.choices.one_of([UnversionedExporter, Exporter])
    exporter = case.exporter(lambda: ManagedTensor(**fields), kind)
    return Entry(exporter, made.twin(), outcome_as_output=Outcome.REFUSED)


def _array(case: Case, made: Description) -> Entry:
    value, twin = made.array(), made.twin()
    if case.choices.once_in(8):
        value.flags.writeable = twin.flags.writeable = False
    return Entry(value, twin)


def _buffer(case: Case, made: Description) -> Entry:
    if made.dtype == BFLOAT16:
        return _array(case, made)
    value, twin = memoryview(made.array()), made.twin()  # type: ignore[arg-type]
    if case.choices.once_in(6):
        value = value.toreadonly()
        twin.flags.writeable = False
    return Entry(value, twin)


def _torch_tensor(case: Case, made: Description) -> Entry:
    """Returns a torch tensor, in some cases one with lazy bits or one that requires grad."""
    import torch

    from support.tensor_kinds import to_torch

    array, twin = made.array(), made.twin()
    if any(stride < 0 for stride in array.strides):
        return _array(case, made)
    try:
        tensor = to_torch(array)
    except (TypeError, ValueError):
        return _array(case, made)
    style = case.choices.below(8)
    if style >= 6 and made.address % made.dtype.itemsize:
        style = 0  # torch's own conversion of such tensors needs aligned memory, and ends the process without
    if style == 7 and made.dtype.kind == "c":
        return _lazy(tensor.conj(), to_torch(twin).conj())
    if style == 6 and made.dtype.kind == "f":
        return _lazy(torch._neg_view(tensor), torch._neg_view(to_torch(twin)))
    if style == 5 and made.dtype.kind in "fc":
        return Entry(tensor.detach().requires_grad_(), twin, result_type=torch.Tensor)
    return Entry(tensor, twin, result_type=torch.Tensor)


def _lazy(tensor: Any, twin: Any) -> Entry:
    from support.tensor_kinds import from_torch

    # torch makes NaNs quiet where it negates.
    resolved = from_torch(twin)
    # In another order elements add up to other last bits.
    has_same_order = [stride * resolved.itemsize for stride in tensor.stride()] == list(resolved.strides)
    outcome = Outcome.READ if has_same_order else Outcome.UNKNOWN
    return Entry(tensor, resolved, outcome, Outcome.UNKNOWN, result_type=type(tensor), is_lazy=True)


# --- the table of C functions -------------------------------------------------------------------


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
def _tensor_from_object(value: Any, out: int) -> int:
    if value.tensor is None:
        return -1
    ctypes.memmove(out, ctypes.addressof(value.tensor), ctypes.sizeof(DLTensor))
    return 0


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _unused(first: int, second: int) -> int:
    return -1


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


_TABLE = ExchangeTable(
    1,
    3,
    None,
    _address(_unused),
    _address(_unused),
    _address(_unused),
    _address(_tensor_from_object),
    _address(_unused),
)


class Tabled(Exporter):
    """An exporter whose type has a table of C functions, and whose ``__dlpack__`` gives the same tensor."""

    __dlpack_c_exchange_api__ = table_capsule(_TABLE)
    tensor: DLTensor | None = None


def _tabled(case: Case, made: Description) -> Entry:
    fields = _fields(made)
    exporter = case.exporter(lambda: ManagedTensor(**fields), Tabled)
    # What the table gives belongs to the exporter.
    owner = ManagedTensor(**fields)
    case.exporters[-1].exports.append(owner)
    if not case.choices.once_in(8):
        exporter.tensor = owner._structure.tensor  # type: ignore[attr-defined]
        outcome = Outcome.READ
    else:
        outcome = Outcome.UNKNOWN
    return Entry(exporter, made.twin(), outcome, Outcome.UNKNOWN)


# --- broken capsules ----------------------------------------------------------------------------

_FAULTS: tuple[dict[str, Any], ...] = (
    {"device": CUDA},
    {"device": (99, 0)},
    {"device": (-1, -1)},
    {"dtype": (3, 64)},
    {"dtype": (6, 8)},
    {"dtype": (10, 8)},
    {"dtype": (2, 24)},
    {"dtype": (2, 128)},
    {"dtype": (4, 32)},
    {"dtype": (5, 32)},
    {"dtype": (255, 255)},
    {"lanes": 0},
    {"lanes": 2},
    {"lanes": 65535},
    {"ndim": -1},
    {"ndim": -(2**31)},
    {"ndim": 65},
    {"ndim": 2**31 - 1},
    {"shape": None, "ndim": 1},
    {"shape": (-1,)},
    {"shape": (-(2**63), 3), "strides": (1, 1)},
    {"shape": (2**62, 4), "strides": (0, 0)},
    {"shape": (2**32, 2**32), "strides": (0, 0)},
    {"shape": (2**62 + 1, 4), "strides": (0, 0)},
    {"shape": (2, 3), "strides": (2**62, 1)},
    {"shape": (2, 3), "strides": (-(2**62), 1)},
    {"shape": (2, 3), "strides": (-(2**63), 1)},
    {"shape": (2, 3), "strides": (-(2**58), 1)},
    {"shape": (2, 3), "strides": (2**63 - 1, 2**63 - 1)},
    {"shape": (2,), "strides": (1,), "data": 0},
    {"shape": (2,), "strides": (1,), "data": 0, "byte_offset": 64},
    {"shape": (2,), "strides": (1,), "byte_offset": 2**64 - 1},
    {"version": (2, 0)},
    {"version": (2**32 - 1, 0)},
    {"name": b"not a dltensor"},
    {"name": b"used_dltensor_versioned", "has_deleter": False},
    {"name": b"dltensor_versione"},
)


def _broken(case: Case, made: Description) -> Entry:
    fields = _fields(made) | case.choices.one_of(_FAULTS)
    if case.choices.below(2):
        fields |= case.choices.one_of(_FAULTS)
    if fields.get("version") is None and "name" not in fields and case.choices.below(2):
        fields["version"] = None
    if isinstance(fields["shape"], tuple) and fields["strides"] is not None and "ndim" not in fields:
        # Two faults may have come together: the strides have to be as many as the sides.
        fields["strides"] = (*fields["strides"], *[1] * len(fields["shape"]))[: len(fields["shape"])]
    if fields.get("ndim", 0) == 65 and fields["shape"] is not None:
        fields |= {"shape": (*fields["shape"], *[1] * 65)[:65], "strides": [1] * 65}
    if fields.get("ndim", 0) == 1 and isinstance(fields["shape"], tuple) and len(fields["shape"]) != 1:
        del fields["ndim"]
    exporter = case.exporter(lambda: ManagedTensor(**fields))
    return Entry(exporter, None, Outcome.REFUSED, Outcome.REFUSED)


# --- hostile objects ----------------------------------------------------------------------------


def _raise(error: type[BaseException]) -> Any:
    raise error("hostile")


def _custom(**attributes: Any) -> Any:
    return type("Hostile", (), attributes)()


class LyingList(list[Any]):
    """A list that lies about its length, and changes while it is read."""

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Any]:
        self.append(1.0)
        return super().__iter__()


class LyingDict(dict[str, Any]):
    def items(self) -> Any:
        return [("a", np.ones(2)), ("a", np.ones(3)), "bc"]

    def __len__(self) -> int:
        return -1


class FailingList(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        raise Failure("hostile")

    def __iter__(self) -> Iterator[Any]:
        raise Failure("hostile")


_cycle: list[Any] = []
_cycle.append(_cycle)


#: Makers of objects that no call can take, or may take in some way.
_HOSTILE: tuple[Callable[[], Any], ...] = (
    lambda: "text",
    lambda: b"bytes",
    lambda: object(),
    lambda: (x for x in [np.ones(2)]),
    lambda: np.ones(2, object),
    lambda: np.array(["a"]),
    lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: np.ones(2, ">f4"),
    lambda: 1.5,
    lambda: 10**400,
    lambda: [1.0, [2.0]],
    lambda: {"a": {1: None}},
    lambda: LyingList([np.ones(2)]),
    lambda: LyingDict(a=np.ones(2)),
    lambda: FailingList([np.ones(2)]),
    lambda: _custom(__dlpack__=lambda self, **options: _raise(Failure)),
    lambda: _custom(__dlpack__=lambda self, **options: _raise(TypeError), __dlpack_device__=lambda self: CPU),
    lambda: _custom(__dlpack__=lambda self, **options: None, __dlpack_device__=lambda self: CPU),
    lambda: _custom(__dlpack__=None, __dlpack_device__=None),
    lambda: _custom(__dlpack__=lambda self, **options: 1, __dlpack_device__=lambda self: (1, 0)),
    lambda: _custom(
        __dlpack__=lambda self, **options: np.ones(2).__dlpack__(),
        __dlpack_device__=lambda self: _raise(Failure),
    ),
    lambda: _custom(__dlpack__=property(lambda self: _raise(Failure))),
    lambda: _custom(__getattr__=lambda self, name: _raise(Failure)),
    lambda: _custom(__getattribute__=lambda self, name: _raise(Failure)),
    lambda: _custom(__array__=lambda self, *args, **options: _raise(Failure)),
    lambda: _custom(__array__=lambda self, *args, **options: "text"),
    lambda: _custom(__len__=lambda self: 2**62, __getitem__=lambda self, index: 1.0),
    lambda: _custom(__dlpack_c_exchange_api__=1),
    lambda: _custom(__class__=np.ndarray),
    lambda: _custom(__module__="torch", shape=(2,), dtype="float32", device="cpu"),
    lambda: _cycle,
    lambda: np.ones(3).view(np.recarray),
)


def _hostile(case: Case, made: Description) -> Entry:
    value = case.choices.one_of(_HOSTILE)()
    return Entry(value, None, Outcome.UNKNOWN, Outcome.UNKNOWN)


def _changing(case: Case, made: Description) -> Entry:
    """Returns an exporter that changes the lists of the call, or calls fastclip, when it is asked."""
    fields = _fields(made)
    containers = case.containers
    action = case.choices.below(6)

    class Changing(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            for container in containers:
                if action == 0:
                    container.clear()
                elif action == 1:
                    container.extend([np.full(3, np.nan)] * 5)
                elif action == 2:
                    container.reverse()
                elif action == 3:
                    container[:] = [None] * len(container)
                elif action == 4:
                    fastclip.global_norm([np.ones(3)])
                else:
                    gc.collect(0)
            return super().__dlpack__(**options)

    exporter = case.exporter(lambda: ManagedTensor(**fields), Changing)
    return Entry(exporter, made.twin(), changes_containers=action < 4)


def _once(case: Case, made: Description) -> Entry:
    """Returns an exporter that hands out the same capsule again and again."""
    fields = _fields(made)

    class Once(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            return self.exports[0].capsule if self.exports else super().__dlpack__(**options)

    exporter = case.exporter(lambda: ManagedTensor(**fields), Once)
    # It depends on the call how often it asks, if the tensor is in it more than once.
    return Entry(exporter, made.twin(), Outcome.UNKNOWN, Outcome.UNKNOWN)


_KINDS: tuple[Callable[[Case, Description], Entry], ...] = (
    _exporter,
    _exporter,
    _exporter,
    _array,
    _array,
    _buffer,
    _unversioned_exporter,
    _tabled,
    _broken,
    _broken,
    _hostile,
    _changing,
    _once,
)

__all__ = ["Case", "Entry", "Failure", "Outcome"]
