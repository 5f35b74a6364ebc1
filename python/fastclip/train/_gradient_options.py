"""The gradient options of optimizers: clipping, the policy for NaN and infinity, and the loss scale."""

from __future__ import annotations

import math
from typing import TypedDict

from fastclip import _core
from fastclip._arguments.arrays import as_bound
from fastclip.train._hyper_parameter import HyperParameter, current

__all__ = ["GradientClipping", "GradientOptions"]

_POLICIES = ("propagate", "raise", "skip")

#: What `_core.GradientClipping` calls the clipping method of each option.
_CLIP_NAMES = {"clipvalue": "value", "clipnorm": "norm", "global_clipnorm": "global_norm"}


class GradientOptions(TypedDict, total=False):
    """The keyword arguments that every optimizer takes. See :class:`fastclip.train.Optimizer`."""

    clipvalue: float | None
    clipnorm: float | None
    global_clipnorm: float | None
    on_nonfinite: str
    loss_scale: HyperParameter | None


class GradientClipping:
    """The gradient options of an optimizer, checked.

    Parameters
    ----------
    clipvalue, clipnorm, global_clipnorm : float, optional
        The bound on elements, norms or the global norm. At most one may be passed.
    on_nonfinite : {"propagate", "raise", "skip"}
        The policy for NaN and infinity.
    loss_scale : float, 0-d array or callable, optional
        The number that gradients are divided by.

    Attributes
    ----------
    compiled : _core.GradientClipping
        The clipping method, its bound and the policy, as an argument of `_core.StepRequest`.

    Raises
    ------
    TypeError
        If a bound is not a number.
    ValueError
        If more than one bound is passed, one is negative or NaN, or the policy is unknown.
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
        passed = {name: value for name, value in bounds.items() if value is not None}
        if len(passed) > 1:
            raise ValueError(f"{' and '.join(passed)} are given; at most one of {', '.join(bounds)} is taken")
        if on_nonfinite not in _POLICIES:
            raise ValueError(f'on_nonfinite is {on_nonfinite!r}; it takes "propagate", "raise" or "skip"')
        self._clip, self._bound = "none", math.inf
        for name, value in passed.items():
            self._clip, self._bound = _CLIP_NAMES[name], as_bound(value, name)
            if self._bound < 0:
                raise ValueError(f"{name} is {value!r}; it takes a number that is not negative")
        self._loss_scale = loss_scale
        #: The arguments of the constructor, from which a copy of an optimizer makes its own options.
        self.arguments: GradientOptions = {
            "clipvalue": clipvalue,
            "clipnorm": clipnorm,
            "global_clipnorm": global_clipnorm,
            "on_nonfinite": on_nonfinite,
            "loss_scale": loss_scale,
        }
        self.compiled = _core.GradientClipping(self._clip, self._bound, on_nonfinite)
        if not callable(loss_scale):
            self.loss_scale()

    def loss_scale(self) -> float:
        """Return the current number that gradients are divided by."""
        if self._loss_scale is None:
            return 1.0
        scale = current(self._loss_scale, "loss_scale")
        if not 0 < scale < math.inf:
            raise ValueError(f"loss_scale is {scale!r}; it takes a finite number above 0")
        return scale

    def row_bound(self, loss_scale: float) -> float:
        """Return the bound on elements of repeated rows, which are clamped before they are summed.

        The bound is infinite unless gradients are clipped by value. It is multiplied by the loss scale,
        because the rows have not been divided by it yet.
        """
        return self._bound * loss_scale if self._clip == "value" else math.inf
