"""Gradients of a loss, computed by the library that the caller selects."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastclip._arguments.arrays import describe, is_masked_array
from fastclip._autodiff.problem import Problem, is_float
from fastclip._autodiff.tracing import current_trace
from fastclip._variables.collections import trainable_variables
from fastclip._variables.var_list import named_variables
from fastclip._variables.variable import Variable

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastclip._indexed_slices import IndexedSlices
    from fastclip._typing import (
        ArrayBackend,
        ArrayLike,
        Backend,
        DTypeT,
        OneOrMore,
        ResultT,
        ShapeT,
        Tensor,
        TensorBackend,
        TorchTensor,
        Trainables,
        VariableT,
    )

__all__ = ["compute_gradients"]

_ENGINES = ("autograd", "jax", "torch")


@overload
def compute_gradients(
    loss: Callable[..., Any],
    var_list: OneOrMore[Variable] | None = None,
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Tensor | ArrayLike | None = None,
    *,
    backend: ArrayBackend = None,
) -> list[tuple[npt.NDArray[Any] | None, Variable]]: ...
@overload
def compute_gradients(
    loss: Callable[..., Any],
    var_list: OneOrMore[np.ndarray[ShapeT, DTypeT]],
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Tensor | ArrayLike | None = None,
    *,
    backend: ArrayBackend = None,
) -> list[tuple[np.ndarray[ShapeT, DTypeT] | None, np.ndarray[ShapeT, DTypeT]]]: ...
@overload
def compute_gradients(
    loss: Callable[..., Any],
    var_list: OneOrMore[TorchTensor[ResultT]],
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Tensor | ArrayLike | None = None,
    *,
    backend: TensorBackend = None,
) -> list[tuple[ResultT | IndexedSlices | None, ResultT]]: ...
@overload
def compute_gradients(
    loss: Callable[..., Any],
    var_list: OneOrMore[VariableT],
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Tensor | ArrayLike | None = None,
    *,
    backend: Backend = None,
) -> list[tuple[npt.NDArray[Any] | IndexedSlices | None, VariableT]]: ...
@overload
def compute_gradients(
    loss: Callable[..., Any],
    var_list: Trainables | None = None,
    gate_gradients: int = 1,
    aggregation_method: Any = None,
    colocate_gradients_with_ops: bool = False,
    grad_loss: Tensor | ArrayLike | None = None,
    *,
    backend: Backend = None,
) -> list[tuple[Any, Any]]: ...
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
    """Compute the gradient of a loss with respect to each variable.

    The interface is that of ``tf.compat.v1.train.Optimizer.compute_gradients`` [1]_.

    Parameters
    ----------
    loss : callable
        Function that returns the loss: a number, or an array, whose elements are then summed. A loss without
        parameters reads Variables; a loss with parameters is called with the values of `var_list` in order.
        A loss whose parameters all have defaults (``lambda x=x: …``) counts as one without parameters. In a
        loss that has other parameters too, those with defaults receive values if there are enough of them. A
        loss with ``*args``, and a callable whose signature is unknown, is called with the values.
    var_list : list, iterator, Variable, ndarray, torch.Tensor or nested container, optional
        Variables to differentiate with respect to, of float16, bfloat16, float32 or float64. None selects
        :func:`fastclip.trainable_variables`. Arrays, and tensors that require no gradient, need a loss with
        parameters, because the variables in a loss without parameters could not be recognised otherwise.
    gate_gradients : {GATE_NONE, GATE_OP, GATE_GRAPH}, optional
        Accepted for compatibility with TensorFlow; checked, but not used.
    aggregation_method, colocate_gradients_with_ops : optional
        Accepted for compatibility with TensorFlow; not used.
    grad_loss : array_like, optional
        Gradient with respect to the output of the loss, of the same shape as the output. None stands for
        ones.
    backend : {"autograd", "jax", "torch"} or callable, optional
        Library that differentiates. None selects ``"torch"`` if all variables are tensors of torch, else
        ``"autograd"``. A callable is called as ``backend(loss, values)``, with the unchanged `loss` and the
        values as arrays that share the memory of the variables, and returns ``(value, grads)`` with one
        gradient, or None, for each value.

    Returns
    -------
    list of (gradient, variable)
        One pair for each variable. The gradient is None if the loss does not depend on the variable, or only
        through functions without a derivative. Otherwise it is a writeable array of the variable's shape and
        data type that shares memory with nothing else, a tensor if the variable is one, or an
        :class:`fastclip.IndexedSlices` for a sparse embedding of torch.

    Raises
    ------
    RuntimeError
        If `loss` is not callable, or calls this function for a variable with respect to which it is being
        differentiated.
    ValueError
        If there are no variables, which is also the case for an iterator that was used up before; if
        `gate_gradients` or `backend` is unknown, `grad_loss` has another shape
        than the loss, or a callable `backend` returns another number of gradients, or other shapes.
    TypeError
        If an entry of `var_list` has another type, the loss takes another number of values, or its output is
        not a floating-point number or an array of such numbers.
    ImportError
        If the library is not installed.

    Notes
    -----
    Exceptions of the loss are propagated. With autograd and JAX, the loss has to use ``autograd.numpy`` or
    ``jax.numpy``; NumPy's own functions raise an error where they would treat a traced value as a constant.
    JAX computes in float64 if a variable is float64, whatever its configuration. A function compiled by
    ``jax.jit`` keeps the values that it read when it was compiled: pass Variables to it as arguments.

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

    For plain arrays:

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
    named_entries = _flatten_variables(var_list)
    if not named_entries:
        raise ValueError("No variables to optimize.")
    entries = [entry for _, entry in named_entries]
    engine = _select_engine(backend, entries)
    has_parameters = _has_parameters(loss, len(entries))
    # The gradient of a variable that is listed twice is computed once.
    positions: dict[int, int] = {}
    variables: list[Any] = []
    paths: list[str] = []
    arguments: list[tuple[int | None, Any]] = []
    for path, entry in named_entries:
        if var_list is None and not is_float(entry.dtype):
            # Integer variables such as counters are trainable by default, but have no gradient.
            arguments.append((None, entry._data))
            continue
        _check_variable(entry, path, engine, has_parameters or callable(engine))
        if id(entry) not in positions:
            positions[id(entry)] = len(variables)
            paths.append(path)
            variables.append(_callable_argument(entry) if callable(engine) else entry)
        arguments.append((positions[id(entry)], None))
    gradients = _run(engine, Problem(loss, has_parameters, variables, arguments, paths, grad_loss))

    pairs: list[tuple[Any, Any]] = []
    returned: set[int] = set()
    for entry, (i, _) in zip(entries, arguments, strict=True):
        gradient = None if i is None else gradients[i]
        if i in returned and gradient is not None:
            gradient = gradient.clone() if _is_tensor(gradient) else _copy(gradient)
        if i is not None:
            returned.add(i)
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


def _copy(gradient: Any) -> Any:
    if isinstance(gradient, np.ndarray):
        return gradient.copy()
    return gradient._with_values(gradient.values.copy())


def _flatten_variables(var_list: Any) -> list[tuple[str, Any]]:
    """Returns the variables of a nested container, each with its name in error messages."""
    if var_list is None:
        return [(f"trainable_variables()[{i}]", v) for i, v in enumerate(trainable_variables())]
    return named_variables(var_list)


def _is_tensor(value: Any) -> bool:
    # Subclasses of torch.Tensor may be defined in any module.
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _select_engine(backend: Any, entries: list[Any]) -> Any:
    if backend is None:
        return "torch" if all(_is_tensor(entry) for entry in entries) else "autograd"
    if callable(backend) or (isinstance(backend, str) and backend in _ENGINES):
        return backend
    raise ValueError(
        f"backend is {backend!r}; it takes 'autograd', 'jax', 'torch', or a callable "
        "(loss, values) -> (value, grads)"
    )


def _check_variable(entry: Any, path: str, engine: Any, is_argument: bool) -> None:
    """Raises TypeError or RuntimeError for a variable whose gradient cannot be computed."""
    if _is_tensor(entry):
        if engine != "torch" and not callable(engine):
            raise TypeError(
                f"{path} is a torch {type(entry).__name__}, which {engine} does not differentiate by; pass "
                "backend='torch'"
            )
        if not entry.is_floating_point():
            raise TypeError(f"{path} is a tensor of dtype {entry.dtype}; it takes floating-point numbers")
        if not is_argument and not entry.requires_grad:
            raise TypeError(
                f"{path} is a tensor that requires no gradient, and a loss without parameters cannot be "
                "differentiated by it; call its requires_grad_(), or give the loss a parameter for it"
            )
        return
    if not isinstance(entry, (Variable, np.ndarray)) or is_masked_array(entry):
        raise TypeError(f"{path} is {describe(entry)}; it takes a Variable, an ndarray or a torch tensor")
    if not is_float(entry.dtype):
        raise TypeError(
            f"{path} is {describe(entry._data if isinstance(entry, Variable) else entry)}; it takes "
            "real floating-point numbers"
        )
    if isinstance(entry, Variable):
        trace = current_trace()
        if trace is not None and trace.find(entry) is not None:
            raise RuntimeError(
                f"{path} is the variable {entry.name!r}, by which the loss around this call is being "
                "differentiated: the gradients that come back here would be constants to it"
            )
    elif not is_argument:
        raise TypeError(
            f"{path} is {describe(entry)}, and a loss without parameters cannot be differentiated by it; "
            "use a fastclip.Variable, or give the loss a parameter for it"
        )


def _callable_argument(entry: Any) -> Any:
    """Returns the argument of a callable engine: an array that shares its memory for a tensor."""
    return entry.detach().numpy() if _is_tensor(entry) else entry


def _has_parameters(loss: Callable[..., Any], n: int) -> bool:
    """Whether a loss has parameters for the values of n variables.

    Raises TypeError if it has parameters, but not for n values.
    """
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (ValueError, TypeError):
        # Some compiled functions have no signature; these do not read Variables.
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
