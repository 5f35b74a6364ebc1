"""Libraries that differentiate losses, and a linear regression with its gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]

ENGINES = [
    pytest.param("autograd"),
    pytest.param("jax", marks=pytest.mark.interop("jax")),
    pytest.param("torch", marks=pytest.mark.interop("torch")),
]
EVERY_ENGINE = pytest.mark.parametrize("engine", ENGINES)

#: Error allowed in a gradient, relative to its largest element, by the size of an element in bytes.
TOLERANCE = {4: 2e-5, 8: 1e-12}


def library(engine: str) -> Any:
    """Returns the functions of an engine, or of NumPy, under NumPy's names."""
    module: Any
    names = ("asarray", "sum", "dot", "exp", "tanh", "where", "stack")
    if engine == "torch":
        import torch

        functions = {name: getattr(torch, name) for name in names}
        functions |= {"asarray": lambda a: torch.from_numpy(np.asarray(a)), "dot": torch.matmul}
        return SimpleNamespace(**functions)
    if engine == "autograd":
        import autograd.numpy as module
    elif engine == "jax":
        import jax.numpy as module
    else:
        module = np
    # Data stays NumPy's, also for JAX, which converts it in the precision that is configured at the time.
    return SimpleNamespace(**{name: getattr(module, name) for name in names[1:]}, asarray=np.asarray)


def regression(dtype: Any, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Returns inputs, targets, weights and bias of a linear regression."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(5, 3)).astype(dtype),
        rng.normal(size=5).astype(dtype),
        rng.normal(size=3).astype(dtype),
        np.array(rng.normal(), dtype),
    )


def regression_gradients(x: Array, y: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """Returns the gradients of ``sum((x @ w + b - y)**2)`` with respect to w and b, in float64."""
    x, y, w, b = (np.asarray(a, np.float64) for a in (x, y, w, b))
    residual = x @ w + b - y
    return 2 * x.T @ residual, 2 * residual.sum()


def assert_gradient(actual: Any, expected: Any, variable: Any) -> None:
    """Checks a gradient: its values, and that it is a writable array of the variable's dtype and shape."""
    assert type(actual) is np.ndarray
    assert actual.dtype == variable.dtype
    assert actual.shape == variable.shape
    assert actual.flags.writeable
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype.itemsize] * scale)
