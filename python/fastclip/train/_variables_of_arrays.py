"""The Variables behind an optimizer's arrays, for copies and pickles of the optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._arguments.arrays import describe
from fastclip._arguments.devices import is_on_device
from fastclip._arguments.foreign import framework
from fastclip._variables.registry import variable_of
from fastclip._variables.variable import Variable

__all__ = ["check_copies_with_optimizer", "variables_of_arrays"]

_Array = npt.NDArray[Any]


def variables_of_arrays(arrays: Iterable[_Array], kind: str) -> list[Variable]:
    """Return the Variables whose memory an optimizer's arrays share.

    Parameters
    ----------
    arrays : iterable of ndarray
        New arrays over the memory of the variables.
    kind : str
        The class of the optimizer, for messages.

    Raises
    ------
    TypeError
        If an array is not over the whole memory of a Variable.
    """
    variables = []
    for array in arrays:
        if is_on_device(array):
            raise TypeError(
                f"{kind} can be neither copied nor pickled: its variables are on a device. Make another "
                "optimizer, and give it state_dict() by load_state_dict() together with its variables"
            )
        variable = variable_of(array if array.base is None else array.base)
        if variable is None or not _core.is_same_memory(array, variable._data):
            raise TypeError(
                f"{kind} can be neither copied nor pickled: it has updated {describe(array)} that is not the "
                "array of a fastclip.Variable, and slots cannot be given to the copy of such an array. Use "
                "fastclip.Variable; or make another optimizer, and give it state_dict() by "
                "load_state_dict() together with its variables"
            )
        variables.append(variable)
    return variables


def check_copies_with_optimizer(copy: _Array, kind: str) -> None:
    """Check that a low-precision copy can be copied or pickled with an optimizer.

    Raises
    ------
    TypeError
        If it is memory of a tensor or buffer: the copied optimizer would write to an array, not to the copy
        of that tensor.
    """
    base: Any = copy
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    # Arrays that were unpickled are views of bytes.
    is_buffer = isinstance(base, memoryview) and not isinstance(base.obj, (bytes, bytearray))
    if is_buffer or framework(base) is not None:
        raise TypeError(
            f"{kind} can be neither copied nor pickled: a low-precision copy is memory of another kind of "
            "object than an array. Remove it by set_low_precision_copy(variable, None), and set it again "
            "afterwards"
        )
