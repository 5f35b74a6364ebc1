"""Hyper-parameters that may change between steps: their current values, and the attributes that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastclip._arguments.arrays import as_bound
from fastclip.train._settings import Setting

__all__ = [
    "AT_LEAST_ZERO",
    "AT_MOST_ZERO",
    "DECAY_RATE",
    "POSITIVE",
    "Flag",
    "HyperParameter",
    "HyperParameterSetting",
    "current",
    "current_values",
]

#: A number, a 0-d array, a 0-d `Variable`, or a function without parameters that returns one of these. It is
#: read in each step.
HyperParameter = Any


@dataclass(frozen=True, slots=True)
class Accepted:
    """The numbers that a hyper-parameter takes.

    Attributes
    ----------
    contains : callable
        Whether a number, which is not NaN, is one of them.
    refusal : str
        The message for other numbers, with the fields ``name`` and ``value``.
    """

    contains: Callable[[float], bool]
    refusal: str


ANY_NUMBER = Accepted(lambda number: True, "")
DECAY_RATE = Accepted(
    lambda number: 0.0 <= number < 1.0, "{name} is {value}; it takes a number that is at least 0 and below 1"
)
# The messages of TensorFlow.
AT_LEAST_ZERO = Accepted(lambda number: number >= 0.0, "{name} {value} needs to be positive or zero")
AT_MOST_ZERO = Accepted(lambda number: number <= 0.0, "{name} {value} needs to be negative or zero")
POSITIVE = Accepted(lambda number: number > 0.0, "{name} must be positive: {value}")


def current(value: HyperParameter, name: str, accepted: Accepted = ANY_NUMBER) -> float:
    """Return the current value of a hyper-parameter.

    Raises
    ------
    TypeError
        If the value is not a real number.
    ValueError
        If it is NaN, an array that is not 0-d, or a number that is not accepted.
    """
    number = as_bound(value() if callable(value) else value, name)
    if not accepted.contains(number):
        raise ValueError(accepted.refusal.format(name=name, value=number))
    return number


class HyperParameterSetting(Setting):
    """The attribute of a hyper-parameter.

    Functions are called in each step, and not before: what they return is checked then. Anything else is
    checked when it is set, and, unless it is a float, in each step again, because arrays may change.

    Parameters
    ----------
    accepted : Accepted
        The numbers that the hyper-parameter takes.
    if_none : float, optional
        The number that None stands for, if it is accepted.
    """

    def __init__(self, accepted: Accepted = ANY_NUMBER, if_none: float | None = None) -> None:
        super().__init__(self._checked)
        self.accepted = accepted
        self.if_none = if_none

    def _checked(self, value: Any, name: str) -> Any:
        if value is None and self.if_none is not None:
            return self.if_none
        if not callable(value):
            current(value, name, self.accepted)
        return value

    def number(self, value: Any) -> float:
        """Return the current value of the hyper-parameter that was set to `value`."""
        return current(value, self.name, self.accepted)


class Flag(HyperParameterSetting):
    """The attribute of a hyper-parameter that is a bool."""

    def _checked(self, value: Any, name: str) -> Any:
        return bool(value)

    def number(self, value: Any) -> float:
        return float(value)


def current_values(
    hyper_parameters: dict[str, HyperParameterSetting], settings: dict[str, Any]
) -> tuple[float, ...]:
    """Return the current values of hyper-parameters in their order.

    Parameters
    ----------
    hyper_parameters : dict of str to HyperParameterSetting
        The hyper-parameters by their names.
    settings : dict of str to object
        What they were set to.
    """
    values = []
    for name, setting in hyper_parameters.items():
        value = settings[name]
        values.append(value if type(value) is float else setting.number(value))
    return tuple(values)
