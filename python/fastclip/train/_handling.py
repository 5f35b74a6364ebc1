"""What an optimizer does to gradients before its rule sees them."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

from fastclip._arguments.arrays import as_bound
from fastclip.train._hyper_parameter import HyperParameter, current

__all__ = ["GradientHandling", "Handling"]

_POLICIES = ("propagate", "raise", "skip")


class GradientHandling(TypedDict, total=False):
    """The keyword arguments that every optimizer takes. See :class:`fastclip.train.Optimizer`."""

    clipvalue: float | None
    clipnorm: float | None
    global_clipnorm: float | None
    on_nonfinite: str
    loss_scale: HyperParameter | None


class Handled(NamedTuple):
    """What happens to gradients in one step.

    Attributes
    ----------
    clip : {"none", "value", "norm", "global_norm"}
        How they are clipped,
    bound : float
        and to what.
    loss_scale : float
        What they are divided by before.
    on_nonfinite : {"propagate", "raise", "skip"}
        The policy.
    """

    clip: str
    bound: float
    loss_scale: float
    on_nonfinite: str

    @property
    def row_bound(self) -> float:
        """What the elements of repeated rows are clamped to before they are summed, undivided."""
        return self.bound * self.loss_scale if self.clip == "value" else math.inf


class Handling:
    """These arguments, checked.

    Raises
    ------
    TypeError
        If a bound is no number.
    ValueError
        If more than one bound is given, one is negative or NaN, or the policy is unknown.
    """

    def __init__(
        self,
        clipvalue: float | None,
        clipnorm: float | None,
        global_clipnorm: float | None,
        on_nonfinite: str,
        loss_scale: HyperParameter | None,
    ) -> None:
        bounds = {"clipvalue": clipvalue, "clipnorm": clipnorm, "global_clipnorm": global_clipnorm}
        given = {name: value for name, value in bounds.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; at most one of {', '.join(bounds)} is taken")
        if on_nonfinite not in _POLICIES:
            raise ValueError(f'on_nonfinite is {on_nonfinite!r}; it takes "propagate", "raise" or "skip"')
        self.kind, self.bound = "none", math.inf
        for name, value in given.items():
            self.kind = {"clipvalue": "value", "clipnorm": "norm", "global_clipnorm": "global_norm"}[name]
            self.bound = as_bound(value, name)
            if self.bound < 0:
                raise ValueError(f"{name} is {value!r}; it takes a number that is not negative")
        self.on_nonfinite = on_nonfinite
        self.loss_scale = loss_scale
        if not callable(loss_scale):
            self._current_loss_scale()

    def _current_loss_scale(self) -> float:
        if self.loss_scale is None:
            return 1.0
        scale = current(self.loss_scale, "loss_scale")
        if not 0 < scale < math.inf:
            raise ValueError(f"loss_scale is {scale!r}; it takes a finite number above 0")
        return scale

    def now(self) -> Handled:
        """What happens in this step."""
        return Handled(self.kind, self.bound, self._current_loss_scale(), self.on_nonfinite)
