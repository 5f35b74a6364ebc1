"""The optimizers that ``fastclip bench --train`` times, and the correct results of their first step.

The formulas are those of ``tf.compat.v1.train``, in NumPy and float64. A contender's first step is compared
with them before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastclip import train
from fastclip.cli.bench.inputs.arrays import Array

# Hyper-parameters of all contenders. The time of a step does not depend on them.
LEARNING_RATE = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
WEIGHT_DECAY = 0.01
MOMENTUM = 0.9

# Regularisation strengths. They are above zero, so that the proximal optimizers do all of their work.
_L1, _L2 = 1e-3, 1e-3
_INITIAL_ACCUMULATOR = 0.1  # TensorFlow's default
# The benchmark repeats the same gradients in each step. In the centered form, the difference rms - mg² then
# approaches 0 and may become negative by rounding; this epsilon is larger than the rounding error.
_RMS_EPSILON = 1e-6

FirstStep = tuple[Array, Array | None]  # the variable after the step, its first slot


@dataclass(frozen=True)
class Rule:
    """Optimizer with its hyper-parameters.

    Attributes
    ----------
    name : str
        The name of the optimizer in row names.
    slots : tuple of str
        The names of its slots.
    optimizer : callable
        Takes the step counter and the keyword arguments for clipping, and returns fastclip's optimizer.
    first_step : callable
        Takes a variable and its gradient in float64, and returns the variable after the first step and its
        first slot, which is None for an optimizer without slots.
    """

    name: str
    slots: tuple[str, ...]
    optimizer: Callable[[Array, dict[str, Any]], train.Optimizer]
    first_step: Callable[[Array, Array], FirstStep]


def _gradient_descent(w: Array, g: Array) -> FirstStep:
    return w - LEARNING_RATE * g, None


def _momentum(w: Array, g: Array) -> FirstStep:
    return w - LEARNING_RATE * g, g


def _adam(w: Array, g: Array) -> FirstStep:
    m, v = (1 - BETA1) * g, (1 - BETA2) * g**2
    rate = LEARNING_RATE * np.sqrt(1 - BETA2) / (1 - BETA1)
    return w - rate * m / (np.sqrt(v) + EPSILON), m


def _adamw(w: Array, g: Array) -> FirstStep:
    stepped, m = _adam(w, g)
    return stepped - LEARNING_RATE * WEIGHT_DECAY * w, m


def _adagrad(w: Array, g: Array) -> FirstStep:
    a = _INITIAL_ACCUMULATOR + g**2
    return w - LEARNING_RATE * g / np.sqrt(a), a


def _adagrad_da(w: Array, g: Array) -> FirstStep:
    shrunk = np.sign(g) * np.maximum(np.abs(g) - _L1, 0)
    return -LEARNING_RATE * shrunk / (_L2 * LEARNING_RATE + np.sqrt(_INITIAL_ACCUMULATOR + g**2)), g


def _rms_prop(w: Array, g: Array) -> FirstStep:
    s = 1 + (g**2 - 1) * (1 - 0.9)
    return w - LEARNING_RATE * g / np.sqrt(s + _RMS_EPSILON), s


def _rms_prop_centered(w: Array, g: Array) -> FirstStep:
    s, mean = 1 + (g**2 - 1) * (1 - 0.9), g * (1 - 0.9)
    return w - LEARNING_RATE * g / np.sqrt(s - mean**2 + _RMS_EPSILON), s


def _adadelta(w: Array, g: Array) -> FirstStep:
    a = (1 - 0.95) * g**2
    return w - np.sqrt(EPSILON) / np.sqrt(a + EPSILON) * g, a


def _ftrl(w: Array, g: Array) -> FirstStep:
    n = _INITIAL_ACCUMULATOR + g**2
    z = g - (np.sqrt(n) - np.sqrt(_INITIAL_ACCUMULATOR)) / LEARNING_RATE * w
    return (np.clip(z, -_L1, _L1) - z) / (np.sqrt(n) / LEARNING_RATE + 2 * _L2), n


def _proximal(w: Array, rate: Any) -> Array:
    shrunk: Array = np.sign(w) * np.maximum(np.abs(w) - rate * _L1, 0) / (1 + rate * _L2)
    return shrunk


def _proximal_gradient_descent(w: Array, g: Array) -> FirstStep:
    return _proximal(w - LEARNING_RATE * g, LEARNING_RATE), None


def _proximal_adagrad(w: Array, g: Array) -> FirstStep:
    a = _INITIAL_ACCUMULATOR + g**2
    rate = LEARNING_RATE / np.sqrt(a)
    return _proximal(w - rate * g, rate), a


_L1_L2: dict[str, Any] = {"l1_regularization_strength": _L1, "l2_regularization_strength": _L2}
_RMS: dict[str, Any] = {"momentum": MOMENTUM, "epsilon": _RMS_EPSILON}
_RATE = LEARNING_RATE

ADAMW = Rule(
    "adamw",
    ("m", "v"),
    lambda step, clip: train.AdamWOptimizer(_RATE, BETA1, BETA2, EPSILON, weight_decay=WEIGHT_DECAY, **clip),
    _adamw,
)
MOMENTUM_RULE = Rule(
    "momentum", ("momentum",), lambda step, clip: train.MomentumOptimizer(_RATE, MOMENTUM, **clip), _momentum
)
OTHERS = (
    Rule(
        "gradient-descent",
        (),
        lambda step, clip: train.GradientDescentOptimizer(_RATE, **clip),
        _gradient_descent,
    ),
    Rule(
        "adam",
        ("m", "v"),
        lambda step, clip: train.AdamOptimizer(_RATE, BETA1, BETA2, EPSILON, **clip),
        _adam,
    ),
    Rule("adagrad", ("accumulator",), lambda step, clip: train.AdagradOptimizer(_RATE, **clip), _adagrad),
    Rule(
        "adagrad-da",
        ("gradient_accumulator", "gradient_squared_accumulator"),
        lambda step, clip: train.AdagradDAOptimizer(_RATE, step, **_L1_L2, **clip),
        _adagrad_da,
    ),
    Rule(
        "rms-prop",
        ("rms", "momentum"),
        lambda step, clip: train.RMSPropOptimizer(_RATE, **_RMS, **clip),
        _rms_prop,
    ),
    Rule(
        "rms-prop-centered",
        ("rms", "momentum", "mg"),
        lambda step, clip: train.RMSPropOptimizer(_RATE, centered=True, **_RMS, **clip),
        _rms_prop_centered,
    ),
    Rule(
        "adadelta",
        ("accum", "accum_update"),
        lambda step, clip: train.AdadeltaOptimizer(1.0, 0.95, EPSILON, **clip),
        _adadelta,
    ),
    Rule(
        "ftrl",
        ("accum", "linear"),
        lambda step, clip: train.FtrlOptimizer(_RATE, **_L1_L2, **clip),
        _ftrl,
    ),
    Rule(
        "proximal-gradient-descent",
        (),
        lambda step, clip: train.ProximalGradientDescentOptimizer(_RATE, **_L1_L2, **clip),
        _proximal_gradient_descent,
    ),
    Rule(
        "proximal-adagrad",
        ("accumulator",),
        lambda step, clip: train.ProximalAdagradOptimizer(_RATE, **_L1_L2, **clip),
        _proximal_adagrad,
    ),
)
