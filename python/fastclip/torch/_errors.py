"""The error of gradients that are not finite."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastclip._errors import NonFiniteError

__all__ = ["NonFiniteGradientError", "nonfinite_gradient_error"]

#: Names that a message shows at most.
_SHOWN = 8


class NonFiniteGradientError(NonFiniteError, RuntimeError):
    """NaN or infinity among the gradients of a call that refuses them; nothing was written.

    It is a `RuntimeError` too, because that is what PyTorch's functions raise.

    Attributes
    ----------
    norms : ndarray of float64
        The norm of each gradient, in the order of the parameters: NaN or infinite for those that the message
        names.
    """


def nonfinite_gradient_error(
    message: str, norms: list[float], names: Iterable[str]
) -> NonFiniteGradientError:
    """Return the error, whose message names the parameters whose gradients are not finite.

    Parameters
    ----------
    message : str
        The first sentences of the message.
    norms : list of float
        The norm of each gradient.
    names : iterable of str
        The name of the parameter of each gradient.
    """
    array = np.array(norms)
    bad = [name for name, is_finite in zip(names, np.isfinite(array), strict=True) if not is_finite]
    shown = ", ".join(bad[:_SHOWN]) + (", …" if len(bad) > _SHOWN else "")
    count = f" {len(bad)} parameters:" if len(bad) > _SHOWN else ""
    error = NonFiniteGradientError(f"{message} NaN or infinity in the gradients of{count} {shown}.")
    error.norms = array
    return error
