"""The proximal Adagrad optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import POSITIVE, HyperParameter, HyperParameterSetting, current
from fastclip.train._optimizer import Optimizer
from fastclip.train._settings import FixedSetting

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["ProximalAdagradOptimizer"]


class ProximalAdagradOptimizer(Optimizer):
    r"""Adagrad with l1 and l2 penalties, applied by a proximal step instead of their gradients.

    Takes the arguments of ``tf.compat.v1.train.ProximalAdagradOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    initial_accumulator_value : float
        The initial value of the accumulators, above 0.
    l1_regularization_strength, l2_regularization_strength : float
        The factors :math:`l_1` and :math:`l_2` of the penalties.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Raises
    ------
    ValueError
        If `initial_accumulator_value` is not above 0.

    Notes
    -----
    :math:`a \leftarrow a + g^2`, :math:`\eta = \mathit{lr} / \sqrt a`, :math:`v = w - \eta g`,
    :math:`w \leftarrow \mathrm{sign}(v) \max(|v| - \eta l_1, 0) / (1 + \eta l_2)` [1]_ [2]_. The slot
    ``accumulator`` contains :math:`a`.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/ProximalAdagradOptimizer
    .. [2] Duchi and Singer, "Efficient learning using forward-backward splitting", NeurIPS 2009.
       https://papers.nips.cc/paper/3793-efficient-learning-using-forward-backward-splitting

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import ProximalAdagradOptimizer
    >>> w = np.array([1.0, 0.25])
    >>> optimizer = ProximalAdagradOptimizer(1.0, 3.0, l1_regularization_strength=0.5)
    >>> optimizer.apply_gradients([(np.array([1.0, 0.25]), w)])
    >>> w
    array([0.25, 0.  ])
    """

    _rule = "proximal_adagrad"
    _slot_names = ("accumulator",)

    learning_rate = HyperParameterSetting()
    initial_accumulator_value = FixedSetting()
    l1_regularization_strength = HyperParameterSetting()
    l2_regularization_strength = HyperParameterSetting()

    def __init__(
        self,
        learning_rate: HyperParameter,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        use_locking: bool = False,
        name: str = "ProximalAdagrad",
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
        }
        first_value = current(initial_accumulator_value, "initial_accumulator_value", POSITIVE)
        super().__init__(use_locking, name, hyper_parameters, (first_value,), **options)
        self.initial_accumulator_value = first_value
