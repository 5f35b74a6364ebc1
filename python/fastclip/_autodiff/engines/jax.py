"""Differentiation by JAX."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastclip._arguments.arrays import describe
from fastclip._autodiff.problem import (
    Problem,
    check_real,
    import_engine,
    independent_gradients,
    is_float,
    output_gradient,
)
from fastclip._variables.variable import Variable

__all__ = ["gradients"]

_registration_lock = threading.Lock()
_is_registered = False


def gradients(problem: Problem) -> list[Any]:
    """Returns the gradient of each variable; None for one that the loss does not depend on."""
    jax = import_engine("jax", "jax")
    jnp = import_engine("jax.numpy", "jax")
    derivatives = import_engine("jax.custom_derivatives", "jax")
    _register(jax)
    arrays = problem.arrays()
    has_gradient = [False] * len(arrays)

    def recorded(position: int, value: Any) -> Any:
        # The identity, with a backward rule that records that the loss depends on the value: otherwise JAX
        # does not call the rule, or passes it a symbolic zero, and returns zeros as the gradient.
        @jax.custom_vjp  # type: ignore[untyped-decorator]
        def identity(x: Any) -> Any:
            return x

        def backward(_: Any, gradient: Any) -> tuple[Any]:
            if isinstance(gradient, derivatives.SymbolicZero):
                return (jnp.zeros(gradient.shape, gradient.dtype),)
            has_gradient[position] = True
            return (gradient,)

        identity.defvjp(lambda x: (x.value, None), backward, symbolic_zeros=True)
        return identity(value)

    def loss(*values: Any) -> Any:
        traced = [recorded(i, value) for i, value in enumerate(values)]
        output = problem.evaluate("jax", traced)
        if isinstance(output, jax.Array):
            if not is_float(output.dtype):
                raise TypeError(
                    f"loss returned an array of dtype {output.dtype}; it has to return a number or an array "
                    "of real floating-point numbers"
                )
            return output
        if isinstance(output, (list, tuple, dict)):
            raise TypeError(f"loss returned {describe(output)}; it has to return a number or an array")
        return jnp.asarray(check_real(output))

    with _float64_enabled(jax, any(array.dtype == np.float64 for array in arrays)):
        # Copied, because JAX may share the memory of an array, which it assumes to be immutable.
        values = [jnp.array(np.asarray(array)) for array in arrays]
        output, pull_back = jax.vjp(loss, *values)
        gradient = output_gradient(_as_numpy(jax, problem.grad_loss), output.shape, output.dtype)
        jax_gradients = pull_back(jnp.asarray(gradient))
        # Copied, because JAX's arrays are read-only.
        results = [np.array(g) if r else None for g, r in zip(jax_gradients, has_gradient, strict=True)]
    return independent_gradients(results, problem)


def _as_numpy(jax: Any, value: Any) -> Any:
    return np.asarray(value) if isinstance(value, jax.Array) else value


def _float64_enabled(jax: Any, needed: bool) -> AbstractContextManager[Any]:
    """Context manager that enables float64, if needed, without changing the user's configuration."""
    if not needed or jax.config.jax_enable_x64:
        return nullcontext()
    enable: Any = getattr(jax, "enable_x64", None)
    if enable is None:
        enable = import_engine("jax.experimental", "jax").enable_x64
    context: AbstractContextManager[Any] = enable(True)
    return context


def _register(jax: Any) -> None:
    """Registers Variable as a pytree of JAX, so that its compiled functions accept variables as arguments.

    They flatten their arguments into arrays and unflatten them inside; there, a variable becomes the array
    that it held.
    """
    global _is_registered
    with _registration_lock:
        if not _is_registered:
            jax.tree_util.register_pytree_node(
                Variable,
                lambda variable: ((variable.__jax_array__(),), None),
                lambda _, children: children[0],
            )
            _is_registered = True
