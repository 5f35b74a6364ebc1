"""The public module of classes and functions that private modules define."""

from __future__ import annotations

from types import FunctionType
from typing import Any

__all__ = ["name_public_module"]


def name_public_module(namespace: dict[str, Any]) -> None:
    """Name the public module in the classes and functions that it exports.

    Help, tracebacks, ``repr`` and pickles then say ``fastclip.Variable``, so that pickles stay readable when
    private modules move. Methods name the public module too: doctest runs the examples of a class and of its
    methods only in the module that both name. ``inspect.getsource`` finds functions and methods as before,
    but no longer the classes, which it looks for in the file of the module they name.

    Parameters
    ----------
    namespace : dict
        ``globals()`` of the public module, with its ``__all__``.
    """
    module = namespace["__name__"]
    for name in namespace["__all__"]:
        exported = namespace.get(name)
        if isinstance(exported, (type, FunctionType)) and exported.__module__ != module:
            exported.__module__ = module
            members = vars(exported).values() if isinstance(exported, type) else ()
            for member in members:
                method = getattr(member, "__func__", member)
                if isinstance(method, FunctionType):
                    method.__module__ = module
