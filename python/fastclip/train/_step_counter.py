"""The step counter of the caller: the argument `global_step`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import describe
from fastclip._variables.variable import Variable

__all__ = ["as_step_counter"]


def as_step_counter(global_step: Any) -> npt.NDArray[np.integer[Any]]:
    """Return an array that shares the memory of a step counter, after checking it.

    Parameters
    ----------
    global_step : ndarray or Variable of an integer type, shape ()
        The step counter.

    Raises
    ------
    TypeError
        If the counter is not an array or Variable, or not of an integer type.
    ValueError
        If it is not 0-d, is read-only, or its byte order is not the native one.
    """
    array = global_step._memory() if isinstance(global_step, Variable) else global_step
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        kind = describe(array) if isinstance(array, np.ndarray) else f"a {type(global_step).__name__}"
        raise TypeError(
            f"global_step is {kind}; it takes an array of no dimensions, or a Variable, of an integer type"
        )
    if array.ndim:
        raise ValueError(f"global_step is {describe(array)}; it takes one of no dimensions")
    if not array.flags.writeable or not array.dtype.isnative:
        problem = "in the byte order of another machine" if array.flags.writeable else "read-only"
        raise ValueError(f"global_step is {problem}; it is counted up in place")
    return array
