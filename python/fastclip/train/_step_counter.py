"""The counter that a step advances."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip._arguments.arrays import describe
from fastclip._variables.variable import Variable

__all__ = ["as_step_counter"]


def as_step_counter(global_step: Any) -> npt.NDArray[np.integer[Any]]:
    """Return the array of a step counter.

    Parameters
    ----------
    global_step : ndarray or Variable, shape ()
        Of an integer type.

    Raises
    ------
    TypeError
        If it is nothing that can be counted up.
    ValueError
        If it has dimensions, is read-only or not in native byte order.
    """
    array = global_step._memory() if isinstance(global_step, Variable) else global_step
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        what = describe(array) if isinstance(array, np.ndarray) else f"a {type(global_step).__name__}"
        raise TypeError(
            f"global_step is {what}; it takes an array of no dimensions, or a Variable, of an integer type"
        )
    if array.ndim:
        raise ValueError(f"global_step is {describe(array)}; it takes one of no dimensions")
    if not array.flags.writeable or not array.dtype.isnative:
        what = "in the byte order of another machine" if array.flags.writeable else "read-only"
        raise ValueError(f"global_step is {what}; it is counted up in place")
    return array
