"""The owners of memory that arrays share with objects of other libraries."""

from __future__ import annotations

import sys
from typing import Any

from fastclip._arguments.foreign import framework

__all__ = ["memory_owner"]


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
        as one of them. It is None for a storage over memory that is not torch's own, as after
        ``torch.from_numpy``, because each such call creates another storage.
    """
    if framework(exporter) != "torch":
        return None
    kind = getattr(sys.modules.get("torch"), "UntypedStorage", None)
    try:
        storage = exporter if type(exporter) is kind else exporter.untyped_storage()
        if type(storage) is not kind or not storage.resizable():
            return None
        start = storage.data_ptr()
        return storage if start <= first and end <= start + storage.nbytes() else None
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # Subclasses of tensors may have no storage, or refuse to show it.
        return None
