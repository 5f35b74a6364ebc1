"""Types of tensors and of containers of tensors, for the signatures that type checkers read.

Nothing imports this module at run time. The tensors of other frameworks are described by members that only
they have, so that type checkers need neither the frameworks nor stubs of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, ClassVar, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer, TypeVar

from fastclip._core import DeviceArray
from fastclip._indexed_slices import IndexedSlices
from fastclip._variables.variable import Variable

__all__ = [
    "ArrayBackend",
    "ArrayLike",
    "Axes",
    "Backend",
    "Buffer",
    "Container",
    "ContainerT",
    "DTypeT",
    "Flat",
    "FlatArrayLikes",
    "GlobalNormOptions",
    "Gradient",
    "JaxArray",
    "KeyT",
    "LeafT",
    "NamedTupleT",
    "Norm",
    "NormT",
    "Number",
    "OneOrMore",
    "OutT",
    "ResultT",
    "SameT",
    "ShapeT",
    "SupportsAllreduce",
    "Tensor",
    "TensorBackend",
    "Tensors",
    "TorchTensor",
    "Trainable",
    "Trainables",
    "Updated",
    "VariableT",
]

_T_co = TypeVar("_T_co", covariant=True)

# Numbers and arrays ----------------------------------------------------------------------------

#: One number: Python's, a NumPy scalar, or a 0-dimensional array or tensor.
Number: TypeAlias = "SupportsFloat | SupportsIndex"
Axes: TypeAlias = "int | Sequence[int] | None"

#: The shape and the data type of an array.
ShapeT = TypeVar("ShapeT", bound=tuple[Any, ...])
DTypeT = TypeVar("DTypeT", bound=np.dtype[Any])


class SupportsArray(Protocol):
    """An object that ``np.asarray`` converts."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


class NestedSequence(Protocol[_T_co]):
    """A sequence other than text, which would be a sequence of text without end.

    Text is none of these because its `__contains__` takes nothing but text.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> _T_co: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __iter__(self) -> Iterator[_T_co]: ...
    def count(self, value: Any, /) -> int: ...
    def index(self, value: Any, /) -> int: ...


Scalar: TypeAlias = "complex | np.generic"
Scalars: TypeAlias = "NestedSequence[Scalar | Scalars]"
#: What is converted to a new array: numbers, nested sequences of them, buffers, and objects with `__array__`.
ArrayLike: TypeAlias = "Scalar | Scalars | SupportsArray | Buffer"

# Tensors ---------------------------------------------------------------------------------------


class TorchTensor(Protocol[_T_co]):
    """A ``torch.Tensor``.

    The type parameter is the type of results: ``torch.Tensor``, also if this is a ``torch.nn.Parameter``.
    """

    def __dlpack__(self) -> Any: ...
    def data_ptr(self) -> int: ...
    def detach(self) -> _T_co: ...


class JaxArray(Protocol[_T_co]):
    """A ``jax.Array``. The type parameter is the type of results."""

    def __dlpack__(self) -> Any: ...
    def block_until_ready(self) -> _T_co: ...


class _TensorShape(Protocol):
    def as_list(self) -> list[Any]: ...


class TensorFlowTensor(Protocol):
    """A ``tf.Tensor``."""

    @property
    def shape(self) -> _TensorShape: ...


#: A tensor whose results are tensors of the same library, or arrays on the same device.
Tensor: TypeAlias = "np.ndarray[Any, Any] | TorchTensor[Any] | JaxArray[Any] | TensorFlowTensor | DeviceArray"

#: The type of results, for a tensor of torch or JAX.
ResultT = TypeVar("ResultT")
#: What the result has the same type as.
SameT = TypeVar("SameT", bound="TensorFlowTensor | IndexedSlices | DeviceArray")
#: What the result is written to.
OutT = TypeVar("OutT", bound="Tensor | IndexedSlices | Buffer")

# Containers ------------------------------------------------------------------------------------


class NamedTuple(Protocol):
    """A named tuple."""

    @property
    def _fields(self) -> tuple[str, ...]: ...
    def _asdict(self) -> dict[str, Any]: ...


class Dataclass(Protocol):
    """A dataclass, which has to be registered with optree."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Leaf: TypeAlias = "Tensor | IndexedSlices | Buffer | None"
Entry: TypeAlias = "Leaf | NamedTuple | Dataclass | Mapping[Any, Entry] | NestedSequence[Entry]"
Container: TypeAlias = "NamedTuple | Dataclass | Mapping[Any, Entry] | NestedSequence[Entry]"

# The defaults let a type variable follow `NormT`, which has one, in a signature.
LeafT = TypeVar("LeafT", bound="Tensor | IndexedSlices | None", default=Any)
NamedTupleT = TypeVar("NamedTupleT", bound=NamedTuple, default=Any)
ContainerT = TypeVar("ContainerT", bound=Container, default=Any)
KeyT = TypeVar("KeyT")

#: A list or tuple of tensors, or the values of a dict: results are in a list.
Flat: TypeAlias = "Sequence[LeafT] | ValuesView[LeafT]"
#: A list or tuple whose entries are converted to arrays. Lists of arrays are not among these types, because
#: mypy gives Any where two overloads fit; tuples are, for those whose arrays have no type in common.
FlatArrayLikes: TypeAlias = (
    "Sequence[Scalar | Scalars | Variable | memoryview | bytearray | array[Any]] | tuple[ArrayLike, ...]"
)
#: Any container of tensors.
Tensors: TypeAlias = (
    "Container | ValuesView[Leaf] | Sequence[Leaf | ArrayLike] | Mapping[Any, Leaf | ArrayLike]"
)

# Variables and gradients -----------------------------------------------------------------------

#: What can be differentiated by. Optimizers update any other writable buffer too.
Trainable: TypeAlias = "Variable | np.ndarray[Any, Any] | TorchTensor[Any]"
#: What an optimizer updates.
Updated: TypeAlias = "Trainable | Buffer | DeviceArray"
VariableT = TypeVar("VariableT", bound="Variable | np.ndarray[Any, Any]")
_T = TypeVar("_T")
_Several: TypeAlias = "Sequence[_T] | ValuesView[_T] | Iterator[_T] | Mapping[Any, _T]"
#: One variable, or several of them.
OneOrMore: TypeAlias = "_T | _Several[_T]"
#: One variable, or several of them, nested too.
Trainables: TypeAlias = "Trainable | _Several[Trainable | list[Any] | tuple[Any, ...] | Mapping[Any, Any]]"
Gradient: TypeAlias = "Tensor | IndexedSlices | ArrayLike"
#: The loss and the values of the variables give the loss and the gradients.
_GradientFunction: TypeAlias = "Callable[[Callable[..., Any], list[Any]], tuple[Any, Any]]"
ArrayBackend: TypeAlias = 'Literal["autograd", "jax"] | None'
TensorBackend: TypeAlias = 'Literal["torch"] | _GradientFunction | None'
Backend: TypeAlias = "str | _GradientFunction | None"

# Norms and options -----------------------------------------------------------------------------

#: A norm that was computed.
Norm: TypeAlias = "np.float32 | np.float64"
#: The type of `use_norm`, which is returned as it was passed; of a computed norm if there is none.
NormT = TypeVar("NormT", default="np.float32 | np.float64")


class SupportsAllreduce(Protocol):
    """An object with the method that `comm` needs, such as an mpi4py communicator."""

    def allreduce(self, sendobj: Any, /) -> Any: ...


class GlobalNormOptions(TypedDict, total=False):
    """Keyword arguments of ``clip_by_global_norm`` that its result does not depend on by type."""

    ord: float
    on_nonfinite: Literal["propagate", "raise", "zero"]
    comm: SupportsAllreduce | None
    norms: npt.NDArray[np.float64] | None
