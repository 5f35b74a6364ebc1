from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

__all__ = [
    "CallerSlots",
    "GradientClipping",
    "NonFiniteError",
    "RowGradient",
    "Slots",
    "StepRequest",
    "__version__",
    "are_plain_pairs",
    "bandwidth_copy",
    "bandwidth_read",
    "bandwidth_scale",
    "check_no_overlap",
    "check_variables",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_elements",
    "clip_slices",
    "clip_tensors",
    "combine_sums",
    "free_cached_memory",
    "get_num_threads",
    "global_norm",
    "is_plain",
    "isa_detected",
    "isa_in_use",
    "isa_levels",
    "norm_scalar",
    "override_num_threads",
    "partial_sums",
    "plain_list",
    "process_generation",
    "set_num_threads",
    "settings_complaints",
    "slice_norms",
    "take_step",
    "tensor_norms",
]

__version__: str

_Arrays = Sequence[npt.NDArray[Any] | None]
_ArgumentNames = tuple[str, list[str] | None, str, list[str] | None]

class NonFiniteError(ArithmeticError): ...

def is_plain(tensors: object, /) -> bool: ...
def plain_list(tensors: object, /) -> list[Any] | None: ...
def clip_by_global_norm(
    tensors: _Arrays,
    bound: float,
    known_norm: tuple[float, int, bool, list[float] | None, list[int]] | None,
    p: float,
    out: _Arrays | None,
    on_nonfinite: str,
    norms: npt.NDArray[np.float64] | None,
    names: _ArgumentNames,
    /,
) -> tuple[list[Any], np.floating[Any]]: ...
def global_norm(tensors: _Arrays, p: float, names: _ArgumentNames, /) -> np.floating[Any]: ...
def norm_scalar(norm: float, is_float64: bool, /) -> np.floating[Any]: ...
def tensor_norms(tensors: _Arrays, p: float, names: _ArgumentNames, /) -> tuple[list[float], bool]: ...
def partial_sums(
    tensors: _Arrays, p: float, names: _ArgumentNames, /
) -> tuple[list[float], list[float], list[int]]: ...
def combine_sums(sums: list[float], p: float, /) -> tuple[float, int, float]: ...
def clip_tensors(
    tensors: _Arrays,
    bounds: list[float],
    divisor: str,
    p: float,
    out: _Arrays | None,
    names: _ArgumentNames,
    /,
) -> list[Any]: ...
def clip_by_value(
    tensor: npt.NDArray[Any],
    lower: npt.NDArray[Any],
    upper: npt.NDArray[Any],
    out: npt.NDArray[Any] | None,
    /,
) -> npt.NDArray[Any]: ...
def check_no_overlap(tensors: _Arrays, out: _Arrays, names: _ArgumentNames, /) -> None: ...
def slice_norms(
    tensors: _Arrays, axes: list[list[bool]], p: float, norms: _Arrays, names: _ArgumentNames, /
) -> None: ...
def clip_slices(
    tensors: _Arrays,
    axes: list[list[bool]],
    bounds: _Arrays,
    p: float,
    out: _Arrays | None,
    names: _ArgumentNames,
    /,
) -> list[Any]: ...
def clip_elements(
    tensors: _Arrays,
    axes: list[list[bool]],
    bounds: _Arrays,
    p: float,
    out: _Arrays | None,
    names: _ArgumentNames,
    /,
) -> list[Any]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def override_num_threads(n: int, /) -> int: ...
def isa_in_use() -> str: ...
def isa_detected() -> str: ...
def isa_levels() -> list[str]: ...
def process_generation() -> int: ...
def settings_complaints() -> list[str]: ...
def free_cached_memory() -> int: ...
def bandwidth_read(x: npt.NDArray[np.float32], /) -> float: ...
def bandwidth_scale(x: npt.NDArray[np.float32], factor: float, /) -> None: ...
def bandwidth_copy(x: npt.NDArray[np.float32], out: npt.NDArray[np.float32], factor: float, /) -> None: ...
def check_variables(arrays: _Arrays, argument: str, /) -> None: ...
def are_plain_pairs(pairs: list[Any], /) -> bool: ...
def take_step(request: StepRequest, /) -> bool: ...

@final
class StepRequest:
    def __new__(
        cls,
        slots: Slots | CallerSlots,
        pairs: list[Any],
        numbers: Callable[
            [],
            tuple[
                list[tuple[float, ...]],
                list[tuple[npt.NDArray[np.float64], float]],
                npt.NDArray[np.int64],
                npt.NDArray[np.float64],
            ],
        ],
        clipping: GradientClipping,
        loss_scale: float,
        global_step: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Self: ...

@final
class GradientClipping:
    def __new__(cls, clip: str, bound: float, on_nonfinite: str) -> Self: ...

@final
class RowGradient:
    def __new__(
        cls,
        values: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        original: npt.NDArray[Any],
        is_clamped: bool,
    ) -> Self: ...

@final
class CallerSlots:
    def __new__(cls, rule: str) -> Self: ...

@final
class Slots:
    def __new__(
        cls,
        rule: str,
        initial: Sequence[float],
        memory_owner: Callable[[Any, int, int], Any] | None = None,
    ) -> Self: ...
    def forget(self, array: npt.NDArray[Any]) -> bool: ...
    def lost(self) -> int: ...
    def entries(self) -> list[tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]]: ...
    def get(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]] | None: ...
    def has_slots(self) -> bool: ...
    def steps(self) -> int: ...
    def take_copies(self, other: Slots) -> None: ...
    def load(
        self, arrays: Sequence[npt.NDArray[Any]], with_slots: Sequence[bool]
    ) -> list[list[npt.NDArray[Any]]]: ...
    def copies(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]: ...
    def refuse_while_stepping(self, what: str) -> None: ...
    def refresh_copy(self, array: npt.NDArray[Any]) -> None: ...
    def set_copy(
        self, array: npt.NDArray[Any], copy: npt.NDArray[Any] | None, write: bool = True
    ) -> None: ...
