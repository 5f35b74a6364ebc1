"""The momentum optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import Flag, HyperParameter, HyperParameterSetting
from fastclip.train._optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["MomentumOptimizer"]


class MomentumOptimizer(Optimizer):
    r"""Gradient descent with momentum.

    Takes the arguments of ``tf.compat.v1.train.MomentumOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    momentum : float, 0-d array, Variable or callable
        The momentum :math:`\mu`.
    use_nesterov : bool
        Whether to use Nesterov's momentum.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Notes
    -----
    :math:`a \leftarrow \mu a + g`, :math:`w \leftarrow w - \mathit{lr} \cdot a`; with Nesterov's momentum
    :math:`w \leftarrow w - (\mathit{lr} \cdot g + \mathit{lr} \cdot \mu a)` [1]_ [2]_. The slot ``momentum``
    contains :math:`a`, initially 0.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/MomentumOptimizer
    .. [2] Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
       learning", ICML 2013. https://proceedings.mlr.press/v28/sutskever13.html

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import MomentumOptimizer
    >>> w, g = np.array([1.0, 2.0]), np.array([1.0, -1.0])
    >>> optimizer = MomentumOptimizer(learning_rate=0.1, momentum=0.5)
    >>> optimizer.apply_gradients([(g, w)])
    >>> optimizer.apply_gradients([(g, w)])
    >>> w
    array([0.75, 2.25])
    >>> optimizer.get_slot(w, "momentum")
    array([ 1.5, -1.5])
    """

    _rule = "momentum"
    _slot_names = ("momentum",)

    learning_rate = HyperParameterSetting()
    momentum = HyperParameterSetting()
    use_nesterov = Flag()

    def __init__(
        self,
        learning_rate: HyperParameter,
        momentum: HyperParameter,
        use_locking: bool = False,
        name: str = "Momentum",
        use_nesterov: bool = False,
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "momentum": momentum,
            "use_nesterov": use_nesterov,
        }
        super().__init__(use_locking, name, hyper_parameters, **options)
