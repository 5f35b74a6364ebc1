"""Optimizers in TensorFlow's v1 API, with clipping fused into the update.

Examples
--------
>>> import numpy as np
>>> from fastclip.train import AdamOptimizer
>>> w, b = np.zeros(3, np.float32), np.zeros((), np.float32)
>>> optimizer = AdamOptimizer(learning_rate=0.1, global_clipnorm=1.0)
>>> optimizer.apply_gradients([(np.float32([3.0, 0.0, 4.0]), w), (None, b)])
>>> optimizer.last_norm, optimizer.last_scale
(np.float32(5.0), 0.2)
>>> w.round(4)
array([-0.1,  0. , -0.1], dtype=float32)
"""

from __future__ import annotations

from fastclip._autodiff.gradients import compute_gradients
from fastclip._public import name_public_module as _name_public_module
from fastclip.train._optimizer import Optimizer
from fastclip.train._optimizers.adadelta import AdadeltaOptimizer
from fastclip.train._optimizers.adagrad import AdagradOptimizer
from fastclip.train._optimizers.adagrad_da import AdagradDAOptimizer
from fastclip.train._optimizers.adam import AdamOptimizer
from fastclip.train._optimizers.adamw import AdamWOptimizer
from fastclip.train._optimizers.ftrl import FtrlOptimizer
from fastclip.train._optimizers.gradient_descent import GradientDescentOptimizer
from fastclip.train._optimizers.momentum import MomentumOptimizer
from fastclip.train._optimizers.proximal_adagrad import ProximalAdagradOptimizer
from fastclip.train._optimizers.proximal_gradient_descent import ProximalGradientDescentOptimizer
from fastclip.train._optimizers.rms_prop import RMSPropOptimizer

__all__ = [
    "AdadeltaOptimizer",
    "AdagradDAOptimizer",
    "AdagradOptimizer",
    "AdamOptimizer",
    "AdamWOptimizer",
    "FtrlOptimizer",
    "GradientDescentOptimizer",
    "MomentumOptimizer",
    "Optimizer",
    "ProximalAdagradOptimizer",
    "ProximalGradientDescentOptimizer",
    "RMSPropOptimizer",
    "compute_gradients",
]


def __dir__() -> list[str]:
    # The public names alone, for completion in interactive shells.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_name_public_module(globals())
