"""Calls of fastclip's functions with torch tensors where a test passes arrays.

`install` replaces the functions of ``fastclip``. Inside `recording`, a replaced function turns each array
of its tensor arguments into a torch tensor over the same memory, and each tensor of the result back into an
array. Everything else, such as lists of numbers or arrays that torch has no tensor for, is passed as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastclip
from support.tensor_kinds import from_torch, to_torch

#: Each function with the names of its arguments that are tensors or containers of tensors.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "clip_by_value": ("t", "out"),
    "clip_by_norm": ("t", "out"),
    "clip_by_average_norm": ("t", "out"),
    "clip_by_global_norm": ("t_list", "out"),
    "global_norm": ("t_list",),
    "tensor_norms": ("t_list",),
    "clip_by_block_rms": ("t_list", "out"),
    "adaptive_clip": ("params", "grads", "out"),
}


NO_NEGATIVE_STRIDES = "torch has no negative strides"


@dataclass
class Record:
    """What was passed to the functions.

    Attributes
    ----------
    tensors : int
        The number of arrays that were passed as torch tensors.
    refused : set of str
        Why arrays were passed as arrays.
    """

    tensors: int = 0
    refused: set[str] = field(default_factory=set)


_record: Record | None = None


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Returns a context in which functions are called with tensors, and a record of these calls."""
    global _record
    _record = Record()
    try:
        yield _record
    finally:
        _record = None


def install() -> None:
    """Replaces the functions of fastclip. Tests may hold on to them from their import on."""
    for name in FUNCTIONS:
        function = getattr(fastclip, name)
        if not hasattr(function, "takes_arrays_as_tensors"):
            setattr(fastclip, name, _replacement(name, function))


def _replacement(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*positional: Any, **named: Any) -> Any:
        record = _record
        if record is None:
            return function(*positional, **named)
        try:
            bound = signature.bind(*positional, **named)
        except TypeError:
            return function(*positional, **named)
        conversion = Conversion(record, bound.arguments.get("out"))
        for argument in FUNCTIONS[name]:
            if argument in bound.arguments:
                bound.arguments[argument] = conversion.to_tensors(bound.arguments[argument])
        result = function(*bound.args, **bound.kwargs)
        if name in ("global_norm", "tensor_norms"):
            return result
        inputs = bound.arguments["t" if "t" in FUNCTIONS[name] else FUNCTIONS[name][-2]]
        if name == "clip_by_global_norm":
            clipped, norm = result
            assert type(result) is tuple
            return conversion.to_arrays(clipped, inputs), norm
        return conversion.to_arrays(result, inputs)

    call.takes_arrays_as_tensors = True  # type: ignore[attr-defined]
    return call


class Conversion:
    """The conversion of the arguments of one call, and of its result.

    The same array becomes the same tensor, and the same container the same container, so that what is in
    place stays in place.
    """

    def __init__(self, record: Record, out: Any) -> None:
        self.record = record
        self.converted: dict[int, tuple[Any, Any]] = {}
        self.originals: dict[int, Any] = {}
        self.written = {id(leaf) for leaf in leaves(out)}

    def to_tensors(self, value: Any) -> Any:
        known = self.converted.get(id(value))
        if known is not None:
            return known[1]
        made = self._to_tensors(value)
        # The originals are kept, so that no other object gets their identity.
        self.converted[id(value)] = (value, made)
        if made is not value:
            self.originals[id(made)] = value
        return made

    def _to_tensors(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self._to_tensor(value)
        if kind is fastclip.IndexedSlices:
            return fastclip.IndexedSlices(self.to_tensors(value.values), value.indices, value.dense_shape)
        if kind is list or kind is tuple:
            return kind([self.to_tensors(entry) for entry in value])
        if kind is dict:
            return {key: self.to_tensors(entry) for key, entry in value.items()}
        return value

    def _to_tensor(self, array: Any) -> Any:
        """Returns a tensor over the memory of an array, or the array if torch has no such tensor."""
        if not array.flags.writeable and id(array) in self.written:
            # Tensors cannot be read-only.
            self.record.refused.add("read-only output")
            return array
        if not array.dtype.isnative:
            self.record.refused.add("byte order")
            return array
        try:
            with warnings.catch_warnings():
                # torch warns that a read-only array becomes a tensor that can be written.
                warnings.simplefilter("ignore", UserWarning)
                tensor = to_torch(array)
        except (TypeError, ValueError) as error:
            self.record.refused.add(NO_NEGATIVE_STRIDES if "negative" in str(error) else str(error))
            return array
        assert tensor.data_ptr() == array.ctypes.data or not array.size
        self.record.tensors += 1
        return tensor

    def to_arrays(self, result: Any, inputs: Any) -> Any:
        """Returns a result with arrays in place of tensors, and checks that each is of its input's kind."""
        self._check_kinds(result, inputs)
        return self._to_arrays(result)

    def _check_kinds(self, result: Any, given: Any) -> None:
        if id(result) in self.originals or id(result) in self.written:
            return  # an output of the caller's, which may be of another kind than its input
        if _is_tensor(given):
            assert _is_tensor(result), f"{type(result)} for a tensor"
        elif isinstance(result, fastclip.IndexedSlices):
            self._check_kinds(result.values, given.values)
        elif type(result) is list:
            for entry, given_entry in zip(result, given, strict=True):
                self._check_kinds(entry, given_entry)
        elif type(result) is dict:
            for key, entry in result.items():
                self._check_kinds(entry, given[key])
        else:
            assert not _is_tensor(result), f"a tensor for {type(given)}"

    def _to_arrays(self, value: Any) -> Any:
        if id(value) in self.originals:
            return self.originals[id(value)]
        kind = type(value)
        if _is_tensor(value):
            return from_torch(value)
        if kind is fastclip.IndexedSlices:
            return fastclip.IndexedSlices(self._to_arrays(value.values), value.indices, value.dense_shape)
        if kind is list or kind is tuple:
            return kind([self._to_arrays(entry) for entry in value])
        if kind is dict:
            return {key: self._to_arrays(entry) for key, entry in value.items()}
        return value


def _is_tensor(value: Any) -> bool:
    import torch

    return type(value) is torch.Tensor


def leaves(value: Any) -> Iterator[Any]:
    """Yields the entries of nested lists, tuples and dicts, and the values of IndexedSlices."""
    if isinstance(value, fastclip.IndexedSlices):
        yield value.values
    elif type(value) in (list, tuple):
        for entry in value:
            yield from leaves(entry)
    elif type(value) is dict:
        for entry in value.values():
            yield from leaves(entry)
    else:
        yield value
