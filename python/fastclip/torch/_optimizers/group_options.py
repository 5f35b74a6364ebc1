"""The options that parameter groups have besides those of PyTorch."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["bound_of", "checked_narrowing", "given_bound", "take_group_options"]

_STATE_DTYPES = (None, torch.float32, torch.bfloat16)
_ROUNDINGS = ("stochastic", "nearest")


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


def checked_narrowing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options `state_dtype`, `rounding` and `seed` that are given, after checking them.

    Raises
    ------
    ValueError
        If one has another value than it takes.
    """
    checked = {key: options[key] for key in ("state_dtype", "rounding", "seed") if key in options}
    dtype, rounding, seed = (checked.get(key) for key in ("state_dtype", "rounding", "seed"))
    if dtype not in _STATE_DTYPES:
        raise ValueError(f"state_dtype is {dtype!r}; it takes torch.bfloat16, torch.float32 or None")
    if "rounding" in checked and rounding not in _ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; it takes 'stochastic' or 'nearest'")
    if "seed" in checked:
        try:
            checked["seed"] = operator.index(seed)  # type: ignore[arg-type]
        except TypeError:
            checked["seed"] = -1
        if not 0 <= checked["seed"] < 2**64:
            raise ValueError(f"seed is {seed!r}; it takes an integer from 0 to 2**64 - 1")
    return checked


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
