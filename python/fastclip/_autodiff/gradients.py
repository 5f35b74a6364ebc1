"""Gradients of a loss, by the library that the caller chooses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastclip._arguments.arrays import describe, is_masked_array
from fastclip._autodiff.problem import Problem, is_float
from fastclip._autodiff.tracing import current_trace
from fastclip._variables.collections import trainable_variables
from fastclip._variables.variable import Variable

__all__ = ["compute_gradients"]

_ENGINES = ("autograd", "jax", "torch")


def compute_gradients(
    loss: Callable[..., Any],
    var_list: Any = None,
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Any = None,
    *,
    backend: str | Callable[[Callable[..., Any], list[Any]], tuple[Any, Any]] | None = None,
) -> list[tuple[Any, Any]]:
    """Return the gradient of a loss by each variable, as ``tf.compat.v1.train.Optimizer.compute_gradients``.

    Parameters
    ----------
    loss : callable
        The loss. With no parameters it reads Variables; with parameters it gets the values of `var_list` in
        their order. Parameters with a default do not make it one with parameters (``lambda x=x: …`` reads
        Variables), but take values where there are more of them; ``*args`` gets the values, and so does a
        callable that tells nothing of its parameters. It returns a number or an array, whose elements
        then count as if they were summed.
    var_list : list, Variable, ndarray, torch.Tensor or nested container, optional
        What to differentiate by, in the order of the container; float16, bfloat16, float32 or float64.
        None is :func:`fastclip.trainable_variables`. By arrays and by tensors that require no gradient, only
        a loss with parameters can be differentiated: nothing else tells where it reads them.
    gate_gradients : {GATE_NONE, GATE_OP, GATE_GRAPH}, optional
        Taken for compatibility; checked, and not used.
    aggregation_method, colocate_gradients_with_ops : optional
        Taken for compatibility; not used.
    grad_loss : array_like, optional
        The gradient that comes into the loss, of its shape. None is ones.
    backend : {"autograd", "jax", "torch"} or callable, optional
        What differentiates. None is ``"torch"`` where all of `var_list` are tensors of torch, else
        ``"autograd"``. A callable is called as ``backend(loss, values)``, with the loss as it was given and
        the values as arrays (the memory of the variables), and returns ``(value, grads)``: one gradient, or
        None, for each value.

    Returns
    -------
    list of (gradient, variable)
        One pair for each variable. The gradient is None where the loss does not depend on the variable,
        or only through what has no derivative; else an array of the variable's type and shape, which can be
        written to and shares memory with nothing else (a tensor where the variable is one; an
        :class:`fastclip.IndexedSlices` of a sparse embedding of torch).

    Raises
    ------
    RuntimeError
        If `loss` is not callable, or a loss that is being differentiated by a variable calls this for it.
    ValueError
        If there are no variables, `gate_gradients` or `backend` is unknown, `grad_loss` has another shape
        than the loss, or a callable `backend` returns another number of gradients, or other shapes.
    TypeError
        If an entry of `var_list` is none of these, the loss takes another number of values, or what it
        returns is no number and no array of floating-point numbers.
    ImportError
        If the library is not installed.

    Notes
    -----
    What the loss raises comes through. Under autograd and JAX the loss uses ``autograd.numpy`` and
    ``jax.numpy``; a function of NumPy's own that would take what is traced for a constant raises. JAX
    computes in float64 where a variable is float64, whatever its configuration is otherwise. A function
    compiled by ``jax.jit`` keeps what it read when it was compiled: pass Variables to it as arguments.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/Optimizer#compute_gradients

    Examples
    --------
    >>> import autograd.numpy as np
    >>> import fastclip
    >>> from fastclip.train import compute_gradients
    >>> w = fastclip.Variable([1.0, 2.0])
    >>> [(gradient, variable)] = compute_gradients(lambda: np.sum(w**2), [w])
    >>> gradient, variable is w
    (array([2., 4.], dtype=float32), True)

    By plain arrays:

    >>> x = np.array([3.0, 4.0])
    >>> [(gradient, _)] = compute_gradients(lambda x: np.sqrt(np.sum(x**2)), [x])
    >>> gradient
    array([0.6, 0.8])
    """
    if not callable(loss):
        raise RuntimeError(
            "`loss` passed to Optimizer.compute_gradients should be a function when eager execution is "
            f"enabled. It is {describe(loss)}."
        )
    if gate_gradients not in (0, 1, 2):
        raise ValueError(
            "gate_gradients must be one of: Optimizer.GATE_NONE, Optimizer.GATE_OP, Optimizer.GATE_GRAPH."
            f"  Not {gate_gradients}"
        )
    found = _labelled(var_list)
    if not found:
        raise ValueError("No variables to optimize.")
    entries = [entry for _, entry in found]
    engine = _chosen(backend, entries)
    takes_values = _takes_values(loss, len(entries))
    # A variable that stands in the list twice is one variable, with one gradient.
    positions: dict[int, int] = {}
    variables: list[Any] = []
    labels: list[str] = []
    arguments: list[tuple[int | None, Any]] = []
    for label, entry in found:
        if var_list is None and not is_float(entry.dtype):
            # Counters are trainable unless they are told otherwise, and have no gradient.
            arguments.append((None, entry._data))
            continue
        _check(entry, label, engine, takes_values or callable(engine))
        if id(entry) not in positions:
            positions[id(entry)] = len(variables)
            labels.append(label)
            variables.append(_for_callable(entry) if callable(engine) else entry)
        arguments.append((positions[id(entry)], None))
    gradients = _run(engine, Problem(loss, takes_values, variables, arguments, labels, grad_loss))

    pairs: list[tuple[Any, Any]] = []
    given: set[int] = set()
    for entry, (i, _) in zip(entries, arguments, strict=True):
        gradient = None if i is None else gradients[i]
        if i in given and gradient is not None:
            gradient = gradient.clone() if _is_tensor(gradient) else _copied(gradient)
        if i is not None:
            given.add(i)
        if callable(engine) and _is_tensor(entry) and isinstance(gradient, np.ndarray):
            gradient = sys.modules["torch"].from_numpy(gradient)
        pairs.append((gradient, entry))
    return pairs


def _run(engine: Any, problem: Problem) -> list[Any]:
    if callable(engine):
        from fastclip._autodiff.engines import user_callable

        return user_callable.gradients(problem, engine)
    if not problem.variables:
        return []
    if engine == "jax":
        from fastclip._autodiff.engines import jax

        return jax.gradients(problem)
    if engine == "torch":
        from fastclip._autodiff.engines import torch

        return torch.gradients(problem)
    from fastclip._autodiff.engines import autograd

    return autograd.gradients(problem)


def _copied(gradient: Any) -> Any:
    if isinstance(gradient, np.ndarray):
        return gradient.copy()
    return gradient._with_values(gradient.values.copy())


def _labelled(var_list: Any) -> list[tuple[str, Any]]:
    """The variables of a nested container, and what each is called in messages."""
    if var_list is None:
        return [(f"trainable_variables()[{i}]", v) for i, v in enumerate(trainable_variables())]
    found: list[tuple[str, Any]] = []

    def walk(value: Any, label: str) -> None:
        if isinstance(value, Mapping):
            for key in value:
                walk(value[key], f"{label}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            for i, entry in enumerate(value):
                walk(entry, f"{label}[{i}]")
        else:
            found.append((label, value))

    try:
        walk(var_list, "var_list")
    except RecursionError:
        raise ValueError("var_list is nested too deeply, or contains itself") from None
    return found


def _is_tensor(value: Any) -> bool:
    # A subclass of torch's tensor comes from a module of any name.
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _chosen(backend: Any, entries: list[Any]) -> Any:
    if backend is None:
        return "torch" if all(_is_tensor(entry) for entry in entries) else "autograd"
    if callable(backend) or (isinstance(backend, str) and backend in _ENGINES):
        return backend
    raise ValueError(
        f"backend is {backend!r}; it takes 'autograd', 'jax', 'torch', or a callable "
        "(loss, values) -> (value, grads)"
    )


def _check(entry: Any, label: str, engine: Any, by_position: bool) -> None:
    """Refuse what cannot be differentiated by."""
    if _is_tensor(entry):
        if engine != "torch" and not callable(engine):
            raise TypeError(
                f"{label} is a torch {type(entry).__name__}, which {engine} does not differentiate by; pass "
                "backend='torch'"
            )
        if not entry.is_floating_point():
            raise TypeError(f"{label} is a tensor of dtype {entry.dtype}; it takes floating-point numbers")
        if not by_position and not entry.requires_grad:
            raise TypeError(
                f"{label} is a tensor that requires no gradient, and a loss without parameters cannot be "
                "differentiated by it; call its requires_grad_(), or give the loss a parameter for it"
            )
        return
    if not isinstance(entry, (Variable, np.ndarray)) or is_masked_array(entry):
        raise TypeError(f"{label} is {describe(entry)}; it takes a Variable, an ndarray or a torch tensor")
    if not is_float(entry.dtype):
        raise TypeError(
            f"{label} is {describe(entry._data if isinstance(entry, Variable) else entry)}; it takes "
            "real floating-point numbers"
        )
    if isinstance(entry, Variable):
        trace = current_trace()
        if trace is not None and trace.find(entry) is not None:
            raise RuntimeError(
                f"{label} is the variable {entry.name!r}, by which the loss around this call is being "
                "differentiated: the gradients that come back here would be constants to it"
            )
    elif not by_position:
        raise TypeError(
            f"{label} is {describe(entry)}, and a loss without parameters cannot be differentiated by it; "
            "use a fastclip.Variable, or give the loss a parameter for it"
        )


def _for_callable(entry: Any) -> Any:
    """What a callable engine gets of a variable: an array, over its memory."""
    return entry.detach().numpy() if _is_tensor(entry) else entry


def _takes_values(loss: Callable[..., Any], n: int) -> bool:
    """Whether a loss is to be called with the values of n variables."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (ValueError, TypeError):
        # Some compiled functions tell nothing of their parameters; they read no Variables.
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    unlimited = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if keywords:
        raise TypeError(
            f"loss has the parameter {keywords[0]!r}, which takes no value by position and has no default; "
            "its values come by position"
        )
    if required == 0 and not unlimited:
        return False
    if n < required or (n > len(positional) and not unlimited):
        takes = f"{required} or more" if unlimited else f"{required} to {len(positional)}"
        raise TypeError(
            f"loss takes {required if required == len(positional) and not unlimited else takes} values, and "
            f"var_list has {n} variables"
        )
    return True
