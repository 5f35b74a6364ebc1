"""The options of optimizers that say how slots are kept: in the dtype of their variable, or in bfloat16."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ROUNDED_STEPS", "checked_seed", "checked_slot_dtype", "seed_and_step"]

#: The name of the counter of the steps in which slots were rounded stochastically.
ROUNDED_STEPS = "rounded_steps"


def checked_slot_dtype(value: Any, name: str) -> str | None:
    """Return "bfloat16", or None for the dtype of the variable.

    Raises
    ------
    ValueError
        If it is neither None nor a name or dtype of bfloat16.
    """
    if value is None:
        return None
    kind = (
        value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__name__", None)
    )
    if kind != "bfloat16":
        raise ValueError(f'{name} is {value!r}; it takes "bfloat16", or None for the dtype of the variable')
    return "bfloat16"


def checked_seed(value: Any, name: str) -> int:
    """Return a seed, after checking it.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is negative, or has more than 64 bits.
    """
    try:
        seed = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it takes an integer from 0 to 2**64 - 1") from None
    if not 0 <= seed < 2**64:
        raise ValueError(f"{name} is {seed}; it takes an integer from 0 to 2**64 - 1")
    return seed


def seed_and_step(
    settings: Mapping[str, Any], counters: Mapping[str, npt.NDArray[np.float64]]
) -> tuple[int, int] | None:
    """Return the seed of stochastic rounding and the number of this step; None if nothing is rounded so."""
    counter = counters.get(ROUNDED_STEPS)
    if counter is None:
        return None
    # NaN before the first step.
    return settings["seed"], 1 if np.isnan(counter) else int(counter) + 1
