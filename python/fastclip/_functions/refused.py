"""What computes a call that the compiled functions refuse."""

from __future__ import annotations

from typing import Any

from fastclip import _core

__all__ = ["functions_for"]


def functions_for(error: Exception | None) -> Any:
    """Returns the module whose functions take the arguments that the compiled function has refused.

    Parameters
    ----------
    error : OnDevice, Recorded or None
        The exception: for an array on a device, or for a tensor of torch that requires grad. None if a bound
        is such a tensor.
    """
    if isinstance(error, _core.OnDevice):
        from fastclip.gpu import _functions

        return _functions
    from fastclip._autodiff import torch_rules

    return torch_rules
