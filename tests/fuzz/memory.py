"""Blocks of memory between guard bytes, and descriptions of tensors inside them."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fuzz.choices import Choices
from support.dtypes import FLOAT_DTYPES, INTEGER_DTYPES

Array = npt.NDArray[Any]

#: Bytes before and after a block, which nobody writes. Under AddressSanitizer there are none, so that it
#: notices reads and writes of the very next byte.
GUARD = 64
GUARD_BYTE = 0xA5
_is_sanitized = hasattr(ctypes.CDLL(None), "__asan_init")

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.restype = None
_libc.free.argtypes = [ctypes.c_void_p]

_rng = np.random.default_rng(17)
#: Bytes of ordinary values of each dtype, and bytes of any kind, among which are NaN and infinities.
_ORDINARY: dict[np.dtype[Any], bytes] = {
    **{dtype: _rng.standard_normal(8192).astype(dtype).tobytes() for dtype in FLOAT_DTYPES},
    **{dtype: _rng.integers(0, 100, 8192).astype(dtype).tobytes() for dtype in INTEGER_DTYPES},
}
_ANY = _rng.bytes(200_000)


class Block:
    """Allocated memory with the values of a dtype, between guard bytes."""

    def __init__(self, size: int, dtype: np.dtype[Any], choices: Choices) -> None:
        self.size = size
        self.guard = 0 if _is_sanitized else GUARD
        whole = size + 2 * self.guard
        self._allocation: int = _libc.malloc(max(whole, 1))
        self.address = self._allocation + self.guard
        ctypes.memset(self._allocation, GUARD_BYTE, whole)
        source = _ANY if choices.once_in(8) else _ORDINARY[dtype]
        start = choices.below(16) * dtype.itemsize
        if choices.once_in(12):
            ctypes.memset(self.address, 0, size)
        else:
            repeated = source[start:] * (1 + size // (len(source) - start))
            ctypes.memmove(self.address, repeated, size)
        self.buffer = (ctypes.c_char * size).from_address(self.address)
        self.before = self.buffer.raw
        self.twin = bytearray(self.before)

    def guards_are_intact(self) -> bool:
        front = ctypes.string_at(self._allocation, self.guard)
        back = ctypes.string_at(self.address + self.size, self.guard)
        return front == back == bytes([GUARD_BYTE]) * self.guard

    def free(self) -> None:
        _libc.free(self._allocation)


@dataclass
class Description:
    """A tensor inside a block.

    Attributes
    ----------
    block : Block
    dtype : dtype
    shape, strides : tuple of int
        In elements.
    offset : int
        Bytes from the beginning of the block to the first element.
    """

    block: Block
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def address(self) -> int:
        return self.block.address + self.offset

    def _array(self, memory: Any) -> Array:
        byte_strides = [stride * self.dtype.itemsize for stride in self.strides]
        # The constructor checks that the description is inside the block.
        return np.ndarray(self.shape, self.dtype, memory, self.offset, byte_strides)

    def array(self) -> Array:
        """Returns an array over the memory."""
        return self._array(self.block.buffer)

    def twin(self) -> Array:
        """Returns an array over the block's copy, where a call is made whose effect is compared."""
        return self._array(self.block.twin)


def describe(choices: Choices, dtype: np.dtype[Any], blocks: list[Block]) -> Description:
    """Returns a tensor of any layout, in a block of its own, or in one that is shared with others."""
    if blocks and choices.once_in(8):
        return _inside(choices, dtype, choices.one_of(blocks))
    shape = _shape(choices)
    strides = _strides(choices, shape)
    low, high = _extent(shape, strides)
    size = dtype.itemsize
    lead = choices.one_of([0, 0, 0, size, 3 * size, 1])
    tail = choices.one_of([0, 0, size, 3])
    block = Block(lead + (high - low) * size + tail, dtype, choices)
    blocks.append(block)
    return Description(block, dtype, shape, strides, lead - low * size)


def like(choices: Choices, model: Description, blocks: list[Block]) -> Description:
    """Returns a tensor with the dtype and shape of another, in memory of its own."""
    strides = _strides(choices, model.shape)
    low, high = _extent(model.shape, strides)
    size = model.dtype.itemsize
    lead = choices.one_of([0, 0, size, 1])
    block = Block(lead + (high - low) * size, model.dtype, choices)
    blocks.append(block)
    return Description(block, model.dtype, model.shape, strides, lead - low * size)


def _inside(choices: Choices, dtype: np.dtype[Any], block: Block) -> Description:
    """Returns a tensor of one axis somewhere in a block."""
    room = block.size // dtype.itemsize
    if not room:
        return Description(block, dtype, (0,), (1,), 0)
    first = choices.below(min(room, 64))
    stride = choices.one_of([1, 1, 2, 0, -1])
    if stride > 0:
        count = choices.below((room - first + stride - 1) // stride + 1)
    elif stride < 0:
        count = choices.below(first + 2)
    else:
        count = choices.below(6)
    return Description(block, dtype, (count,), (stride,), first * dtype.itemsize)


def _shape(choices: Choices) -> tuple[int, ...]:
    if choices.once_in(12):
        return (choices.below(3000),)
    return tuple(choices.one_of([1, 2, 3, 4, 5, 0]) for _ in range(choices.one_of([1, 2, 3, 2, 1, 0, 4, 5])))


def _strides(choices: Choices, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns strides in elements, of one of the usual layouts or of none."""
    order = list(range(len(shape)))
    style = choices.below(8)
    if style == 7:
        return tuple(choices.below(15) - 7 for _ in shape)
    if style in (1, 2):
        for i in range(len(order)):
            j = choices.below(len(order)) if style == 2 else len(order) - 1 - i
            order[i], order[j] = (order[j], order[i]) if style == 2 or i < j else (order[i], order[j])
    strides = [0] * len(shape)
    run = 1
    for axis in reversed(order):
        step = choices.one_of([1, 2]) if style in (3, 4) else 1
        strides[axis] = run * step
        run *= max(shape[axis], 1) * step
    if style in (4, 5):
        strides = [-stride if choices.below(2) else stride for stride in strides]
    if style == 6:
        strides = [0 if choices.below(2) else stride for stride in strides]
    return tuple(strides)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Returns the lowest element of a tensor relative to its first one, and the end after the highest."""
    if not math.prod(shape):
        return 0, 0
    ends = [stride * (side - 1) for stride, side in zip(strides, shape, strict=True)]
    return sum(min(0, end) for end in ends), sum(max(0, end) for end in ends) + 1
