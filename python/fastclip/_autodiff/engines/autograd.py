"""Differentiation by HIPS autograd: NumPy's functions, traced as they run."""

from __future__ import annotations

from typing import Any

from fastclip._arguments.arrays import describe
from fastclip._autodiff.problem import (
    Problem,
    check_real,
    import_engine,
    independent_gradients,
    output_gradient,
)
from fastclip._autodiff.tracing import Trace, current_trace
from fastclip._variables.variable import Variable

__all__ = ["gradients"]

# Parts of the messages of errors that NumPy's own functions raise for autograd's boxes.
_NUMPY_ERRORS = ("ArrayBox", "unexpected keyword argument 'out'", "setting an array element with a sequence")

_HINT = (
    "fastclip: the loss is differentiated by autograd, whose values not all of NumPy's own functions take: "
    "write `import autograd.numpy as np` where the loss is defined"
)


def gradients(problem: Problem) -> list[Any]:
    """Returns the gradient of each variable; None for one that the loss does not depend on."""
    import_engine("autograd", "autograd")
    import_engine("autograd.numpy", "autograd")
    core, tracer, util = (
        import_engine(f"autograd.{part}", "autograd") for part in ("core", "tracer", "util")
    )
    # autograd's functions now recognise a variable among their arguments, see `Variable._trace`.
    tracer.Box.types.add(Variable)

    # autograd numbers its traces from 0 up, in a counter that all threads share. A negative number leaves the
    # counter unchanged, and is below the numbers of traces that the loss itself starts.
    number = -(0.5 ** (_depth(current_trace()) + 1))
    roots = [core.VJPNode.new_root() for _ in problem.variables]
    boxes = [tracer.new_box(array, number, root) for array, root in zip(problem.arrays(), roots, strict=True)]
    try:
        output = problem.evaluate("autograd", boxes)
    except (TypeError, ValueError, AttributeError) as error:
        if hasattr(error, "add_note") and any(text in str(error) for text in _NUMPY_ERRORS):
            error.add_note(_HINT)
        raise
    if not isinstance(output, tracer.Box):
        output_gradient(problem.grad_loss, *_shape_and_dtype(check_real(output)))
        return [None] * len(roots)
    if output._trace != number:
        _refuse_enclosing()
    if isinstance(output._value, tracer.Box):
        _refuse_enclosing()
    if isinstance(output._value, (tuple, list, dict)):
        raise TypeError(f"loss returned {describe(output._value)}; it has to return a number or an array")

    shape, dtype = _shape_and_dtype(check_real(output._value))
    gradient = output_gradient(problem.grad_loss, shape, dtype)
    gradient_of_root: dict[Any, Any] = {}
    outgrads = {output._node: (gradient, False)}
    root_set = set(roots)
    for node in util.toposort(output._node):
        outgrad = outgrads.pop(node)
        if node in root_set:
            gradient_of_root[node] = outgrad[0]
            continue
        for parent, ingrad in zip(node.parents, node.vjp(outgrad[0]), strict=False):
            outgrads[parent] = core.add_outgrads(outgrads.get(parent), ingrad)
    results = [gradient_of_root.get(root) for root in roots]
    if any(isinstance(result, tracer.Box) for result in results):
        _refuse_enclosing()
    # The gradient of an indexed variable is a sparse object of autograd, which becomes dense here. A result
    # may be `gradient` itself, which is owned by fastclip.
    results = [
        core.add_outgrads(None, result)[0] if type(result) in core.sparse_object_types else result
        for result in results
    ]
    return independent_gradients(results, problem)


def _shape_and_dtype(array: Any) -> tuple[tuple[int, ...], Any]:
    return array.shape, array.dtype


def _depth(trace: Trace | None) -> int:
    depth = 0
    while trace is not None:
        depth += 1
        trace = trace.outer
    return depth


def _refuse_enclosing() -> None:
    raise TypeError(
        "loss depends on values that another differentiation traces around this call, through which no "
        "gradient comes back; use autograd.grad for the inner one"
    )
