"""Calls of fastclip's functions with torch tensors or arrays on a device where a test passes arrays.

`install` replaces the functions of ``fastclip``. Inside `recording`, a replaced function turns each array
of its tensor arguments into a tensor, and each tensor of the result back into an array. Everything else, such
as lists of numbers or arrays that there is no tensor for, is passed as it is. Torch tensors are over the
memory of the arrays. Arrays on a device are copies, whose elements are copied back after the call.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    "accumulate": ("acc", "grads"),
}


NO_NEGATIVE_STRIDES = "torch has no negative strides"


class Refused(Exception):
    """An array or a call that there are no tensors for, and why."""


class Kind(Protocol):
    """A kind of tensors."""

    def check_call(self, name: str, arguments: dict[str, Any]) -> None:
        """Raises `Refused` if a call is passed with arrays as a whole."""

    def to_tensor(self, array: Any) -> Any:
        """Returns a tensor for an array, or raises `Refused`."""

    def to_array(self, tensor: Any) -> Any:
        """Returns an array for a tensor that a function has returned."""

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is such a tensor."""

    def norm(self, norm: Any) -> Any:
        """Returns a norm, or several, as functions return it for arrays."""

    def after_call(self, converted: list[tuple[Any, Any]]) -> None:
        """Is called with the pairs of arrays and their tensors, also if the call has raised."""


class Torch:
    """Torch tensors over the memory of arrays."""

    def check_call(self, name: str, arguments: dict[str, Any]) -> None:
        pass

    def to_tensor(self, array: Any) -> Any:
        try:
            with warnings.catch_warnings():
                # torch warns that a read-only array becomes a tensor that can be written.
                warnings.simplefilter("ignore", UserWarning)
                tensor = to_torch(array)
        except (TypeError, ValueError) as error:
            raise Refused(NO_NEGATIVE_STRIDES if "negative" in str(error) else str(error)) from error
        assert tensor.data_ptr() == array.ctypes.data or not array.size
        return tensor

    def to_array(self, tensor: Any) -> Any:
        return from_torch(tensor)

    def is_tensor(self, value: Any) -> bool:
        import torch

        return type(value) is torch.Tensor

    def norm(self, norm: Any) -> Any:
        return norm

    def after_call(self, converted: list[tuple[Any, Any]]) -> None:
        pass


class OnDevice:
    """Arrays on a device, for the calls that take such."""

    #: The arguments that such calls lack, or take one value of.
    LACKS = ("comm", "norms")
    DTYPES = ("float32", "float16", "bfloat16", "int32")

    def check_call(self, name: str, arguments: dict[str, Any]) -> None:
        if name in ("clip_by_block_rms", "adaptive_clip", "accumulate"):
            raise Refused("a function that devices lack")
        given = [argument for argument in self.LACKS if arguments.get(argument) is not None]
        if given:
            raise Refused(f"{given[0]}=")
        if arguments.get("ord", 2) not in (2, np.inf):
            raise Refused("an order that devices lack")
        for bound in ("clip_value_min", "clip_value_max", "clip_norm"):
            if np.ndim(arguments.get(bound, 0)) > 0:
                raise Refused("a bound that is an array")
        arrays: dict[int, Any] = {}
        for argument in FUNCTIONS[name]:
            if has_slices(arguments.get(argument)):
                raise Refused("a sparse gradient")
            for leaf in leaves(arguments.get(argument)):
                if leaf is None:
                    continue
                if argument == "out" and isinstance(leaf, np.ndarray) and not leaf.flags.writeable:
                    raise Refused("an output that is read-only")
                if type(leaf) is not np.ndarray or not self._has_type(leaf.dtype):
                    raise Refused("an entry that is no array of a type that devices have")
                if leaf.dtype == np.int32 and name != "clip_by_value":
                    raise Refused("integers")
                arrays[id(leaf)] = leaf
        shared = list(arrays.values())
        if any(np.shares_memory(a, b) for i, a in enumerate(shared) for b in shared[:i]):
            raise Refused("arrays that share memory")

    def _has_type(self, dtype: Any) -> bool:
        return dtype.isnative and dtype.name in self.DTYPES

    def to_tensor(self, array: Any) -> Any:
        from fastclip import gpu

        return gpu.asarray(array)

    def to_array(self, tensor: Any) -> Any:
        return tensor.numpy()

    def is_tensor(self, value: Any) -> bool:
        from fastclip import gpu

        return type(value) is gpu.DeviceArray

    def norm(self, norm: Any) -> Any:
        from fastclip import gpu

        if isinstance(norm, list):
            return np.array([self.norm(entry) for entry in norm], np.float32 if not norm else None)
        return np.asarray(norm)[()] if isinstance(norm, gpu.DeviceNorm) else norm

    def after_call(self, converted: list[tuple[Any, Any]]) -> None:
        for array, tensor in converted:
            if array.flags.writeable:
                np.copyto(array, tensor.numpy())


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
_kind: Kind


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Returns a context in which functions are called with tensors, and a record of these calls."""
    global _record
    _record = Record()
    try:
        yield _record
    finally:
        _record = None


def install(kind: Kind) -> None:
    """Replaces the functions of fastclip. Tests may hold on to them from their import on."""
    global _kind
    _kind = kind
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
        try:
            _kind.check_call(name, bound.arguments)
        except Refused as reason:
            record.refused.add(str(reason))
            return function(*positional, **named)
        conversion = Conversion(record, bound.arguments.get("out"))
        for argument in FUNCTIONS[name]:
            if argument in bound.arguments:
                bound.arguments[argument] = conversion.to_tensors(bound.arguments[argument])
        try:
            result = function(*bound.args, **bound.kwargs)
        finally:
            _kind.after_call(conversion.pairs())
        if name in ("global_norm", "tensor_norms", "accumulate"):
            return _kind.norm(result)
        inputs = bound.arguments["t" if "t" in FUNCTIONS[name] else FUNCTIONS[name][-2]]
        if name == "clip_by_global_norm":
            clipped, norm = result
            assert type(result) is tuple
            return conversion.to_arrays(clipped, inputs), _kind.norm(norm)
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
        """Returns a tensor for an array, or the array if there is no such tensor."""
        if not array.flags.writeable and id(array) in self.written:
            # Tensors cannot be read-only.
            self.record.refused.add("read-only output")
            return array
        if not array.dtype.isnative:
            self.record.refused.add("byte order")
            return array
        try:
            tensor = _kind.to_tensor(array)
        except Refused as reason:
            self.record.refused.add(str(reason))
            return array
        self.record.tensors += 1
        return tensor

    def pairs(self) -> list[tuple[Any, Any]]:
        """Returns the arrays that were converted, with their tensors."""
        return [pair for pair in self.converted.values() if _kind.is_tensor(pair[1])]

    def to_arrays(self, result: Any, inputs: Any) -> Any:
        """Returns a result with arrays in place of tensors, and checks that each is of its input's kind."""
        self._check_kinds(result, inputs)
        return self._to_arrays(result)

    def _check_kinds(self, result: Any, given: Any) -> None:
        if id(result) in self.originals or id(result) in self.written:
            return  # an output of the caller's, which may be of another kind than its input
        if _kind.is_tensor(given):
            assert _kind.is_tensor(result), f"{type(result)} for a tensor"
        elif isinstance(result, fastclip.IndexedSlices):
            self._check_kinds(result.values, given.values)
        elif type(result) is list:
            for entry, given_entry in zip(result, given, strict=True):
                self._check_kinds(entry, given_entry)
        elif type(result) is dict:
            for key, entry in result.items():
                self._check_kinds(entry, given[key])
        else:
            assert not _kind.is_tensor(result), f"a tensor for {type(given)}"

    def _to_arrays(self, value: Any) -> Any:
        if id(value) in self.originals:
            return self.originals[id(value)]
        kind = type(value)
        if _kind.is_tensor(value):
            return _kind.to_array(value)
        if kind is fastclip.IndexedSlices:
            return fastclip.IndexedSlices(self._to_arrays(value.values), value.indices, value.dense_shape)
        if kind is list or kind is tuple:
            return kind([self._to_arrays(entry) for entry in value])
        if kind is dict:
            return {key: self._to_arrays(entry) for key, entry in value.items()}
        return value


def has_slices(value: Any) -> bool:
    """Whether nested lists, tuples and dicts have IndexedSlices."""
    if type(value) is dict:
        return any(has_slices(entry) for entry in value.values())
    if type(value) in (list, tuple):
        return any(has_slices(entry) for entry in value)
    return isinstance(value, fastclip.IndexedSlices)


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
