"""The gradient options of optimizers: clipping, the steps that are not taken, and the loss scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from fastclip import _core
from fastclip._arguments.arrays import as_bound
from fastclip.train._hyper_parameter import HyperParameter, current
from fastclip.train._settings import HasSettings, Setting

__all__ = [
    "CLIP",
    "ClipSetting",
    "GradientOptions",
    "check_one_clip",
    "checked_loss_scale",
    "checked_policy",
    "checked_skip_limit",
    "compiled_options",
    "current_loss_scale",
    "row_bound",
]

_POLICIES = ("propagate", "raise", "skip")

#: What `_core.GradientClipping` calls the clipping method of each option.
_CLIP_NAMES = {"clipvalue": "value", "clipnorm": "norm", "global_clipnorm": "global_norm"}

#: The key, among the settings of an optimizer, of the option that clips and its bound; None for no clipping.
#: One entry for the three options ensures that there is at most one at any time.
CLIP = "clip"


class GradientOptions(TypedDict, total=False):
    """The keyword arguments that every optimizer takes. See :class:`fastclip.train.Optimizer`."""

    clipvalue: float | None
    clipnorm: float | None
    global_clipnorm: float | None
    on_nonfinite: str
    loss_scale: HyperParameter | None
    skip_above: float | None
    slot_dtype: Any
    seed: int


class ClipSetting(Setting):
    """The attribute of one of the options that clip: a bound, or None.

    Setting it raises a ValueError while another of the options has a bound.
    """

    def __get__(self, optimizer: HasSettings | None, owner: type) -> Any:
        if optimizer is None:
            return self
        option, bound = optimizer._settings[CLIP] or (None, None)
        return bound if option == self.name else None

    def __set__(self, optimizer: HasSettings, value: Any) -> None:
        bound = None if value is None else _at_least_zero(value, self.name)
        option, _ = optimizer._settings[CLIP] or (None, None)
        if bound is not None:
            if option not in (None, self.name):
                raise ValueError(
                    f"{self.name} is {value!r} and {option} is set; at most one of {', '.join(_CLIP_NAMES)} "
                    f"is taken, so set {option} to None first"
                )
            optimizer._settings[CLIP] = (self.name, bound)
        elif option == self.name:
            optimizer._settings[CLIP] = None


def check_one_clip(options: Mapping[str, Any]) -> None:
    """Raise a ValueError if more than one of the options that clip has a bound."""
    given = [name for name in _CLIP_NAMES if options.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; at most one of {', '.join(_CLIP_NAMES)} is taken")


def _at_least_zero(value: Any, name: str) -> float:
    """Return a bound as a float that is not negative."""
    bound = as_bound(value, name)
    if bound < 0.0:
        raise ValueError(f"{name} is {value!r}; it takes a number that is not negative, or None")
    # Without the sign of -0.0.
    return abs(bound)


def checked_skip_limit(value: Any, name: str) -> float | None:
    """Return the norm above which steps are skipped, after checking it."""
    return None if value is None else _at_least_zero(value, name)


def checked_policy(value: Any, name: str) -> str:
    """Return the policy for NaN and infinity, after checking it."""
    for policy in _POLICIES:
        if isinstance(value, str) and value == policy:
            return policy
    raise ValueError(f'{name} is {value!r}; it takes "propagate", "raise" or "skip"')


def checked_loss_scale(value: Any, name: str) -> Any:
    """Return the loss scale, after checking it unless it is a function."""
    if not callable(value):
        current_loss_scale(value)
    return value


def current_loss_scale(value: HyperParameter | None) -> float:
    """Return the current number that gradients are divided by."""
    if value is None:
        return 1.0
    scale = current(value, "loss_scale")
    if not 0 < scale < math.inf:
        raise ValueError(f"loss_scale is {scale!r}; it takes a finite number above 0")
    return scale


def compiled_options(settings: Mapping[str, Any]) -> _core.GradientClipping:
    """Return the clipping method, its bound, and the steps that are not taken, for `_core.StepRequest`."""
    option, bound = settings[CLIP] or (None, math.inf)
    clip = "none" if option is None else _CLIP_NAMES[option]
    return _compiled_options(clip, bound, settings["on_nonfinite"], settings["skip_above"])


@functools.lru_cache(maxsize=64)
def _compiled_options(
    clip: str, bound: float, on_nonfinite: str, skip_above: float | None
) -> _core.GradientClipping:
    return _core.GradientClipping(clip, bound, on_nonfinite, skip_above)


def row_bound(settings: Mapping[str, Any], loss_scale: float) -> float:
    """Return the bound on elements of repeated rows, which are clamped before they are summed.

    The bound is infinite unless gradients are clipped by value. It is multiplied by the loss scale, because
    the rows have not been divided by it yet.
    """
    option, bound = settings[CLIP] or (None, math.inf)
    return bound * loss_scale if option == "clipvalue" else math.inf
