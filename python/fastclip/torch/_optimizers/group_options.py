"""The options that parameter groups have besides those of PyTorch."""

from __future__ import annotations

from typing import Any

__all__ = ["bound_of", "given_bound", "take_group_options"]


def bound_of(bound: Any, name: str) -> float:
    """Return a bound of a norm as a float.

    Raises
    ------
    ValueError
        If it is negative or NaN.
    """
    number = float(bound)
    if not number >= 0.0:
        raise ValueError(f"{name} is {bound}; it takes a number that is not negative, or None")
    return number


def given_bound(group: dict[str, Any]) -> float | None:
    """Return the bound that a parameter group is clipped by, its own or the shared one."""
    bound = group["max_norm"] if "max_norm" in group else group.get("shared_max_norm")
    return None if bound is None else float(bound)


def take_group_options(loaded: list[dict[str, Any]], present: list[dict[str, Any]]) -> None:
    """Give parameter groups that are loaded the options of the present ones that they do not have."""
    for keys in (("shared_max_norm", "max_norm"), ("state_dtype", "rounding", "seed")):
        if any(key in group for group in loaded for key in keys):
            continue
        for group, other in zip(loaded, present, strict=True):
            group.update({key: other[key] for key in keys if key in other})
