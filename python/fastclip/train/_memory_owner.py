"""The owners of memory that arrays share with objects of other libraries."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from fastclip._arguments.foreign import is_mutable_tensor

__all__ = ["memory_owner", "note_storage"]

#: Errors of tensors that have no storage, or do not show it.
_NO_STORAGE = (AttributeError, NotImplementedError, RuntimeError, TypeError)

# Whether the memory of a storage is torch's own, by the identity of the storage. When the storage dies, the
# callback of its reference removes the entry by one operation and without a lock.
_is_own: dict[int, tuple[weakref.ref[Any], bool]] = {}


def note_storage(tensor: Any) -> None:
    """Note whether the memory of a tensor is torch's own, before the tensor is converted to an array.

    Only torch's own memory can be resized, and after the first conversion to an array not even that. Other
    memory is for example that of an array that was passed to ``torch.from_numpy``.

    Parameters
    ----------
    tensor : torch.Tensor
        A tensor that was passed as a variable.
    """
    try:
        storage = tensor.untyped_storage()
        number = id(storage)
        if number not in _is_own:
            reference = weakref.ref(storage, lambda _: _is_own.pop(number, None))
            _is_own[number] = reference, bool(storage.resizable())
    except _NO_STORAGE:
        return


def memory_owner(exporter: Any, first: int, end: int) -> Any:
    """Return the storage that owns memory which an object shares with an array, or None if it is not known.

    An optimizer keeps the slots of a variable as long as this storage lives.

    Parameters
    ----------
    exporter : object
        The object that the array refers to as its base: for example the tensor whose method ``numpy`` was
        called, which is a view that torch has created for that call.
    first, end : int
        The address of the first byte of the array, and the address after its last byte.

    Returns
    -------
    torch.UntypedStorage or None
        The storage of a torch tensor, which all tensors over the same memory share, and which lives as long
        as one of them. It is None if the memory is not torch's own, because each call of
        ``torch.from_numpy``, for example, creates another storage.
    """
    if not is_mutable_tensor(exporter):
        return None
    kind = getattr(sys.modules.get("torch"), "UntypedStorage", None)
    try:
        storage = exporter if type(exporter) is kind else exporter.untyped_storage()
        if type(storage) is not kind:
            return None
        _, is_own = _is_own.get(id(storage), (None, True))
        start = storage.data_ptr()
        return storage if is_own and start <= first and end <= start + storage.nbytes() else None
    except _NO_STORAGE:
        return None
