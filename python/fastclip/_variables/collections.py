"""Collections of variables, as those of TensorFlow's graphs."""

from __future__ import annotations

from fastclip._variables.registry import live_trainable
from fastclip._variables.variable import Variable

__all__ = ["GraphKeys", "get_collection", "trainable_variables"]


class GraphKeys:
    """Names of collections, as ``tf.compat.v1.GraphKeys`` [1]_.

    Attributes
    ----------
    TRAINABLE_VARIABLES : str
        Name of the collection of variables that were created with ``trainable=True``.

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


def get_collection(key: str) -> list[Variable]:
    """Return the members of a collection, as ``tf.compat.v1.get_collection`` [1]_.

    Parameters
    ----------
    key : str
        Name of the collection, one of :class:`GraphKeys`.

    Returns
    -------
    list
        New list in order of creation; empty if there is no collection of this name. Collections hold weak
        references: a variable that nothing else refers to is no member.

    Raises
    ------
    TypeError
        If `key` is not a string.

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
    """Return the living variables that were created with ``trainable=True``.

    This is ``tf.compat.v1.trainable_variables`` [1]_. ``compute_gradients`` uses them if it is called without
    `var_list`. Copies of variables and unpickled variables are not among them.

    Returns
    -------
    list of Variable
        New list in order of creation.

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
