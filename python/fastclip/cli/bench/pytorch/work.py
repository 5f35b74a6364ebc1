"""What the rows of ``fastclip bench --torch`` share: tensors, contenders with a check, and the limit.

PyTorch is imported only where a row is prepared.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastclip import _core
from fastclip.cli.bench.clipping.limit import gradient_buffer
from fastclip.cli.bench.inputs.arrays import Array, filled, normal_block, sum_of_squares
from fastclip.cli.bench.inputs.shapes import Shape
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.pytorch.benchmark_rows import IN_PLACE, TorchRow

# Standard deviations of the elements, which are normally distributed.
DEVIATION = 0.01
_PARAMETER_DEVIATION = 0.02
# PyTorch's norm is computed in float32: for GPT-2 small it is wrong by a thousandth.
NORM_TOLERANCE = 5e-3
# How many elements of the first tensor are compared with what they have to be.
_CHECKED = 256


@dataclass
class CheckedContender(Contender):
    """Contender that knows what its first call has to do.

    Attributes
    ----------
    check : callable
        Takes the result of the first call, and raises AssertionError if the call was wrong.
    """

    check: Callable[[Any], None] = lambda result: None


@dataclass(frozen=True)
class Work:
    """Contenders of a row.

    Attributes
    ----------
    contenders : dict of str to callable
        Functions that make the contenders.
    limit : Contender
        Moves the bytes, and does nothing else.
    """

    contenders: Mapping[str, Callable[[], CheckedContender]]
    limit: Contender


class Gradients:
    """Gradients of a row, which `refresh` restores before each call of each contender.

    Some contenders write them, and in training the backward pass has written them just before.

    Attributes
    ----------
    tensors : list of Tensor
        The gradients, which all contenders share.
    norm : float
        The norm of all of them.
    """

    def __init__(self, row: TorchRow) -> None:
        block = normal_block(1742, row.elements, DEVIATION)
        self.tensors = [_filled_tensor(shape, block) for shape in row.shapes]
        self.arrays: list[Array] = [tensor.numpy() for tensor in self.tensors]
        self._originals = [array.copy() for array in self.arrays]
        from_numpy = importlib.import_module("torch").from_numpy
        self._sources = [from_numpy(array) for array in self._originals]
        self.norm = math.sqrt(sum(map(sum_of_squares, self._originals)))

    def refresh(self) -> None:
        """Restore the gradients."""
        for tensor, original in zip(self.tensors, self._sources, strict=True):
            tensor.copy_(original)

    @property
    def start(self) -> Array:
        """The first elements of the first gradient, in float64."""
        return first_elements(self._originals[0])


def first_elements(array: Array) -> Array:
    """Return the first elements of an array, in float64."""
    return array.reshape(-1)[:_CHECKED].astype(np.float64)


def parameter_tensors(row: TorchRow) -> list[Any]:
    """Return new tensors of the shapes of a row, with the same values in each call."""
    block = normal_block(2024, row.elements, _PARAMETER_DEVIATION)
    return [_filled_tensor(shape, block) for shape in row.shapes]


def _filled_tensor(shape: Shape, block: Array) -> Any:
    tensor = importlib.import_module("torch").empty(shape)
    filled(tensor.numpy(), block)
    return tensor


def torch_function(name: str) -> Callable[..., Any]:
    """Return a function of `torch.nn.utils`, also while `fastclip.torch.patch` has replaced it."""
    originals: Any = importlib.import_module("fastclip.torch._originals")
    function: Callable[..., Any] = originals.ORIGINALS[name]
    if not originals.is_of_pytorch(function):
        raise RuntimeError(f"{name} of torch.nn.utils was replaced by that of {function.__module__}")
    return function


def limit(row: TorchRow, gradients: Sequence[Array], *, refreshed: bool) -> Contender:
    """Return the contender that makes the passes of the row and nothing else, with plain SIMD loops.

    The loops are those of :mod:`fastclip.cli.bench.clipping.limit`. Passes that read are over a buffer of the
    size of all gradients, which is restored before each call where the gradients are. The pass that reads and
    writes is over that buffer if the gradients are written, and otherwise over one of the size of what is.
    """
    passes = row.limit_passes
    source, refresh = gradient_buffer(gradients, refreshed=refreshed)
    state = source if row.operation in IN_PLACE else np.ones(row.state_nbytes // 4, np.float32)

    def call() -> None:
        for _ in range(passes.count("read")):
            _core.bandwidth_read(source)
        # A smaller factor would make the elements subnormal after many calls.
        _core.bandwidth_scale(state, -1.0)

    return Contender("limit", passes, call, refresh)
