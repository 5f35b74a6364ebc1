"""Whether an argument of a clip function is a value that autograd traces.

The functions differentiate then, by the rules of :mod:`fastclip._autodiff.rules`. autograd is not imported
here: where its caller has not done so, nothing can be traced.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastclip import _core
from fastclip._arguments.rebuilding import stored_entries
from fastclip._variables.variable import Variable

__all__ = ["holds_traced", "is_traced"]


def is_traced(*values: Any) -> bool:
    """Whether one of several arguments is traced."""
    tracer = sys.modules.get("autograd.tracer")
    return tracer is not None and _has_box(values, tracer)


def holds_traced(container: Any, *values: Any) -> bool:
    """Whether an entry of a container, or one of several arguments, is traced."""
    tracer = sys.modules.get("autograd.tracer")
    if tracer is None:
        return False
    if _has_box(values, tracer):
        return True
    try:
        return not _core.is_plain(container) and _holds_box(container, tracer)
    except RecursionError:
        # It contains itself, which whoever reads it will say.
        return False


def _has_box(values: tuple[Any, ...], tracer: Any) -> bool:
    for value in values:
        kind = type(value)
        # What most calls bring needs no look at autograd's types.
        if kind is not np.ndarray and kind is not float and value is not None and _is_box(value, tracer):
            return True
    return False


def _is_box(value: Any, tracer: Any) -> bool:
    kind = type(value)
    return kind in tracer.Box.types and (kind is not Variable or value._box() is not None)


def _holds_box(value: Any, tracer: Any) -> bool:
    if _is_box(value, tracer):
        return True
    kind = type(value)
    # What a subclass makes of its entries is for whoever reads it to find out.
    if issubclass(kind, (list, tuple)):
        return any(_holds_box(entry, tracer) for entry in stored_entries(value))
    return issubclass(kind, dict) and any(_holds_box(entry, tracer) for entry in list(dict.values(value)))
