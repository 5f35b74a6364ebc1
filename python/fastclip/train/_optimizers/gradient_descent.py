"""The gradient descent optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["GradientDescentOptimizer"]


class GradientDescentOptimizer(Optimizer):
    r"""Gradient descent.

    Takes the arguments of ``tf.compat.v1.train.GradientDescentOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    With the gradient :math:`g`, :math:`w \leftarrow w - \mathit{lr} \cdot g` [1]_.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/GradientDescentOptimizer

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import GradientDescentOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> GradientDescentOptimizer(0.5).apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w
    array([0.5, 2.5])
    """

    _rule = "gradient_descent"

    learning_rate = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter,
        use_locking: bool = False,
        name: str = "GradientDescent",
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(use_locking, name, {"learning_rate": learning_rate}, **options)
