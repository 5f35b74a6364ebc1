"""The collection of variables that training updates, as TensorFlow's graph keeps it."""

from __future__ import annotations

from typing import Any

from fastclip._variables.registry import live_trainable
from fastclip._variables.variable import Variable

__all__ = ["GraphKeys", "get_collection", "trainable_variables"]


class GraphKeys:
    """Names of collections, as ``tf.compat.v1.GraphKeys``.

    Attributes
    ----------
    TRAINABLE_VARIABLES : str
        The variables that were made with ``trainable=True``.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/GraphKeys

    Examples
    --------
    >>> import fastclip
    >>> fastclip.GraphKeys.TRAINABLE_VARIABLES
    'trainable_variables'
    """

    TRAINABLE_VARIABLES = "trainable_variables"


def get_collection(key: str) -> list[Any]:
    """Return what a collection holds, as ``tf.compat.v1.get_collection``.

    Parameters
    ----------
    key : str
        A name of :class:`GraphKeys`.

    Returns
    -------
    list
        A new list, in order of creation; empty for a key that has no collection. Variables are held
        weakly: one that nothing else refers to is not in it.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/get_collection

    Examples
    --------
    >>> import fastclip
    >>> w = fastclip.Variable([1.0, 2.0])
    >>> any(v is w for v in fastclip.get_collection(fastclip.GraphKeys.TRAINABLE_VARIABLES))
    True
    """
    if not isinstance(key, str):
        raise TypeError(f"key is {key!r}; it takes a name of GraphKeys")
    if key != GraphKeys.TRAINABLE_VARIABLES:
        return []
    return live_trainable()


def trainable_variables() -> list[Variable]:
    """Return the variables that were made with ``trainable=True`` and are still in use.

    As ``tf.compat.v1.trainable_variables`` [1]_. ``compute_gradients`` without `var_list` uses them.

    Returns
    -------
    list of Variable
        A new list, in order of creation.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/trainable_variables

    Examples
    --------
    >>> import fastclip
    >>> w, frozen = fastclip.Variable(1.0), fastclip.Variable(1.0, trainable=False)
    >>> [any(v is x for v in fastclip.trainable_variables()) for x in (w, frozen)]
    [True, False]
    """
    return live_trainable()
