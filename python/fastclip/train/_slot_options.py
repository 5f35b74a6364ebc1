"""The options of optimizers that say how slots are kept: in the dtype of their variable, or in bfloat16."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ROUNDED_STEPS",
    "check_narrow_slots",
    "check_rounded_steps",
    "checked_seed",
    "checked_slot_dtype",
    "seed_and_step",
]

#: The name of the counter of the steps in which slots were rounded stochastically.
ROUNDED_STEPS = "rounded_steps"

#: The rules for whose slots bfloat16 is too coarse, with the reasons.
_NEEDS_PRECISE_SLOTS = {
    "centered_rms_prop": "the variance is a small difference of its slots",
    "adagrad_da": "the variable is computed from its slots alone",
    "ftrl": "the variable is computed from its slots alone",
}
#: The smallest number that bfloat16 does not round to 0.
_SMALLEST = 2.0**-133
#: Up to here float64 counts one by one.
_MOST_STEPS = 2**53 - 1


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


def check_narrow_slots(rule: str, first_values: Sequence[float], name: str) -> None:
    """Raise a ValueError if the slots of a rule cannot be bfloat16."""
    reason = _NEEDS_PRECISE_SLOTS.get(rule)
    if reason is not None:
        raise ValueError(f"slot_dtype is 'bfloat16'; {name} takes None, because {reason}")
    for value in first_values:
        if 0.0 < abs(value) < _SMALLEST:
            raise ValueError(
                f"slot_dtype is 'bfloat16', which has not the first value {value} of the slots; that is 0 or "
                f"{_SMALLEST} and more"
            )


def check_rounded_steps(count: float, name: str) -> None:
    """Raise a ValueError if a number is no count of steps."""
    if not (1 <= count <= _MOST_STEPS and count == int(count)):
        raise ValueError(f"{name} is {count}; it takes a whole number from 1 to {_MOST_STEPS}")


def seed_and_step(
    settings: Mapping[str, Any], counters: Mapping[str, npt.NDArray[np.float64]]
) -> tuple[int, int] | None:
    """Return the seed of stochastic rounding and the number of this step; None if nothing is rounded so."""
    counter = counters.get(ROUNDED_STEPS)
    if counter is None:
        return None
    # NaN before the first step.
    if np.isnan(counter):
        return settings.get("seed", 0), 1
    check_rounded_steps(float(counter), ROUNDED_STEPS)
    return settings.get("seed", 0), int(counter) + 1
