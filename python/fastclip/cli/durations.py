"""Durations as text, with three significant digits."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    """Format a duration in s, ms or µs, such as "1.23 ms"."""
    scaled, unit = _in_unit(seconds)
    return f"{_three_digits(scaled)} {unit}"


def seconds_range_text(low: float, high: float) -> str:
    """Format two durations in the unit that fits the second, without the unit, such as "1.20-1.31"."""
    _, unit = _in_unit(high)
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    return f"{_three_digits(low * factor)}-{_three_digits(high * factor)}"


def _in_unit(seconds: float) -> tuple[float, str]:
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return seconds * factor, unit
    return seconds * 1e6, "µs"


def _three_digits(number: float) -> str:
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f}"
