"""The FTRL optimizer: follow the regularised leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import (
    AT_LEAST_ZERO,
    AT_MOST_ZERO,
    HyperParameter,
    HyperParameterSetting,
    current,
)
from fastclip.train._optimizer import Optimizer
from fastclip.train._settings import FixedSetting

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["FtrlOptimizer"]


class FtrlOptimizer(Optimizer):
    r"""FTRL-proximal: follow the regularised leader.

    Takes the arguments of ``tf.compat.v1.train.FtrlOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    learning_rate_power : float
        The exponent with which the learning rate falls, at most 0. With 0, the learning rate is constant.
    initial_accumulator_value : float
        The initial value of the accumulators, at least 0.
    l1_regularization_strength, l2_regularization_strength : float
        The factors :math:`l_1` and :math:`l_2` of the penalties, at least 0.
    accum_name, linear_name : str, optional
        Accepted for compatibility with TensorFlow, and ignored.
    l2_shrinkage_regularization_strength : float
        The factor of a penalty on the magnitude of the variable, at least 0. If the gradient is sparse, the
        penalty applies only to rows that have a gradient.
    beta : float, optional
        The parameter :math:`\beta` of the paper. By default 0.
    use_locking, name
        See :class:`Optimizer`.
    **options
        Keyword arguments that every optimizer has, described in :class:`Optimizer`: ``clipvalue``,
        ``clipnorm``, ``global_clipnorm``, ``on_nonfinite``, ``loss_scale``, ``skip_above``, ``slot_dtype``
        and ``seed``.

    Raises
    ------
    ValueError
        If `learning_rate_power` is above 0, or an argument that must be at least 0 is negative.

    Notes
    -----
    With :math:`p` the negative of `learning_rate_power`, :math:`g' = g + 2 \cdot \mathit{shrinkage} \cdot w`,
    :math:`n' = n + g^2`, :math:`z \leftarrow z + g' - (n'^p - n^p)/\mathit{lr} \cdot w`,
    :math:`w \leftarrow -\mathrm{sign}(z) \max(|z| - l_1, 0) / (n'^p/\mathit{lr} + 2 l_2')`,
    :math:`l_2' = l_2 + \beta / (2 \mathit{lr})` [1]_ [2]_. The slots ``accum`` and ``linear`` contain
    :math:`n` and :math:`z`, the latter initially 0.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/FtrlOptimizer
    .. [2] McMahan and others, "Ad click prediction: a view from the trenches", KDD 2013.
       https://dl.acm.org/doi/10.1145/2487575.2488200

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import FtrlOptimizer
    >>> w = np.array([0.0, 0.0])
    >>> optimizer = FtrlOptimizer(1.0, initial_accumulator_value=3.0, l1_regularization_strength=0.5)
    >>> optimizer.apply_gradients([(np.array([1.0, -0.25]), w)])
    >>> w
    array([-0.25,  0.  ])
    """

    _rule = "ftrl"
    _slot_names = ("accum", "linear")

    learning_rate = HyperParameterSetting()
    learning_rate_power = HyperParameterSetting(AT_MOST_ZERO)
    initial_accumulator_value = FixedSetting()
    l1_regularization_strength = HyperParameterSetting(AT_LEAST_ZERO)
    l2_regularization_strength = HyperParameterSetting(AT_LEAST_ZERO)
    l2_shrinkage_regularization_strength = HyperParameterSetting(AT_LEAST_ZERO)
    beta = HyperParameterSetting(if_none=0.0)

    def __init__(
        self,
        learning_rate: HyperParameter,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        use_locking: bool = False,
        name: str = "Ftrl",
        accum_name: str | None = None,
        linear_name: str | None = None,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float | None = None,
        **options: Unpack[GradientOptions],
    ) -> None:
        hyper_parameters = {
            "learning_rate": learning_rate,
            "learning_rate_power": learning_rate_power,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
        }
        first_value = current(initial_accumulator_value, "initial_accumulator_value", AT_LEAST_ZERO)
        super().__init__(use_locking, name, hyper_parameters, (first_value, 0.0), **options)
        self.initial_accumulator_value = first_value
