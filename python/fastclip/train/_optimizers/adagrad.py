"""The Adagrad optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclip.train._hyper_parameter import POSITIVE, HyperParameter, HyperParameterSetting, current
from fastclip.train._optimizer import Optimizer
from fastclip.train._settings import FixedSetting

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastclip.train._gradient_options import GradientOptions

__all__ = ["AdagradOptimizer"]


class AdagradOptimizer(Optimizer):
    r"""The Adagrad algorithm.

    Takes the arguments of ``tf.compat.v1.train.AdagradOptimizer``, and the keyword arguments of
    :class:`Optimizer`.

    Parameters
    ----------
    learning_rate : float, 0-d array, Variable or callable
        The learning rate.
    initial_accumulator_value : float
        The initial value of the accumulators, above 0.
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
    :math:`a \leftarrow a + g^2`, :math:`w \leftarrow w - \mathit{lr} \cdot g / \sqrt a` [1]_ [2]_. The slot
    ``accumulator`` contains :math:`a`.

    References
    ----------
    .. [1] https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/AdagradOptimizer
    .. [2] Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", JMLR 12, 2011. https://jmlr.org/papers/v12/duchi11a.html

    Examples
    --------
    >>> import numpy as np
    >>> from fastclip.train import AdagradOptimizer
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = AdagradOptimizer(0.5, initial_accumulator_value=3.0)
    >>> optimizer.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w
    array([0.75, 2.25])
    """

    _rule = "adagrad"
    _slot_names = ("accumulator",)

    learning_rate = HyperParameterSetting()
    initial_accumulator_value = FixedSetting()

    def __init__(
        self,
        learning_rate: HyperParameter,
        initial_accumulator_value: float = 0.1,
        use_locking: bool = False,
        name: str = "Adagrad",
        **options: Unpack[GradientOptions],
    ) -> None:
        first_value = current(initial_accumulator_value, "initial_accumulator_value", POSITIVE)
        super().__init__(use_locking, name, {"learning_rate": learning_rate}, (first_value,), **options)
        self.initial_accumulator_value = first_value
