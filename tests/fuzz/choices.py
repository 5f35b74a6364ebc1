"""Decisions read from bytes, so that a fuzzer that changes bytes changes decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Decisions that some bytes encode. When the bytes are used up, every decision is the first one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def byte(self) -> int:
        if self.position >= len(self.data):
            return 0
        value = self.data[self.position]
        self.position += 1
        return value

    def below(self, count: int) -> int:
        """Returns a number from 0 to `count` - 1."""
        if count <= 256:
            return self.byte() % count
        return (self.byte() << 8 | self.byte()) % count

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def once_in(self, count: int) -> bool:
        """Whether something happens that should happen once in `count` cases."""
        return self.below(count) == count - 1
