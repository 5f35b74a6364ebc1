"""DLPack capsules written field by field, valid and invalid, whose deleters are counted.

The layouts are those of ``dlpack.h`` 1.x. A `ManagedTensor` is what a producer allocates; its capsule is what
``__dlpack__`` returns. Whoever takes a capsule renames it, and calls the deleter once; a capsule that nobody
took is freed by its producer, which `ManagedTensor.close` plays.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from support.dtypes import BFLOAT16

Array = npt.NDArray[Any]

CPU = (1, 0)
CUDA = (2, 0)
READ_ONLY = 1
IS_COPIED = 2
VERSIONED_NAME = b"dltensor_versioned"
UNVERSIONED_NAME = b"dltensor"

#: Type code and bits of each dtype.
TYPE_CODES: dict[np.dtype[Any], tuple[int, int]] = {
    np.dtype(np.bool_): (6, 8),
    BFLOAT16: (4, 16),
    **{np.dtype(f"i{size}"): (0, 8 * size) for size in (1, 2, 4, 8)},
    **{np.dtype(f"u{size}"): (1, 8 * size) for size in (1, 2, 4, 8)},
    **{np.dtype(f"f{size}"): (2, 8 * size) for size in (2, 4, 8)},
    **{np.dtype(f"c{size}"): (5, 8 * size) for size in (8, 16)},
}


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Unversioned(ctypes.Structure):
    _fields_ = (
        ("tensor", DLTensor),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


class ExchangeTable(ctypes.Structure):
    """The structure ``DLPackExchangeAPI`` of DLPack 1.3."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocator", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    # Prototypes of their own, as argument types set on `ctypes.pythonapi` are seen by the whole process.
    prototype = ctypes.PYFUNCTYPE(result, *arguments)
    return prototype((name, ctypes.pythonapi))


_new_capsule = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_name = _function("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)


def table_capsule(table: ExchangeTable, name: bytes = b"dlpack_exchange_api") -> Any:
    """Returns a capsule for ``__dlpack_c_exchange_api__``; the table must outlive it."""
    return _new_capsule(ctypes.addressof(table), name, None)


#: Every managed tensor whose deleter may still be called, by the address of its structure.
_managed: dict[int, ManagedTensor] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _deleter(address: int) -> None:
    _managed[address]._deleted()


_DELETER = ctypes.cast(_deleter, ctypes.c_void_p).value


class ManagedTensor:
    """A tensor as a producer hands it out, every field of which can be wrong.

    Parameters
    ----------
    data : int
        Address of the memory; 0 is a null pointer.
    shape, strides : sequence of int or None
        Numbers of elements; None is a null pointer.
    dtype : dtype or (int, int)
        The dtype of an array, or type code and bits.
    ndim : int, optional
        Number of dimensions, if it is not that of `shape`.
    lanes, device, byte_offset, flags
        The fields of the structure.
    version : (int, int) or None
        The version; None makes a structure of DLPack 0.x, without version and flags.
    name : bytes, optional
        Name of the capsule, if it is not that which belongs to the version.
    owner : object
        Kept until the deleter is called.
    on_delete : callable, optional
        Called by the deleter.

    Attributes
    ----------
    deletions : int
        How often the deleter was called.
    """

    def __init__(
        self,
        data: int,
        shape: Sequence[int] | None,
        strides: Sequence[int] | None,
        dtype: np.dtype[Any] | tuple[int, int],
        *,
        ndim: int | None = None,
        lanes: int = 1,
        device: tuple[int, int] = CPU,
        byte_offset: int = 0,
        flags: int = 0,
        version: tuple[int, int] | None = (1, 0),
        name: bytes | None = None,
        has_deleter: bool = True,
        owner: object = None,
        on_delete: Callable[[], object] | None = None,
    ) -> None:
        code, bits = dtype if isinstance(dtype, tuple) else TYPE_CODES[np.dtype(dtype)]
        self._shape = None if shape is None else (ctypes.c_int64 * max(len(shape), 1))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * max(len(strides), 1))(*strides)
        if ndim is None:
            ndim = len(shape or ())
        tensor = DLTensor(
            data or None,
            device[0],
            device[1],
            ndim,
            code,
            bits,
            lanes,
            None if self._shape is None else ctypes.addressof(self._shape),
            None if self._strides is None else ctypes.addressof(self._strides),
            byte_offset,
        )
        deleter = _DELETER if has_deleter else None
        if version is None:
            self._structure: Any = Unversioned(tensor, None, deleter)
        else:
            self._structure = Versioned(version[0], version[1], None, deleter, flags, tensor)
        self._name = name or (UNVERSIONED_NAME if version is None else VERSIONED_NAME)
        self._owner = owner
        self._on_delete = on_delete
        self._has_deleter = has_deleter
        self.deletions = 0
        address = ctypes.addressof(self._structure)
        _managed[address] = self
        self.capsule: Any = _new_capsule(address, self._name, None)

    @classmethod
    def over(cls, array: Array, **fields: Any) -> ManagedTensor:
        """Describes the memory of an array, with `fields` in place of what describes it truly."""
        description: dict[str, Any] = {
            "data": array.ctypes.data if array.size else 0,
            "shape": array.shape,
            "strides": [stride // array.itemsize for stride in array.strides],
            "dtype": array.dtype,
            "owner": array,
        }
        return cls(**(description | fields))

    @property
    def is_taken(self) -> bool:
        """Whether a consumer has taken the capsule, and so owes a call of the deleter."""
        name: bytes = _capsule_name(self.capsule)
        return name.startswith(b"used_")

    def close(self) -> None:
        """Frees the tensor if nobody has taken its capsule, and checks that it was freed once."""
        if not self.is_taken:
            assert self.deletions == 0, "the deleter was called, and the capsule left as if it were not taken"
            if self._has_deleter:
                self._deleted()
        elif self.deletions == 0:
            # A caught exception and the frame that holds it are a cycle, which may hold the arrays.
            gc.collect()
        del _managed[ctypes.addressof(self._structure)]
        if self._has_deleter:
            assert self.deletions == 1, f"the deleter was called {self.deletions} times"

    def _deleted(self) -> None:
        self.deletions += 1
        # Whoever still reads the structure finds nonsense.
        ctypes.memset(ctypes.addressof(self._structure.tensor), 0x5A, ctypes.sizeof(DLTensor))
        if self._shape is not None:
            ctypes.memset(ctypes.addressof(self._shape), 0x5A, ctypes.sizeof(self._shape))
        if self._strides is not None:
            ctypes.memset(ctypes.addressof(self._strides), 0x5A, ctypes.sizeof(self._strides))
        self._owner = None
        if self._on_delete is not None and self.deletions == 1:
            self._on_delete()


class Exporter:
    """An object that exports memory through DLPack alone, as one of version 1 does.

    Parameters
    ----------
    make : callable
        Returns the managed tensor of one export.
    device : tuple of int
        What ``__dlpack_device__`` returns.

    Attributes
    ----------
    exports : list of ManagedTensor
        The tensors that were handed out.
    array : ndarray or None
        The array whose memory is exported, if there is one.
    """

    def __init__(self, make: Callable[[], ManagedTensor], device: Any = CPU) -> None:
        self.make = make
        self.device = device
        self.exports: list[ManagedTensor] = []
        self.array: Any = None

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        managed = self.make()
        self.exports.append(managed)
        return managed.capsule

    def __dlpack_device__(self) -> Any:
        return self.device

    def close(self) -> None:
        """Frees what was not taken, and checks that every tensor was freed once."""
        exports, self.exports = self.exports, []
        for managed in exports:
            managed.close()


class UnversionedExporter(Exporter):
    """An exporter of DLPack 0.x, whose ``__dlpack__`` takes no version."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


def exporter(array: Array, kind: type[Exporter] = Exporter, **fields: Any) -> Exporter:
    """Returns an exporter of the memory of an array; `fields` replace what describes it truly."""
    made = kind(lambda: ManagedTensor.over(array, **fields))
    made.array = array
    return made
