"""Arrays that share the memory of other libraries' tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core

__all__ = ["numpy_view"]


def numpy_view(value: Any, name: str, to_write: bool = False) -> npt.NDArray[Any]:
    """Returns an array that shares the memory of a tensor.

    Parameters
    ----------
    value : tensor
        Tensor of any library.
    name : str
        Name of the tensor in error messages.
    to_write : bool, optional
        Whether the caller writes to the array, so that it must not be a copy.

    Returns
    -------
    ndarray
        bfloat16 has the dtype of ml_dtypes. Where that is not installed, the values are copied to float32.

    Raises
    ------
    TypeError
        If the tensor cannot be read, or written.
    ValueError
        If the caller writes to it, and it is read-only.
    """
    # A tensor of torch may be given other memory later; not a detached one, which no other code refers to.
    detach = getattr(type(value), "detach", None)
    if detach is not None:
        value = detach(value)
    snapshot = _core.open_tensor(value, name, writes=to_write).snapshots[0]
    if to_write and not snapshot.is_writable:
        raise ValueError(f"{name} is a {type(value).__name__} that is read-only")
    array: npt.NDArray[Any] = snapshot.array()
    if snapshot.dtype_name != "bfloat16" or array.dtype.name == "bfloat16":
        return array
    try:
        import ml_dtypes
    except ImportError:
        if to_write:
            raise TypeError(
                f"{name} is a tensor of bfloat16, for which NumPy needs ml_dtypes: "
                "pip install 'fastclip-grad[bf16]'"
            ) from None
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.view(ml_dtypes.bfloat16)
