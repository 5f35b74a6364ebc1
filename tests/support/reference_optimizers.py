"""TensorFlow v1's update rules, and decoupled weight decay, in plain NumPy and float64.

Written from the formulas, one array at a time, without optimization. Both fastclip's optimizers and
TensorFlow's recorded trajectories are compared with it; it imports neither library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Hyper = Mapping[str, Any]
#: Maps variable, gradient, slots, hyper-parameters and the number of the step, counted from 1, to the new
#: variable; replaces the entries of the slots.
Update = Callable[[Array, Array, dict[str, Array], Hyper, int], Array]


@dataclass(frozen=True)
class Rule:
    """An optimizer's update rule.

    Parameters
    ----------
    update : callable
        The step of one variable.
    slots : dict
        The initial value of each slot: a number, or the name of the hyper-parameter that has the value.
    defaults : dict
        Default values of hyper-parameters.
    moves_every_row : bool
        Whether a sparse gradient also updates the rows that it does not contain, as if their gradient were
        zero.
    """

    update: Update
    slots: Mapping[str, float | str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    moves_every_row: bool = False


def _gradient_descent(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    return w - h["learning_rate"] * g


def _momentum(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    lr, mu = h["learning_rate"], h["momentum"]
    slots["momentum"] = a = mu * slots["momentum"] + g
    return w - (lr * g + lr * mu * a) if h["use_nesterov"] else w - lr * a


def _adam(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    beta1, beta2 = h["beta1"], h["beta2"]
    alpha = h["learning_rate"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    slots["m"] = m = slots["m"] + (g - slots["m"]) * (1 - beta1)
    slots["v"] = v = slots["v"] + (g * g - slots["v"]) * (1 - beta2)
    return w - alpha * m / (np.sqrt(v) + h["epsilon"])


def _adamw(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    return _adam(w, g, slots, h, step) - h["weight_decay"] * h["learning_rate"] * w


def _adagrad(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    slots["accumulator"] = a = slots["accumulator"] + g * g
    return w - h["learning_rate"] * g / np.sqrt(a)


def _adagrad_da(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    lr, l1, l2 = h["learning_rate"], h["l1_regularization_strength"], h["l2_regularization_strength"]
    slots["gradient_accumulator"] = total = slots["gradient_accumulator"] + g
    slots["gradient_squared_accumulator"] = squares = slots["gradient_squared_accumulator"] + g * g
    shrunk = np.sign(total) * np.maximum(np.abs(total) - l1 * step, 0)
    return -lr * shrunk / (l2 * step * lr + np.sqrt(squares))


def _rms_prop(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    decay = h["decay"]
    slots["rms"] = s = slots["rms"] + (g * g - slots["rms"]) * (1 - decay)
    if h["centered"]:
        slots["mg"] = mg = slots["mg"] + (g - slots["mg"]) * (1 - decay)
        s = s - mg * mg
    slots["momentum"] = m = h["momentum"] * slots["momentum"] + h["learning_rate"] * g / np.sqrt(
        s + h["epsilon"]
    )
    return w - m


def _adadelta(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    rho, epsilon = h["rho"], h["epsilon"]
    slots["accum"] = a = rho * slots["accum"] + (1 - rho) * g * g
    u = np.sqrt(slots["accum_update"] + epsilon) / np.sqrt(a + epsilon) * g
    slots["accum_update"] = rho * slots["accum_update"] + (1 - rho) * u * u
    return w - h["learning_rate"] * u


def _ftrl(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    lr, power, l1 = h["learning_rate"], h["learning_rate_power"], h["l1_regularization_strength"]
    l2 = h["l2_regularization_strength"] + (h["beta"] or 0.0) / (2 * lr)
    shrunk = g + 2 * h["l2_shrinkage_regularization_strength"] * w
    n = slots["accum"]
    slots["accum"] = n_new = n + g * g
    sigma = (n_new**-power - n**-power) / lr
    slots["linear"] = z = slots["linear"] + shrunk - sigma * w
    return (np.clip(z, -l1, l1) - z) / (n_new**-power / lr + 2 * l2)


def _proximal(v: Array, rate: Any, h: Hyper) -> Array:
    l1, l2 = h["l1_regularization_strength"], h["l2_regularization_strength"]
    return np.sign(v) * np.maximum(np.abs(v) - rate * l1, 0) / (1 + rate * l2)


def _proximal_gradient_descent(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    lr = h["learning_rate"]
    return _proximal(w - lr * g, lr, h)


def _proximal_adagrad(w: Array, g: Array, slots: dict[str, Array], h: Hyper, step: int) -> Array:
    slots["accumulator"] = a = slots["accumulator"] + g * g
    rate = h["learning_rate"] / np.sqrt(a)
    return _proximal(w - rate * g, rate, h)


_ADAM = {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
_STRENGTHS = {"l1_regularization_strength": 0.0, "l2_regularization_strength": 0.0}

#: Rules by the name of the optimizer, which is that of its class without "Optimizer".
RULES = {
    "GradientDescent": Rule(_gradient_descent),
    "Momentum": Rule(_momentum, {"momentum": 0.0}, {"use_nesterov": False}),
    "Adam": Rule(_adam, {"m": 0.0, "v": 0.0}, _ADAM, moves_every_row=True),
    "AdamW": Rule(_adamw, {"m": 0.0, "v": 0.0}, _ADAM, moves_every_row=True),
    "Adagrad": Rule(
        _adagrad, {"accumulator": "initial_accumulator_value"}, {"initial_accumulator_value": 0.1}
    ),
    "AdagradDA": Rule(
        _adagrad_da,
        {
            "gradient_accumulator": 0.0,
            "gradient_squared_accumulator": "initial_gradient_squared_accumulator_value",
        },
        {"initial_gradient_squared_accumulator_value": 0.1, **_STRENGTHS},
    ),
    "RMSProp": Rule(
        _rms_prop,
        {"rms": 1.0, "momentum": 0.0, "mg": 0.0},
        {"decay": 0.9, "momentum": 0.0, "epsilon": 1e-10, "centered": False},
    ),
    "Adadelta": Rule(
        _adadelta,
        {"accum": 0.0, "accum_update": 0.0},
        {"learning_rate": 0.001, "rho": 0.95, "epsilon": 1e-8},
    ),
    "Ftrl": Rule(
        _ftrl,
        {"accum": "initial_accumulator_value", "linear": 0.0},
        {
            "learning_rate_power": -0.5,
            "initial_accumulator_value": 0.1,
            "l2_shrinkage_regularization_strength": 0.0,
            "beta": None,
            **_STRENGTHS,
        },
    ),
    "ProximalGradientDescent": Rule(_proximal_gradient_descent, {}, _STRENGTHS),
    "ProximalAdagrad": Rule(
        _proximal_adagrad,
        {"accumulator": "initial_accumulator_value"},
        {"initial_accumulator_value": 0.1, **_STRENGTHS},
    ),
}


class ReferenceOptimizer:
    """One optimizer with the state of a list of variables.

    Parameters
    ----------
    name : str
        A key of `RULES`.
    variables : sequence of array_like
        Their values are copied to float64.
    **hyper
        Constructor arguments by TensorFlow's names. AdagradDA's `global_step` is the number of steps taken.

    Attributes
    ----------
    variables : list of ndarray
        The current values.
    slots : list of dict
        The slots of each variable, empty before its first gradient.
    terms : list of dict
        For each variable, by slot name and for the variable itself as "variable", the largest absolute value
        of the terms added up in each element so far. The element's rounding errors are relative to it.
    """

    def __init__(self, name: str, variables: Sequence[npt.ArrayLike], **hyper: Any) -> None:
        self.rule = RULES[name]
        self.hyper = {**self.rule.defaults, **hyper}
        self.variables: list[Array] = [np.array(value, np.float64) for value in variables]
        self.slots: list[dict[str, Array]] = [{} for _ in self.variables]
        self.terms: list[dict[str, Array]] = [{"variable": np.abs(value)} for value in self.variables]
        self.steps = 0

    def apply(self, gradients: Sequence[Any], clip_norm: float | None = None) -> None:
        """Takes a step with a gradient for each variable: an array, slices, or None.

        Slices have `values` and `indices`; repeated rows are summed. With `clip_norm` the gradients are
        clipped by their global norm, to which slices contribute the norm of their values.
        """
        scale = 1.0
        if clip_norm is not None:
            norm = global_norm(gradients)
            scale = clip_norm / norm if norm > clip_norm else 1.0
        self.steps += 1
        for position, gradient in enumerate(gradients):
            if gradient is not None:
                before = self.variables[position].copy()
                self._apply_one(position, gradient, scale)
                self._note_terms(position, before)

    def _apply_one(self, position: int, gradient: Any, scale: float) -> None:
        value, slots = self.variables[position], self.slots[position]
        if not slots:
            slots.update(self._initial_slots(value.shape))
        if not hasattr(gradient, "indices"):
            g = scale * np.asarray(gradient).astype(np.float64)
            self.variables[position] = np.asarray(self.rule.update(value, g, slots, self.hyper, self.steps))
            return
        summed = np.zeros(value.shape)
        np.add.at(summed, np.asarray(gradient.indices), scale * gradient.values.astype(np.float64))
        if self.rule.moves_every_row:
            self.variables[position] = self.rule.update(value, summed, slots, self.hyper, self.steps)
            return
        rows = np.unique(gradient.indices)
        row_slots = {name: slot[rows] for name, slot in slots.items()}
        value[rows] = self.rule.update(value[rows], summed[rows], row_slots, self.hyper, self.steps)
        for name, slot in row_slots.items():
            slots[name][rows] = slot

    def _note_terms(self, position: int, before: Array) -> None:
        terms, slots = self.terms[position], self.slots[position]
        new = {"variable": self.variables[position], **slots}
        if "linear" in slots:
            # FTRL's "linear" has a term proportional to the variable, which in turn is "linear" divided by
            # this factor.
            factor = slots["accum"] ** -self.hyper["learning_rate_power"] / self.hyper["learning_rate"]
            new["linear"] = np.maximum(np.abs(slots["linear"]), factor * np.abs(before))
        for name, value in new.items():
            terms[name] = np.maximum(terms.get(name, 0.0), np.abs(value))

    def _initial_slots(self, shape: tuple[int, ...]) -> dict[str, Array]:
        slots = {}
        for name, initial in self.rule.slots.items():
            if name == "mg" and not self.hyper["centered"]:
                continue
            slots[name] = np.full(shape, self.hyper[initial] if isinstance(initial, str) else initial)
        return slots


def global_norm(gradients: Sequence[Any]) -> float:
    """Returns the norm of all gradients together."""
    arrays = [np.asarray(getattr(g, "values", g)).astype(np.float64) for g in gradients if g is not None]
    return math.sqrt(math.fsum(float(np.sum(np.square(array))) for array in arrays))


def assert_close(actual: Any, expected: Array, terms: Array, *, relative: float, rounding: float) -> None:
    """Checks values to a relative error, with an allowance for cancellation.

    Parameters
    ----------
    actual : ndarray
        Values of any dtype.
    expected : ndarray
        The reference.
    terms : ndarray
        An entry of `ReferenceOptimizer.terms`.
    relative : float
        Error allowed relative to `expected`.
    rounding : float
        Error allowed relative to `terms`, in addition: a difference of nearly equal numbers keeps their
        rounding errors.
    """
    wide = np.asarray(actual).astype(np.float64)
    assert wide.shape == expected.shape
    allowed = relative * np.abs(expected) + rounding * terms
    error = np.abs(wide - expected)
    assert (error <= allowed).all(), (
        f"errors up to {np.max(error / np.maximum(np.abs(expected), 1e-300)):.2g} of the value and "
        f"{np.max(error / np.maximum(terms, 1e-300)):.2g} of its terms\n{wide}\n{expected}"
    )
