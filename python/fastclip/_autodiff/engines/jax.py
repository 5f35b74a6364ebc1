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
    finished,
    import_engine,
    incoming_gradient,
    is_float,
)
from fastclip._variables.variable import Variable

__all__ = ["gradients"]

_registering = threading.Lock()
_registered = False


def gradients(problem: Problem) -> list[Any]:
    """Return the gradient of each variable, None for one that the loss does not depend on."""
    jax = import_engine("jax", "jax")
    jnp = import_engine("jax.numpy", "jax")
    derivatives = import_engine("jax.custom_derivatives", "jax")
    _register(jax)
    arrays = problem.arrays()
    reached = [False] * len(arrays)

    def marked(position: int, value: Any) -> Any:
        # The identity, whose backward rule is not called, or is handed a symbolic zero, where the loss
        # does not depend on the value. JAX itself gives zeros then.
        @jax.custom_vjp  # type: ignore[untyped-decorator]
        def identity(x: Any) -> Any:
            return x

        def backward(_: Any, gradient: Any) -> tuple[Any]:
            if isinstance(gradient, derivatives.SymbolicZero):
                return (jnp.zeros(gradient.shape, gradient.dtype),)
            reached[position] = True
            return (gradient,)

        identity.defvjp(lambda x: (x.value, None), backward, symbolic_zeros=True)
        return identity(value)

    def loss(*values: Any) -> Any:
        traced = [marked(i, value) for i, value in enumerate(values)]
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

    with _precision(jax, any(array.dtype == np.float64 for array in arrays)):
        # Copies: JAX may share memory with an array, and takes it for immutable.
        values = [jnp.array(np.asarray(array)) for array in arrays]
        output, pull_back = jax.vjp(loss, *values)
        incoming = incoming_gradient(_as_numpy(jax, problem.grad_loss), output.shape, output.dtype)
        found = pull_back(jnp.asarray(incoming))
        # JAX's arrays are read-only.
        results = [np.array(g) if r else None for g, r in zip(found, reached, strict=True)]
    return finished(results, problem)


def _as_numpy(jax: Any, value: Any) -> Any:
    return np.asarray(value) if isinstance(value, jax.Array) else value


def _precision(jax: Any, wide: bool) -> AbstractContextManager[Any]:
    """Float64 inside a `with`, without a change of the user's configuration."""
    if not wide or jax.config.jax_enable_x64:
        return nullcontext()
    enable: Any = getattr(jax, "enable_x64", None)
    if enable is None:
        enable = import_engine("jax.experimental", "jax").enable_x64
    context: AbstractContextManager[Any] = enable(True)
    return context


def _register(jax: Any) -> None:
    """Make variables known to JAX, so that its compiled functions take them as arguments.

    They take apart what they are given into arrays and put it together inside: a variable is there the
    array that it held.
    """
    global _registered
    with _registering:
        if not _registered:
            jax.tree_util.register_pytree_node(
                Variable,
                lambda variable: ((variable.__jax_array__(),), None),
                lambda _, children: children[0],
            )
            _registered = True
