"""The warning about variables that no longer exist."""

from __future__ import annotations

import warnings

__all__ = ["MANY", "warn_of_lost_variables"]

#: The number of lost variables from which on an optimizer warns.
MANY = 10


def warn_of_lost_variables(name: str, count: int, stacklevel: int) -> None:
    """Warn that slots were dropped because their variables no longer exist.

    Parameters
    ----------
    name : str
        The name of the optimizer.
    count : int
        The number of variables.
    stacklevel : int
        The number of calls between the user's code and this function, as in ``warnings.warn``.
    """
    warnings.warn(
        f"{count} variables that the optimizer {name!r} has updated no longer exist, and their slots were "
        "dropped. If a name is bound to a new array in each step (w = w * 0.9), each of these arrays is "
        "another variable, whose slots begin anew. Change the array in place instead (w *= 0.9 or "
        "w[...] = w * 0.9), or use a fastclip.Variable and its method assign. For variables that are not "
        "needed any more, call forget(variable) while they exist.",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )
