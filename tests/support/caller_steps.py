"""Steps of an optimizer that keeps slots, step counts and hyper-parameters outside of the compiled part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core

Array = npt.NDArray[Any]

#: The number of slots of some rules, with hyper-parameters in the rule's order.
RULES: dict[str, tuple[int, tuple[float, ...]]] = {
    "gradient_descent": (0, (0.1,)),
    "momentum": (1, (0.1, 0.9, 1.0)),
    "adagrad": (1, (0.1,)),
    "adam": (2, (0.02, 0.9, 0.999, 1e-8, math.nan, math.nan)),
    "centered_rms_prop": (3, (0.05, 0.9, 0.5, 1e-3)),
}


@dataclass
class Parameter:
    """A variable with all that its update takes."""

    variable: Array
    slots: list[Array]
    copy: Array | None = None
    hyper: int = 0
    step_count: Array | None = None


@dataclass
class CallerStep:
    """An optimizer that keeps no state in the compiled part."""

    rule: str
    hyper: list[tuple[float, ...]] = field(default_factory=list)
    clip: str = "none"
    bound: float = math.inf
    on_nonfinite: str = "propagate"

    def __post_init__(self) -> None:
        self.hyper = self.hyper or [RULES[self.rule][1]]
        self.slots = _core.CallerSlots(self.rule)
        self.clipping = _core.GradientClipping(self.clip, self.bound, self.on_nonfinite)
        self.skipped, self.report = np.array(0, np.int64), np.zeros(5)

    def take(self, gradients: list[Any], parameters: list[Parameter], loss_scale: float = 1.0) -> bool:
        pairs = [
            (gradient, p.variable, tuple(p.slots), p.copy, p.hyper, p.step_count)
            for gradient, p in zip(gradients, parameters, strict=True)
        ]
        request = _core.StepRequest(
            self.slots,
            pairs,
            lambda: (self.hyper, [], self.skipped, self.report, None),
            self.clipping,
            loss_scale,
        )
        return _core.take_step(request)
