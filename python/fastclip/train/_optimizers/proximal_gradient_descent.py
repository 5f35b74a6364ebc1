"""The proximal gradient descent optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["ProximalGradientDescentOptimizer"]


class ProximalGradientDescentOptimizer(Optimizer):
    r"""Gradient descent with l1 and l2 penalties, applied by a proximal step instead of their gradients.

    Takes the arguments of ``tf.compat.v1.train.ProximalGradientDescentOptimizer``, and the keyword arguments
    of :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    l1_regularization_strength, l2_regularization_strength : float
        The factors :math:`l_1` and :math:`l_2` of the penalties.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    With :math:`v = w - \mathit{lr} \cdot g`:
    :math:`w \leftarrow \mathrm{sign}(v) \max(|v| - \mathit{lr} \cdot l_1, 0) / (1 + \mathit{lr} \cdot l_2)`
    [1]_ [2]_.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/ProximalGradientDescentOptimizer
    .. [2] Duchi and Singer, "Efficient learning using forward-backward splitting", NeurIPS 2009.
       https://papers.nips.cc/paper/3793-efficient-learning-using-forward-backward-splitting

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import ProximalGradientDescentOptimizer
    >>> w = np.array([1.0, 0.25])
    >>> optimizer = ProximalGradientDescentOptimizer(0.5, l1_regularization_strength=0.5)
    >>> optimizer.apply_gradients([(np.array([1.0, 0.25]), w)])
    >>> w
    array([0.25, 0.  ])
    """

    _rule = "proximal_gradient_descent"

    learning_rate = HyperParameterSetting()
    l1_regularization_strength = HyperParameterSetting()
    l2_regularization_strength = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        use_locking: bool = False,
        name: str = "ProximalGradientDescent",
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
        }
        super().__init__(use_locking, name, hyper_parameters, **options)
